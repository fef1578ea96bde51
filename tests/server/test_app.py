"""The application as a whole: problems, logs, metrics, health, what it needs to start."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from pfl_server import problems
from pfl_server.app import openapi_document
from pfl_server.counting import logs
from pfl_server.errors import DatabaseError
from pfl_server.problems import PROBLEMS, TYPE_PREFIX
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import Refusal
from tests.server.conftest import ADMIN_TOKEN, Server, device_of


def _problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.headers["PFL-Protocol"] == "1"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, TYPE_PREFIX + code)
    assert body["title"]
    assert body["detail"]
    assert body["mend"]
    return body


class TestProblems:
    def test_an_unknown_address_is_a_problem(self, server: Server) -> None:
        _problem(server.client.get("/v1/nothing"), 404, "not-found")

    def test_another_method_is_a_problem_that_names_the_allowed_ones(self, server: Server) -> None:
        answer = server.client.post("/v1/federation")
        _problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "GET"
        answer = server.client.post(f"/v1/sets/{'0' * 64}")
        assert answer.headers["allow"] == "GET, HEAD"

    def test_what_nobody_foresaw_is_logged_and_tells_nothing(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(server.services.database, "read", fail)
        body = _problem(server.client.get("/v1/federation"), 500, "internal")
        assert "secret" not in json.dumps(body)
        assert "ZeroDivision" not in json.dumps(body)
        assert len(body["error_id"]) == 16
        record = next(r for r in caplog.records if getattr(r, "error_id", None) == body["error_id"])
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError

    def test_a_database_that_fails_is_unavailable(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise DatabaseError("connection to db.internal refused", mend="")

        monkeypatch.setattr(server.services.database, "read", fail)
        answer = server.client.get("/v1/federation")
        _problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"]
        assert "db.internal" not in answer.text

    def test_problems_are_counted_in_the_table_and_for_prometheus(self, server: Server) -> None:
        for _ in range(3):
            server.client.get("/v1/nothing")
        server.client.get(f"/v1/sets/{'0' * 64}")
        for _ in range(2):  # the second flush has nothing to add
            server.services.refusals.flush()
        with server.services.database.read() as session:
            found = {(r.round, r.code): r.count for r in session.scalars(select(Refusal))}
        assert found == {(-1, "not-found"): 3, (-1, "unauthorized"): 1}
        server.client.get("/v1/nothing")
        server.services.refusals.flush()
        with server.services.database.read() as session:
            assert session.get_one(Refusal, (-1, "not-found")).count == 4
        assert (
            'pfl_refusals_total{code="not-found"} 4.0'
            in server.client.get("/metrics", headers=server.admin).text
        )

    def test_counts_stay_until_they_are_written(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusals = server.services.refusals
        refusals.count("rate-limited", 7)

        def fail(_counts: object) -> None:
            raise DatabaseError("gone", mend="")

        with monkeypatch.context() as patch:
            patch.setattr(refusals, "_write", fail)
            with pytest.raises(DatabaseError):
                refusals.flush()
        refusals.flush()
        with server.services.database.read() as session:
            assert session.get_one(Refusal, (7, "rate-limited")).count == 1

    def test_codes_are_unique_and_documented(self) -> None:
        classes = [
            c for c in vars(problems).values() if isinstance(c, type) and issubclass(c, problems.Problem)
        ]
        assert len({c.code for c in classes if c is not problems.Problem}) == len(classes) - 1
        assert all(PROBLEMS[c.code] is c for c in classes if c is not problems.Problem)


class TestHeaders:
    def test_answers_are_not_sniffed_and_not_kept(self, server: Server) -> None:
        headers = server.client.get("/v1/federation").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers

    @pytest.mark.parametrize(
        "path", ["/healthz", "/readyz", "/v1/federation", "/v1/nothing", "/", "/docs", "/metrics"]
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
    def test_every_answer_says_that_it_is_the_aggregators(
        self, server: Server, method: str, path: str
    ) -> None:
        answer = server.client.request(method, path, follow_redirects=False)
        assert answer.headers.get_list("PFL-Protocol") == ["1"]

    def test_every_request_has_an_id_of_its_own(self, server: Server) -> None:
        ids = {server.client.get("/healthz").headers["x-request-id"] for _ in range(5)}
        assert len(ids) == 5


class TestHealth:
    def test_a_running_server_is_alive_and_ready(self, server: Server) -> None:
        for path in ("/healthz", "/readyz"):
            answer = server.client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    def test_without_its_folder_it_is_not_ready(self, server: Server) -> None:
        server.services.blobs.scratch.rmdir()
        _problem(server.client.get("/readyz"), 503, "unavailable")
        assert server.client.get("/healthz").status_code == 200

    def test_on_a_full_disk_it_is_not_ready(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pfl_server.storage.space.LEAST_FREE", 1 << 62)
        _problem(server.client.get("/readyz"), 503, "unavailable")
        assert server.client.get("/healthz").status_code == 200

    def test_with_other_tables_it_is_not_ready(self, server: Server) -> None:
        import sqlalchemy

        with server.services.database.write() as session:
            session.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'x'"))
        _problem(server.client.get("/readyz"), 503, "unavailable")


class TestMetrics:
    def test_they_count_by_route_not_by_address(self, server: Server) -> None:
        server.client.get(f"/v1/sets/{'1' * 64}", headers=server.enrol())
        server.client.get("/some/path/of/a/scanner")
        text = server.client.get("/metrics", headers=server.admin).text
        assert 'pfl_http_requests_total{method="GET",route="/v1/sets/{sha256}",status="404"} 1.0' in text
        assert 'pfl_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
        assert 'pfl_devices{state="active"} 1.0' in text
        assert "scanner" not in text
        assert "1" * 64 not in text

    def test_unknown_methods_do_not_make_new_series(self, server: Server) -> None:
        server.client.request("BREW", "/v1/federation")
        text = server.client.get("/metrics", headers=server.admin).text
        assert 'method="other"' in text
        assert "BREW" not in text

    def test_they_need_the_admin_where_there_is_one(self, server: Server) -> None:
        _problem(server.client.get("/metrics"), 401, "unauthorized")
        _problem(server.client.get("/metrics", headers={"Authorization": "Bearer x"}), 403, "admin-required")

    @pytest.mark.parametrize(
        ("host", "admin", "given", "expected"),
        [
            ("127.0.0.1", False, None, "public"),
            ("127.0.0.1", True, None, "admin"),
            ("0.0.0.0", False, None, "off"),
            ("0.0.0.0", True, None, "admin"),
            ("0.0.0.0", False, "public", "public"),
        ],
    )
    def test_who_sees_them_by_default(
        self, settings: ServerSettings, host: str, admin: bool, given: Any, expected: str
    ) -> None:
        settings = settings.model_copy(update={"host": host, "metrics": given})
        assert settings.access("metrics", admin=admin) == expected


class TestLogs:
    @pytest.fixture
    def stream(self) -> Iterator[io.StringIO]:
        root = logging.getLogger()
        before, level = list(root.handlers), root.level
        access = logging.getLogger("uvicorn.access")
        found = io.StringIO()
        logs.set_up(stream=found)
        ours = logging.getLogger("pfl_server")
        ours.setLevel("INFO")  # pytest sets the root's level again
        yield found
        ours.setLevel(logging.NOTSET)
        root.handlers[:] = before
        root.setLevel(level)
        access.disabled = False

    def test_they_are_json_lines_without_anything_personal(self, server: Server, stream: io.StringIO) -> None:
        headers = server.enrol()
        device = device_of(headers)
        token = server.token()
        server.client.get(f"/v1/sets/{'1' * 64}", headers=headers)
        server.client.get(f"/v1/sets/{'1' * 64}?mail=someone@example.org", headers=headers)
        server.client.put(f"/v1/tasks/{device}/update", headers=headers)
        server.client.post("/v1/devices", json={"bundle": server.bundle_id, "token": token, "x": "someone"})
        server.client.get("/metrics", headers=server.admin)
        server.client.delete("/v1/devices/me", headers=headers)
        text = stream.getvalue()
        lines = [json.loads(line) for line in text.splitlines()]
        requests = [line for line in lines if line["event"] == "request"]
        assert len(requests) >= 7
        assert {"time", "level", "logger", "request", "method", "route", "status", "ms"} <= set(requests[0])
        secret = headers["Authorization"].rpartition("_")[2]
        for hidden in (
            device,
            secret,
            token,
            ADMIN_TOKEN,
            "testclient",
            "127.0.0.1",
            "someone",
            "example.org",
        ):
            assert hidden not in text

    def test_a_credential_that_gets_into_a_message_is_blotted_out(
        self, server: Server, stream: io.StringIO
    ) -> None:
        headers = server.enrol()
        try:
            raise ValueError(headers["Authorization"])
        except ValueError:
            logging.getLogger("x").exception("device %s at %s", device_of(headers), "postgresql://u:pass@h/d")
        text = stream.getvalue()
        assert device_of(headers) not in text
        assert headers["Authorization"].rpartition("_")[2] not in text
        assert ":pass@" not in text
        assert "[credential]" in text
        assert "ValueError" in text


def test_a_long_answer_that_breaks_off_is_not_taken_for_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "2" * 64
    server.services.blobs.put(f"sets/{digest}", b"x" * 100)

    def broken(_key: str, _first: int, _last: int) -> Iterator[bytes]:
        yield b"x" * 10
        raise ZeroDivisionError

    monkeypatch.setattr(server.services.blobs, "read", broken)
    client = TestClient(server.client.app)
    with pytest.raises(ZeroDivisionError):  # a real server closes the connection
        client.get(f"/v1/sets/{digest}", headers=server.enrol())


def test_the_openapi_document_tells_every_answer() -> None:
    document = openapi_document()
    assert document["paths"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            what = f"{method} {path}"
            assert operation.get("summary"), what
            assert operation.get("description"), what
            assert operation["tags"], what
            assert any(status.startswith("2") or status == "304" for status in operation["responses"]), what
            for status, answer in operation["responses"].items():
                if status >= "400":
                    assert set(answer.get("content", {})) == {"application/problem+json"}, (what, status)
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description"), (what, parameter["name"])
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert set(document["components"]["securitySchemes"]) == {"admin", "device"}


def test_the_server_needs_no_training_libraries() -> None:
    program = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxruntime", "executorch", "peft", "ray", "matplotlib", "boto3"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Block())
import pfl_server.launch, pfl_server.app, pfl_server.services
import pfl_server.federation.runtime, pfl_server.rounds.coordinator
from pfl_mobile.strategies import entries
assert entries()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Devices join and leave; credentials are checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from pfl_server.federation.config import FederationConfig
from pfl_server.identity import credentials
from pfl_server.identity.attestation import CHALLENGE_S, load_verifier
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import Assignment, EnrolledDevice, EnrolmentToken, Federation, Round
from tests.server.conftest import Server, config_of, device_of


def _post(server: Server, **changes: Any) -> Any:
    return server.client.post("/v1/devices", json={"bundle": server.bundle_id} | changes)


def _device(server: Server, id_: str) -> EnrolledDevice:
    with server.services.database.read() as session:
        found = session.get(EnrolledDevice, id_)
    assert found is not None
    return found


class TestOpen:
    def test_the_federation_says_what_is_needed(self, server: Server) -> None:
        info = server.client.get("/v1/federation").json()
        assert info["enrolment"] == "open"
        assert info["attestation"] == []
        assert info["state"] == "running"
        assert info["bundle"]["name"] == "tiny-federated"

    def test_a_device_gets_a_credential_of_which_only_the_digest_is_kept(self, server: Server) -> None:
        answer = _post(server)
        assert answer.status_code == 201
        assert answer.headers["cache-control"] == "no-store"
        body = answer.json()
        row = _device(server, body["device"])
        secret = body["credential"].removeprefix(f"pfl_device_{row.id}_")
        assert len(secret) == 64
        assert row.secret_sha256 == credentials.sha256_of(secret)
        assert secret not in str({c.name: getattr(row, c.name) for c in EnrolledDevice.__table__.columns})

    def test_devices_are_counted_up(self, server: Server) -> None:
        indexes = [_device(server, device_of(server.enrol())).index for _ in range(3)]
        assert indexes == [0, 1, 2]

    def test_many_at_once_get_different_indexes(self, server: Server) -> None:
        bundle = server.bundle_id
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda _: server.client.post("/v1/devices", json={"bundle": bundle}), range(24))
            )
        assert {a.status_code for a in answers} == {201}
        with server.services.database.read() as session:
            assert sorted(session.scalars(select(EnrolledDevice.index))) == list(range(24))

    @pytest.mark.parametrize("field", ["name", "version", "fingerprint"])
    def test_another_bundle_is_refused(self, server: Server, field: str) -> None:
        answer = _post(server, bundle=server.bundle_id | {field: "f" * 64})
        assert (answer.status_code, answer.json()["code"]) == (409, "other-bundle")
        assert server.bundle_id["fingerprint"] in answer.json()["detail"]

    def test_a_group_that_is_not_declared_is_refused(self, server: Server) -> None:
        answer = _post(server, group="nobody")
        assert (answer.status_code, answer.json()["code"]) == (422, "unknown-group")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"bundle": 3}',
            b'{"bundle": {"name": "a", "version": "1", "fingerprint": "xyz"}}',
            b"[" * 40_000,
            b"\xff\xfe",
        ],
    )
    def test_what_does_not_follow_the_schema_is_refused(self, server: Server, body: bytes) -> None:
        answer = server.client.post("/v1/devices", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] in ("invalid-request", "bad-request")

    def test_unknown_fields_are_refused_and_not_repeated(self, server: Server) -> None:
        answer = _post(server, email="someone@example.org")
        assert answer.status_code == 422
        assert "example.org" not in answer.text


class TestGroups:
    @pytest.fixture
    def federation_config(self) -> FederationConfig:
        return config_of(groups=("left", "right"))

    def test_a_device_may_say_its_group(self, server: Server) -> None:
        assert _device(server, device_of(server.enrol("left"))).group == "left"

    def test_a_token_decides_the_group(self, server: Server) -> None:
        token = server.token(group="right")
        assert _device(server, device_of(server.enrol(token=token))).group == "right"

    def test_a_token_for_another_group_is_refused_and_not_used_up(self, server: Server) -> None:
        token = server.token(group="right", uses_left=1)
        answer = _post(server, token=token, group="left")
        assert (answer.status_code, answer.json()["code"]) == (403, "enrolment-refused")
        assert _post(server, token=token, group="right").status_code == 201


class TestTokens:
    @pytest.fixture
    def settings(self, settings: ServerSettings) -> ServerSettings:
        return settings.model_copy(update={"enrolment": "token"})

    def test_without_a_token_nobody_enrols(self, server: Server) -> None:
        answer = _post(server)
        assert (answer.status_code, answer.json()["code"]) == (403, "enrolment-refused")
        assert server.client.get("/v1/federation").json()["enrolment"] == "token"

    @pytest.mark.parametrize("token", ["", "x", "pfl_enrol_" + "0" * 64])
    def test_an_unknown_token_is_refused(self, server: Server, token: str) -> None:
        assert _post(server, token=token).json()["code"] == "enrolment-refused"

    def test_a_token_without_limit_stays_good(self, server: Server) -> None:
        token = server.token()
        assert [_post(server, token=token).status_code for _ in range(3)] == [201, 201, 201]
        with server.services.database.read() as session:
            kept = session.scalars(select(EnrolmentToken)).one()
            indexes = session.scalars(select(EnrolledDevice.index).order_by(EnrolledDevice.index)).all()
        assert kept.uses_left is None, "counts nothing down"
        assert list(indexes) == [0, 1, 2], "each is a device of its own"

    def test_a_token_is_used_up(self, server: Server) -> None:
        token = server.token(uses_left=2)
        codes = [_post(server, token=token).status_code for _ in range(3)]
        assert codes == [201, 201, 403]

    def test_a_token_is_used_up_also_by_many_at_once(self, server: Server) -> None:
        token, bundle = server.token(uses_left=5), server.bundle_id
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(
                lambda _: server.client.post("/v1/devices", json={"bundle": bundle, "token": token}),
                range(16),
            )
        assert sum(a.status_code == 201 for a in answers) == 5

    def test_a_refused_enrolment_uses_no_token_up(self, server: Server) -> None:
        token = server.token(uses_left=1)
        _post(server, token=token, bundle=server.bundle_id | {"name": "other"})
        assert _post(server, token=token).status_code == 201

    def test_a_token_expires(self, server: Server) -> None:
        token = server.token(expires=server.clock() + 10)
        server.enrol(token=token)
        server.clock.pass_time(11)
        assert _post(server, token=token).status_code == 403

    def test_only_the_digest_of_a_token_is_kept(self, server: Server) -> None:
        token = server.token()
        with server.services.database.read() as session:
            row = session.scalars(select(EnrolmentToken)).one()
        assert token not in str({c.name: getattr(row, c.name) for c in EnrolmentToken.__table__.columns})


class TestCredentials:
    def test_a_device_is_known_by_its_credential(self, server: Server) -> None:
        assert server.client.get(f"/v1/sets/{'0' * 64}", headers=server.enrol()).status_code == 404

    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer x",
            "Basic dXNlcjpwdw==",
            f"Bearer pfl_device_{'0' * 32}_{'0' * 64}",
            "Bearer pfl_device_é",
        ],
    )
    def test_anything_else_is_refused(self, server: Server, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header.encode("utf-8")}
        answer = server.client.get(f"/v1/sets/{'0' * 64}", headers=headers)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_the_secret_of_another_device_is_refused(self, server: Server) -> None:
        one, other = server.enrol()["Authorization"], server.enrol()["Authorization"]
        mixed = one.rpartition("_")[0] + "_" + other.rpartition("_")[2]
        answer = server.client.get(f"/v1/sets/{'0' * 64}", headers={"Authorization": mixed})
        assert answer.status_code == 401

    def test_a_revoked_device_is_told_so(self, server: Server) -> None:
        headers = server.enrol()
        with server.services.database.write() as session:
            row = session.get(EnrolledDevice, device_of(headers))
            assert row is not None
            row.state = "revoked"
        answer = server.client.get(f"/v1/sets/{'0' * 64}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "device-revoked")


class TestLeaving:
    def test_the_credential_is_good_for_nothing_afterwards(self, server: Server) -> None:
        headers = server.enrol()
        assert server.client.delete("/v1/devices/me", headers=headers).status_code == 204
        assert server.client.delete("/v1/devices/me", headers=headers).status_code == 401

    def test_what_was_kept_of_the_device_goes(self, server: Server) -> None:
        headers, other = server.enrol(), server.enrol()
        device = device_of(headers)
        states = ("assigned", "accepted", "merged", "expired")
        with server.services.database.write() as session:
            row = session.get(EnrolledDevice, device)
            assert row is not None
            row.facts = {"engine": "executorch"}
            for number, state in enumerate(states):
                session.add(_round(number))
                session.flush()
                session.add(_assignment(number, device, state))
            session.add(_assignment(3, device_of(other), "assigned"))
        server.client.delete("/v1/devices/me", headers=headers)
        row = _device(server, device)
        assert (row.state, row.facts, row.group, row.enrolled, row.seen) == ("left", {}, "", 0.0, 0.0)
        with server.services.database.read() as session:
            found = {a.round: a for a in session.scalars(select(Assignment).where(Assignment.round < 3))}
            kept = [(n, found[n].state, found[n].device is not None) for n in range(3)]
            others = session.scalars(select(Assignment).where(Assignment.device == device_of(other))).one()
        # an update that waits for its merge keeps its place in the order
        assert kept == [(0, "declined", False), (1, "accepted", True), (2, "merged", False)]
        assert others.state == "assigned"


def _round(number: int) -> Round:
    return Round(
        number=number,
        state="open",
        base=0,
        plan={},
        seed=0,
        sets={},
        target=1,
        minimum=1,
        opened=0.0,
        lease_until=0.0,
    )


def _assignment(number: int, device: str, state: str) -> Assignment:
    return Assignment(
        id=credentials.new_id(), round=number, device=device, state=state, base=0, assigned=0.0, expires=0.0
    )


class Verifier:
    """Accepts the verdict ``good:<challenge>``."""

    kinds = ("test-integrity",)

    def verify(self, kind: str, challenge: str, verdict: str) -> bool:
        if verdict == "broken":
            raise RuntimeError("the platform does not answer")
        return verdict == f"good:{challenge}"


class TestAttestation:
    @pytest.fixture
    def settings(self, settings: ServerSettings) -> ServerSettings:
        return settings.model_copy(update={"attestation": f"{__name__}:Verifier"})

    def _enrol(self, server: Server, challenge: str, verdict: str, kind: str = "test-integrity") -> Any:
        return _post(server, attestation={"kind": kind, "challenge": challenge, "verdict": verdict})

    def _challenge(self, server: Server) -> str:
        return str(server.client.post("/v1/challenges").json()["challenge"])

    def test_a_good_verdict_enrols(self, server: Server) -> None:
        challenge = self._challenge(server)
        answer = self._enrol(server, challenge, f"good:{challenge}")
        assert answer.status_code == 201
        assert _device(server, answer.json()["device"]).attestation == "test-integrity"
        assert server.client.get("/v1/federation").json()["attestation"] == ["test-integrity"]

    def test_without_one_nobody_enrols(self, server: Server) -> None:
        assert _post(server).json()["code"] == "attestation-failed"

    def test_a_bad_verdict_is_refused(self, server: Server) -> None:
        assert self._enrol(server, self._challenge(server), "bad").json()["code"] == "attestation-failed"

    def test_another_kind_is_refused(self, server: Server) -> None:
        challenge = self._challenge(server)
        answer = self._enrol(server, challenge, f"good:{challenge}", kind="other")
        assert answer.json()["code"] == "attestation-failed"

    def test_a_challenge_is_good_once(self, server: Server) -> None:
        challenge = self._challenge(server)
        assert self._enrol(server, challenge, f"good:{challenge}").status_code == 201
        assert "used before" in self._enrol(server, challenge, f"good:{challenge}").json()["detail"]

    def test_a_challenge_is_used_up_by_a_bad_verdict_too(self, server: Server) -> None:
        challenge = self._challenge(server)
        self._enrol(server, challenge, "bad")
        assert "used before" in self._enrol(server, challenge, f"good:{challenge}").json()["detail"]

    def test_a_challenge_expires(self, server: Server) -> None:
        challenge = self._challenge(server)
        server.clock.pass_time(CHALLENGE_S + 1)
        assert "expired" in self._enrol(server, challenge, f"good:{challenge}").json()["detail"]

    @pytest.mark.parametrize("challenge", ["x", "A" * 75, "é", "=" * 8])
    def test_a_made_up_challenge_is_refused(self, server: Server, challenge: str) -> None:
        assert "not from this" in self._enrol(server, challenge, f"good:{challenge}").json()["detail"]

    def test_a_changed_challenge_is_refused(self, server: Server) -> None:
        challenge = self._challenge(server)
        changed = ("B" if challenge[0] == "A" else "A") + challenge[1:]
        assert "not from this" in self._enrol(server, changed, f"good:{changed}").json()["detail"]

    def test_a_verifier_that_fails_refuses(self, server: Server) -> None:
        answer = self._enrol(server, self._challenge(server), "broken")
        assert answer.status_code == 503
        assert "platform does not answer" not in answer.text
        with server.services.database.read() as session:
            assert session.scalars(select(EnrolledDevice)).all() == []

    def test_used_challenges_are_forgotten_once_they_expired(self, server: Server) -> None:
        from pfl_server.storage.models import UsedChallenge

        self._enrol(server, self._challenge(server), "bad")
        server.clock.pass_time(CHALLENGE_S + 1)
        self._enrol(server, self._challenge(server), "bad")
        with server.services.database.read() as session:
            assert len(session.scalars(select(UsedChallenge)).all()) == 1


def test_no_challenges_without_attestation(server: Server) -> None:
    assert server.client.post("/v1/challenges").json()["code"] == "enrolment-refused"


def test_a_verifier_that_is_none_is_refused() -> None:
    from pfl_mobile.errors import ConfigError, UserCodeError

    for name in ("collections:OrderedDict", "os:system", "os:sep", "os:no_such_name", "builtins:iter"):
        with pytest.raises(ConfigError, match="no attestation verifier") as found:
            load_verifier(name)
        assert found.value.__cause__ is None
    with pytest.raises(UserCodeError, match="cannot be loaded"):
        load_verifier("no_such_module_here:x")
    with pytest.raises(ConfigError, match="does not name"):
        load_verifier("nothing")


def test_an_enrolment_without_a_federation_is_unavailable(server: Server) -> None:
    bundle = server.bundle_id
    with server.services.database.write() as session:
        row = session.get(Federation, 1)
        session.delete(row)
    assert server.client.post("/v1/devices", json={"bundle": bundle}).status_code == 503
    assert server.client.get("/v1/federation").status_code == 503

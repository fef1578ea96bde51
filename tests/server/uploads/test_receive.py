"""Uploads: what is accepted, gone on with, repeated and refused."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import zlib
from itertools import pairwise
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_mobile.local.state import ModelId
from pfl_mobile.protocol.update_file import canonical
from pfl_server.problems import PROBLEMS
from pfl_server.storage.models import Device, Refusal, Round
from pfl_server.uploads import partial_file as part
from pfl_server.uploads.partial_file import BUFFER, Busy, Scan, find_part, open_part, remove_parts
from tests.server.testbed import federation_config, layout, small, update_of

BIG = (("a", "shared", (BUFFER // 2,)), ("b", "shared", (3,)))


@pytest.fixture
def f(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as found:
        yield found


def code(answer):
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert PROBLEMS[answer.json()["code"]].status == answer.status_code
    return answer.json()["code"]


def progress(f, task, **headers):
    answer = f.client.head(task["update_url"], headers={**f.devices[0], **headers})
    assert answer.status_code == 200
    return {k: answer.headers.get(k) for k in ("Upload-Offset", "Upload-Length", "Upload-Complete")}


def test_an_update_is_accepted_once(f):
    task = f.task(f.devices[0])
    data = update_of(task, 0.5, examples=12, steps=7, clipped=True)
    answer = f.put(f.devices[0], task, data)
    assert answer.status_code == 200
    state = {"status": "accepted", "task": task["id"], "received": len(data)}
    assert answer.json() == state | {"duplicate": False}
    mine = f.assignment(task)
    assert (mine.state, mine.examples, mine.steps, mine.clipped) == ("accepted", 12, 7, True)
    assert mine.norm == pytest.approx(0.5 * 10**0.5)
    assert f.services.blobs.get(mine.blob) == data
    assert progress(f, task) == {
        "Upload-Offset": str(len(data)),
        "Upload-Length": str(len(data)),
        "Upload-Complete": "?1",
    }
    assert f.put(f.devices[0], task, data).json() == state | {"duplicate": True}
    assert list(f.services.blobs.keys("updates/")) == [mine.blob]


def test_the_same_key_with_other_content_is_refused(f):
    task = f.task(f.devices[0])
    f.put(f.devices[0], task, update_of(task, 0.5))
    assert code(f.put(f.devices[0], task, update_of(task, 0.6))) == "idempotency-key-reused"
    assert code(f.put(f.devices[0], task, update_of(task, 0.5)[:-4])) == "idempotency-key-reused"
    assert code(f.put(f.devices[0], task, update_of(task), Idempotency_Key="other")) == "already-uploaded"
    assert f.assignment(task).norm == pytest.approx(0.5 * 10**0.5)


def test_an_update_that_was_merged_is_not_merged_again(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data)
    for device in f.devices[1:]:
        f.send(device)
    f.step()
    assert f.put(f.devices[0], task, data).json()["duplicate"] is True
    assert code(f.put(f.devices[0], task, data, Idempotency_Key="other")) == "already-uploaded"
    assert f.round().state == "open"
    assert f.version().number == 1


def test_a_part_is_kept_and_gone_on_with(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    assert progress(f, task) == {"Upload-Offset": "0", "Upload-Length": None, "Upload-Complete": "?0"}
    total = {"Upload_Length": str(len(data))}
    answer = f.put(f.devices[0], task, data[:100], **total)
    assert (answer.status_code, answer.json()["status"], answer.json()["received"]) == (202, "partial", 100)
    assert progress(f, task) == {
        "Upload-Offset": "100",
        "Upload-Length": str(len(data)),
        "Upload-Complete": "?0",
    }
    for key, there in (("key", "100"), ("other", "0")):
        assert progress(f, task, **{"Idempotency-Key": key})["Upload-Offset"] == there
    answer = f.put(f.devices[0], task, data[101:], Upload_Offset="101", **total)
    assert code(answer) == "offset-mismatch"
    assert answer.headers["Upload-Offset"] == "100"
    answer = f.put(f.devices[0], task, data[100:], Upload_Offset="100")
    assert answer.json()["status"] == "accepted"
    assert f.services.blobs.get(f.assignment(task).blob) == data
    assert find_part(f.services.blobs.scratch, task["id"]) is None


def test_an_upload_that_is_all_there_is_finished_by_an_empty_request(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:-1], Upload_Length=str(len(data)))
    answer = f.put(f.devices[0], task, data[-1:], Upload_Offset=str(len(data) - 1))
    assert answer.json()["status"] == "accepted"


def test_an_upload_begins_anew_from_offset_0_or_under_another_key(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:100], Upload_Length=str(len(data)))
    f.put(f.devices[0], task, data[:40], Upload_Length=str(len(data)))
    assert progress(f, task)["Upload-Offset"] == "40"
    f.put(f.devices[0], task, data[:60], Upload_Length=str(len(data)), Idempotency_Key="new")
    assert progress(f, task, **{"Idempotency-Key": "key"})["Upload-Offset"] == "0"
    assert f.put(f.devices[0], task, data).json()["status"] == "accepted"


def test_only_one_request_writes_an_upload(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    with open_part(f.services.blobs.scratch, task["id"], "key", len(data)):
        answer = f.put(f.devices[0], task, data)
    assert code(answer) == "unavailable"
    assert answer.headers["Retry-After"]
    assert f.put(f.devices[0], task, data).status_code == 200


def change_head(data, **changes):
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    head = json.loads(header["__metadata__"]["head"]) | changes
    header["__metadata__"]["head"] = json.dumps(head)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def unwritable(task, value):
    """An update whose last value is replaced by one that the writer refuses."""
    return update_of(task)[:-4] + struct.pack("<f", value)


REFUSED = {
    "NaN": (lambda t: unwritable(t, float("nan")), "update-not-finite"),
    "infinity": (lambda t: unwritable(t, float("inf")), "update-not-finite"),
    "a huge norm": (lambda t: update_of(t, 1e30), "update-too-large"),
    "the largest numbers": (lambda t: update_of(t, 3.4e38), "update-too-large"),
    "another round": (lambda t: update_of(t, round=7), "update-of-another-task"),
    "another version": (lambda t: update_of(t, version=7), "update-of-another-task"),
    "another task": (lambda t: update_of(t, task="ab" * 16), "update-of-another-task"),
    "no examples": (lambda t: update_of(t, examples=0), "bad-report"),
    "reports that nobody asked for": (lambda t: update_of(t, reports={"loss": 1.0}), "bad-report"),
    "a head with a field too many": (lambda t: change_head(update_of(t), user="ann"), "malformed-update"),
    "no update file": (lambda t: b"x" * len(update_of(t)), "wrong-tensors"),
    "a tensor is missing": (lambda t: update_of({**t, "layout": t["layout"][:1]}), "wrong-tensors"),
    "another shape": (
        lambda t: update_of({**t, "layout": [{"name": "a", "shape": [2, 2]}, *t["layout"][1:]]}),
        "wrong-tensors",
    ),
    "another name": (
        lambda t: update_of({**t, "layout": [{"name": "A", "shape": [4]}, *t["layout"][1:]]}),
        "wrong-tensors",
    ),
    "float64": (lambda t: update_of(t).replace(b'"F32"', b'"F64"', 1), "wrong-tensors"),
    "cut short": (lambda t: update_of(t)[:-4], "wrong-tensors"),
    "empty": (lambda t: b"", "wrong-tensors"),
    "a value too many": (lambda t: update_of(t) + b"\0" * 4, "wrong-tensors"),
}


@pytest.mark.parametrize(("make", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_and_counted_and_reaches_nothing(f, make, expected):
    task = f.task(f.devices[0])
    answer = f.put(f.devices[0], task, make(task))
    assert code(answer) == expected
    mine = f.assignment(task)
    assert (mine.state, mine.reason, mine.blob) == ("refused", expected, None)
    assert list(f.services.blobs.keys("updates/")) == []
    assert find_part(f.services.blobs.scratch, task["id"]) is None
    f.services.refusals.flush()
    with f.services.database.read() as session:
        assert session.get_one(Refusal, (0, expected)).count == 1
    assert code(f.put(f.devices[0], task, update_of(task))) == "task-expired"
    assert f.model().round == 0


def test_a_body_that_is_too_long_is_refused_before_it_is_read(f):
    task = f.task(f.devices[0])
    data = update_of(task) + b"\0" * f.services.runtime.max_update_bytes
    assert code(f.put(f.devices[0], task, data)) == "body-too-large"


def test_requests_without_what_is_needed_are_refused(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    put = f.client.put
    assert code(put(task["update_url"], content=data, headers=f.devices[0])) == "idempotency-key-required"
    chunked = put(task["update_url"], content=iter([data]), headers={**f.devices[0], "Idempotency-Key": "k"})
    assert code(chunked) == "length-required"
    assert code(f.put(f.devices[0], task, data, Upload_Length="3")) == "bad-request"
    assert code(f.put(f.devices[0], task, data, Upload_Offset="-1")) == "invalid-request"
    assert code(f.put(f.devices[0], task, data, Idempotency_Key="a b")) == "invalid-request"
    assert code(put(task["update_url"], content=data, headers={"Idempotency-Key": "k"})) == "unauthorized"
    assert f.assignment(task).state == "assigned"
    chunked = put(
        task["update_url"],
        content=iter([data[:50], data[50:]]),
        headers={**f.devices[0], "Idempotency-Key": "k", "Upload-Length": str(len(data))},
    )
    assert chunked.json()["status"] == "accepted"


def test_anothers_task_is_unknown(f):
    task = f.task(f.devices[0])
    for url in (task["update_url"], f"/v1/tasks/{'0' * 32}/update"):
        answer = f.client.put(url, content=update_of(task), headers={**f.devices[1], "Idempotency-Key": "k"})
        assert code(answer) == "unknown-task"
        assert f.client.head(url, headers=f.devices[1]).status_code == 404


def test_late_updates_are_refused(f):
    tasks = [f.task(device) for device in f.devices]
    for device, task in zip(f.devices[:2], tasks, strict=False):
        f.put(device, task, update_of(task))
    f.clock.pass_time(101)
    f.step()
    assert f.round(0).state == "merged"
    assert code(f.put(f.devices[2], tasks[2], update_of(tasks[2]))) == "task-expired"


def test_an_update_in_a_round_that_closed_meanwhile_is_refused(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:-4], Upload_Length=str(len(data)))
    with f.services.database.write() as session:
        session.get_one(Round, 0).state = "closing"
    assert code(f.put(f.devices[0], task, data[-4:], Upload_Offset=str(len(data) - 4))) == "round-closed"


def test_a_revoked_device_is_refused(f):
    task = f.task(f.devices[0])
    with f.services.database.write() as session:
        session.query(Device).update({"state": "revoked"})
    assert code(f.put(f.devices[0], task, update_of(task))) == "device-revoked"


# -- streaming


def test_a_large_update_is_streamed(tmp_path):
    with small(tmp_path, federation_config(), devices=1, tensors=BIG) as f:
        task = f.task(f.devices[0])
        values = np.random.default_rng(0).standard_normal(layout(task).size).astype(np.float32)
        data = update_of(task, values)
        assert len(data) > 2 * BUFFER
        assert f.put(f.devices[0], task, data).status_code == 200
        assert f.assignment(task).norm == pytest.approx(
            float(np.linalg.norm(values.astype(np.float64))), rel=2e-6
        )


FORM = canonical({"a": (13,), "b": (2, 2)})


def scanned(data, cuts=()):
    found = Scan(FORM, len(data))
    edges = sorted(min(cut, len(data)) for cut in cuts)
    for first, last in zip([0, *edges], [*edges, len(data)], strict=True):
        found.add(memoryview(data)[first:last])
    return found


def update_of_form(values):
    task = {"id": "ab" * 16, "round": 1, "version": 0, "reports": []}
    return update_of(task | {"layout": [{"name": n, "shape": s} for n, s in FORM.shapes.items()]}, values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=8), st.integers(0, 2**32 - 1), st.floats(0, 1e30))
def test_a_scan_does_not_depend_on_how_the_bytes_are_cut(cuts, seed, scale):
    values = (np.random.default_rng(seed).standard_normal(FORM.size) * scale).astype(np.float32)
    data = update_of_form(values)
    found = scanned(data, cuts)
    assert found.head is not None
    assert found.head.task == "ab" * 16
    assert found.norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=2e-6)
    assert found.digest == f"{zlib.crc32(data):08x}"


@given(st.integers(0, 2000), st.floats(-40, 38), st.integers(0, 2**32 - 1))
def test_sums_of_squares_are_right_to_a_millionth(size, exponent, seed):
    values = (
        (np.random.default_rng(seed).standard_normal(size) * 10**exponent)
        .clip(-3e38, 3e38)
        .astype(np.float32)
    )
    exact = float(np.square(values.astype(np.float64)).sum())
    assert part.sum_of_squares(values) == pytest.approx(exact, rel=2e-6, abs=1e-37)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scan_finds_what_is_not_finite(value):
    data = update_of_form(1.0)
    assert np.isnan(scanned(data[:-4] + struct.pack("<f", value)).norm)


BIG_FORM = canonical({"a": (BUFFER // 2,)})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 3 * BUFFER), max_size=6),
    st.lists(st.integers(0, 3 * BUFFER), max_size=2),
    st.booleans(),
)
def test_a_part_holds_what_was_written_however_it_came(tmp_path, monkeypatch, cuts, breaks, direct):
    """Pieces of any size, connections that break anywhere, with and without direct writes."""
    monkeypatch.setattr(part, "_DIRECT", part._DIRECT if direct else None)
    form = BIG_FORM
    task = {
        "id": "cd" * 16,
        "round": 1,
        "version": 0,
        "reports": [],
        "layout": [{"name": "a", "shape": form.shapes["a"]}],
    }
    values = np.random.default_rng(len(cuts)).standard_normal(form.size).astype(np.float32)
    data = update_of(task, values)
    remove_parts(tmp_path, task["id"])
    stops = [*sorted({b for b in breaks if b < len(data)}), len(data)]
    at = 0
    for stop in stops:
        with open_part(tmp_path, task["id"], "key", len(data)) as found:
            assert found.size == at
            scan = Scan(form, len(data))
            found.rescan(scan)
            edges = [at, *sorted(c for c in cuts if at < c < stop), stop]
            found.write([data[a:b] for a, b in pairwise(edges)], scan)
            at = stop
            assert found.size == at
            if at < len(data):
                found.flush()
                continue
            found.finish(scan)
            with found.whole() as path:
                assert path.read_bytes() == data
            assert (scan.seen, scan.digest) == (len(data), f"{zlib.crc32(data):08x}")
            assert scan.norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=2e-6)


def test_what_arrived_before_the_connection_broke_is_kept(live_server, federated_bundle):
    """A real connection that ends in the middle of a body."""
    manifest = federated_bundle.manifest
    model = ModelId.of(manifest.name, manifest.version, manifest.tensors, manifest.frozen_sha256)
    bundle = {"name": model.name, "version": model.version, "fingerprint": model.fingerprint}
    with httpx.Client(base_url=live_server) as client:
        made = client.post("/v1/devices", json={"bundle": bundle}).json()
        device = {"Authorization": f"Bearer {made['credential']}"}
        for _ in range(100):
            found = client.post("/v1/check-in", json={"bundle": bundle, "examples": 9}, headers=device).json()
            if found["status"] == "task":
                break
            time.sleep(0.05)
        task = found["task"]
        data = update_of(task)
        where = urlsplit(live_server)
        with socket.create_connection((where.hostname, where.port)) as raw:
            head = f"PUT {task['update_url']} HTTP/1.1\r\nHost: x\r\nAuthorization: {device['Authorization']}\r\n"
            head += f"Idempotency-Key: k\r\nContent-Length: {len(data)}\r\n\r\n"
            raw.sendall(head.encode() + data[: len(data) // 2])
            time.sleep(0.2)
        for _ in range(100):
            there = int(client.head(task["update_url"], headers=device).headers["Upload-Offset"])
            if there:
                break
            time.sleep(0.05)
        assert there == len(data) // 2
        answer = client.put(
            task["update_url"],
            content=data[there:],
            headers={**device, "Idempotency-Key": "k", "Upload-Offset": str(there)},
        )
        assert answer.json()["status"] == "accepted"


def test_uploads_at_once_are_each_accepted_once(tmp_path):
    config = federation_config(rounds={"cohort": 30, "over_selection": 1.0})
    with small(tmp_path, config, devices=30) as f:
        tasks = [f.task(device) for device in f.devices]
        answers: list[int] = []

        def send(device, task):
            answers.append(f.put(device, task, update_of(task)).status_code)

        pairs = list(zip(f.devices, tasks, strict=True)) * 2
        threads = [threading.Thread(target=send, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 503}
        f.step()
        assert f.round(0).state == "merged"
        assert f.round(0).summary["updates"] == 30


@pytest.fixture
def scan():
    return Scan(FORM, len(update_of_form(1.0)))


def test_a_part_that_another_upload_took_away_is_not_used(tmp_path, scan):
    with open_part(tmp_path, "ab" * 16, "one", 100) as found:
        found.write([b"x" * 10], scan)
        with open_part(tmp_path, "ab" * 16, "two", 100), pytest.raises(Busy), found.whole():
            pass
        # A file of the same name is not the one that was looked at.
        with open_part(tmp_path, "ab" * 16, "one", 100), pytest.raises(Busy), found.whole():
            pass


def test_what_is_looked_at_is_what_is_stored(tmp_path, scan):
    with open_part(tmp_path, "ab" * 16, "one", 100) as found:
        found.write([b"honest"], scan)
        found.flush()
        with found.whole() as path:
            with open_part(tmp_path, "ab" * 16, "one", 100) as other:
                other.write([b"attack"], scan)
                other.flush()
            assert path.read_bytes() == b"honest"
        assert not path.exists()


@pytest.mark.parametrize("head", [{"examples": 2**31}, {"steps": 2**40}])
def test_numbers_that_no_device_has_are_refused(f, head):
    task = f.task(f.devices[0])
    assert code(f.put(f.devices[0], task, update_of(task, **head))) == "bad-report"

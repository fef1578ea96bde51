"""The path of an update as a whole: accepted once, gone on with, or refused."""

from __future__ import annotations

import json
import struct

import pytest

from pfl_server.storage.models import Refusal
from pfl_server.uploads.partial_file import find_part
from tests.server.testbed import code, federation_config, progress, small, update_of


@pytest.fixture
def f(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as found:
        yield found


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


def test_anothers_task_is_unknown(f):
    task = f.task(f.devices[0])
    for url in (task["update_url"], f"/v1/tasks/{'0' * 32}/update"):
        answer = f.client.put(url, content=update_of(task), headers={**f.devices[1], "Idempotency-Key": "k"})
        assert code(answer) == "unknown-task"
        assert f.client.head(url, headers=f.devices[1]).status_code == 404

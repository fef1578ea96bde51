"""A device's folder: the credential, downloaded values, and the queue of finished updates."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import sys

import numpy as np
import pytest

from pfl_mobile.device.store import DeviceFolder, Membership, Pending
from pfl_mobile.errors import DeviceFolderError
from pfl_mobile.files.tensors import tensors_to_bytes
from pfl_mobile.local.state import ModelId
from pfl_mobile.protocol.bodies import Enrolled
from tests.device.conftest import ID

PRIVACY = {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0}


@pytest.fixture
def folder(tmp_path):
    with DeviceFolder(tmp_path / "device", ID) as found:
        yield found


def entry(task="t", number=0, update=b"update"):
    sha256 = hashlib.sha256(update).hexdigest()
    return Pending(task, number, "/v1/x", "key", 9.0, sha256, len(update), PRIVACY, ("loss",), copies=("c",))


def enrolled():
    return Enrolled.model_validate({"device": "d" * 32, "credential": "pfl_device_x"})


def test_the_credential_is_kept_for_the_owner_alone_and_forgotten(tmp_path):
    with DeviceFolder(tmp_path / "d", ID) as folder:
        assert folder.membership is None
        folder.join("https://a", enrolled())
    path = tmp_path / "d" / "device.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with DeviceFolder(tmp_path / "d", ID) as folder:
        assert folder.membership == Membership("https://a", "d" * 32, "pfl_device_x")
        folder.forget()
    assert not path.exists()
    with DeviceFolder(tmp_path / "d", ID) as folder:
        assert folder.membership is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema 2"),
        ({"device": None, "more": 1}, "damaged"),
        ({"model": 3}, "damaged"),
    ],
)
def test_a_membership_that_cannot_be_read_is_refused_and_the_lock_is_given_back(tmp_path, change, says):
    with DeviceFolder(tmp_path / "d", ID) as folder:
        folder.join("https://a", enrolled())
    path = tmp_path / "d" / "device.json"
    good = path.read_text()
    path.write_text(json.dumps(json.loads(good) | change))
    with pytest.raises(DeviceFolderError, match=says):
        DeviceFolder(tmp_path / "d", ID)
    path.write_text(good)
    DeviceFolder(tmp_path / "d", ID).close()


#: Locks a file as Java does, says whether it could, and holds it until its input ends.
AS_JAVA = """
import fcntl, sys
with open(sys.argv[1], "ab") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("held")
    print("taken", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="locks of open files are of Linux")
def test_a_process_of_another_language_is_kept_out_and_keeps_out(tmp_path):
    command = [sys.executable, "-c", AS_JAVA, str(tmp_path / "d" / "lock")]
    with DeviceFolder(tmp_path / "d", ID):
        assert subprocess.run(command, capture_output=True, text=True).stderr.strip() == "held"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(DeviceFolderError, match="in use"):
            DeviceFolder(tmp_path / "d", ID)
        other.stdin.close()
        assert other.wait(20) == 0
    DeviceFolder(tmp_path / "d", ID).close()


def test_a_folder_of_another_model_or_in_use_is_refused(tmp_path):
    with DeviceFolder(tmp_path / "d", ID) as folder:
        folder.join("https://a", enrolled())
        with pytest.raises(DeviceFolderError, match="in use"):
            DeviceFolder(tmp_path / "d", ID)
    with pytest.raises(DeviceFolderError, match="its tensors differ"):
        DeviceFolder(tmp_path / "d", ModelId(ID.name, ID.version, "0" * 64))


def test_a_damaged_download_counts_as_not_there(folder):
    data = tensors_to_bytes({"w": np.ones(3, np.float32)})
    sha256 = hashlib.sha256(data).hexdigest()
    assert folder.load_set(sha256) is None
    folder.set_path(sha256).write_bytes(data)
    np.testing.assert_array_equal(folder.load_set(sha256)["w"], np.ones(3))
    folder.set_path(sha256).write_bytes(data[:-1] + b"\x01")
    assert folder.load_set(sha256) is None
    assert not folder.set_path(sha256).exists()


def test_only_values_that_are_named_are_kept_with_what_has_arrived_of_them(folder):
    for name in ("a", "a.part", "b", "b.part"):
        folder.set_path(name).write_bytes(b"")
    folder.keep_sets(["a"])
    assert sorted(p.name for p in folder.sets.iterdir()) == ["a", "a.part"]


def test_the_queue_gives_back_what_was_put_in_oldest_round_first(folder):
    later, first = entry("later", 2), entry("first", 1)
    for pending in (later, first):
        folder.put(pending, b"update")
    assert folder.pending() == ([first, later], [])
    changed = folder.change(first, uploaded=True)
    assert folder.pending()[0][0] == changed
    folder.remove("first")
    folder.remove("never there")
    assert folder.pending() == ([later], [])
    assert not folder.update_path("first").exists()


def test_damaged_entries_are_named_and_the_others_stay(folder):
    for name in ("good", "changed", "gone", "uploaded", "schema", "junk"):
        folder.put(entry(name), b"update")
    folder.update_path("changed").write_bytes(b"updatf")
    folder.update_path("gone").unlink()
    folder.change(entry("uploaded"), uploaded=True)
    folder.update_path("uploaded").unlink()  # what the aggregator has is needed no more
    schema = folder.queue / "schema.json"
    schema.write_text(schema.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    (folder.queue / "junk.json").write_text("{")
    found, damaged = folder.pending()
    assert ([p.task for p in found], damaged) == (
        ["good", "uploaded"],
        ["changed", "gone", "junk", "schema"],
    )


def test_an_update_that_no_entry_names_is_removed(folder):
    folder.put(entry("named"), b"update")
    folder.update_path("of a killed process").write_bytes(b"x")
    folder.pending()
    assert [p.stem for p in folder.queue.glob("*.update")] == ["named"]

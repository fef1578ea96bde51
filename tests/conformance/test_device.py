"""A device's folder in the vectors is one that Python goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.local.state import ModelId

FOUND = json.loads((Path(__file__).parents[2] / "conformance" / "device.json").read_text())["folder"]


def test_a_folder_is_opened_and_holds_what_was_kept(tmp_path):
    (tmp_path / "queue").mkdir()
    for name, text in FOUND["files"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / FOUND["update"]["name"]).write_bytes(bytes.fromhex(FOUND["update"]["hex"]))
    with DeviceFolder(tmp_path, ModelId(*FOUND["model"]), FOUND["user"]) as folder:
        assert vars(folder.membership) == FOUND["membership"]
        (pending,), damaged = folder.pending()
        found = {**vars(pending), "reports": list(pending.reports), "copies": list(pending.copies)}
        assert (found, damaged) == (FOUND["pending"], [])
        assert folder.sent.updates == FOUND["sent"]["updates"]

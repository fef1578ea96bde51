"""``pfl state``."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from pfl_mobile.cli.bundles import open_bundle
from pfl_mobile.device.store import DeviceFolder, Pending
from pfl_mobile.local.evaluation import personal_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_the_state_is_kept_shown_reverted_exported_and_erased(
    pfl: Run, tiny_bundle: Path, messages: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    pfl("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--state", state)
    shown = pfl("state", "show", state, "--bundle", tiny_bundle, "--json").json
    assert (shown["current"], shown["serves"], shown["slots"]) == (1, 1, 1)
    adapter = pfl("peft", tiny_bundle, "--state", state, "--out", tmp_path / "adapter", "--json").json
    assert adapter["left_out"] == ["memory", "slots"]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert pfl("state", "revert", state, "--bundle", tiny_bundle, "--json").json["current"] == 0
    assert (
        pfl("peft", tiny_bundle, "--state", state, "--out", tmp_path / "b", "--json").error["type"]
        == "StateError"
    )
    again = pfl("state", "revert", state, "--bundle", tiny_bundle, "--to", 1)
    assert "version 1 serves" in again.out
    assert pfl("state", "revert", state, "--bundle", tiny_bundle, "--to", 9).code == 2
    assert len(pfl("state", "reset", state, "--bundle", tiny_bundle, "--json").json["versions"]) == 1
    assert pfl("state", "reset", state, "--bundle", tiny_bundle, "--erase", "--json").json["versions"] == []
    assert pfl("state", "show", tmp_path / "none", "--bundle", tiny_bundle).code == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", [("revert",), ("reset",)])
def test_what_a_device_was_about_to_let_serve_does_not_undo_a_revert(
    pfl: Run, tiny_bundle: Path, messages: Path, tmp_path: Path, command: tuple[str]
) -> None:
    device = tmp_path / "device"
    state = device / "personal"
    pfl("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--state", state)
    with open_bundle(tiny_bundle, None) as bundle:
        model = personal_store(bundle, state).model
    privacy = {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0}
    digest = hashlib.sha256(b"update").hexdigest()
    waiting = Pending("t", 1, "/v1/x", "key", 9.0, digest, 6, privacy, (), adopts=1, instead_of=0)
    with DeviceFolder(device, model) as folder:
        folder.put(waiting, b"update")
    assert pfl("state", *command, state, "--bundle", tiny_bundle, "--json").json["current"] == 0
    with DeviceFolder(device, model) as folder:
        assert folder.pending()[0][0].adopts is None


def test_a_forgotten_word_leaves_every_version_and_is_not_learned_again(
    pfl: Run, tiny_bundle: Path, tiny_arrays: Path, messages: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    learn = ("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--state", state, "--json")
    assert pfl(*learn).json["slots"] == 1
    pfl(*learn)
    assert any(b"zorp" in p.read_bytes() for p in state.iterdir())
    done = pfl("state", "forget", state, "Zorp", "--bundle", tiny_bundle, "--json").json
    assert (done["words"], done["slots"], done["blocked"], done["trained"]) == (["zorp"], 1, 1, True)
    assert done["entries"] > 0
    assert not any(b"zorp" in p.read_bytes() for p in state.iterdir())
    assert pfl(*learn).code == 0
    shown = pfl("state", "show", state, "--bundle", tiny_bundle, "--json").json
    assert shown["slots"] == 0
    assert not any(v["problem"] for v in shown["versions"])
    assert not any(b"zorp" in p.read_bytes() for p in state.iterdir())
    ran = pfl("state", "forget", state, "see", "--retrain", "--bundle", tiny_bundle)
    assert ran.code == 0
    assert "your messages still hold them" in ran.out
    for words, kind in ((("two words",), "ConfigError"), (("",), "ConfigError")):
        assert pfl("state", "forget", state, *words, "--bundle", tiny_bundle, "--json").error["type"] == kind
    ran = pfl("state", "forget", state, "zorp", "--bundle", tiny_arrays, "--json")
    assert (ran.code, ran.error["type"]) == (2, "ConfigError")


def test_a_state_of_another_user_is_refused(
    pfl: Run, tiny_bundle: Path, messages: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    pfl("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--state", state)
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    ran = pfl("personalize", tiny_bundle, "--data", messages, "--user", "bob", "--state", state, "--json")
    assert (ran.code, ran.error["type"]) == (2, "StateError")
    assert "'ann'" in ran.error["message"]
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_a_state_of_another_bundle_is_refused(
    pfl: Run, tiny_bundle: Path, tiny_arrays: Path, messages: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    pfl("personalize", tiny_bundle, "--data", messages, "--user", "ann", "--state", state)
    ran = pfl("state", "show", state, "--bundle", tiny_arrays, "--json")
    assert (ran.code, ran.error["type"]) == (2, "StateError")

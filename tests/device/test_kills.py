from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pfl_mobile.files.sealed import digest
from pfl_mobile.local.state import PersonalStateStore
from tests.device.conftest import ID, device
from tests.device.fake_server import PLAN, Fake, serving

ROUNDS = 8


def federation():
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint}, rounds=ROUNDS)
    fake.plan = PLAN.model_copy(update={"guard": PLAN.guard.model_copy(update={"tolerance": 1e9})})
    return fake


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_device_killed_at_random_moments_does_what_an_undisturbed_one_does(tmp_path, seed):
    """Every round is trained from the state that the one before left, and every update is accepted once."""
    usual = federation()
    with serving(usual) as address, device(tmp_path / "usual", address) as found:
        found.run()
    killed = federation()
    with serving(killed) as address:
        command = [
            sys.executable,
            "-m",
            "tests.device.kill_loop",
            address,
            str(tmp_path / "killed"),
            str(seed),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] >= 5
    assert [t["round"] for t in killed.accepted] == list(range(ROUNDS))
    assert len(killed.tasks) == ROUNDS
    for one, other in zip(usual.accepted, killed.accepted, strict=True):
        expected, got = (f.update_of(t)[1]["head.weight"] for f, t in ((usual, one), (killed, other)))
        assert np.array_equal(expected, got), f"round {one['round']} was trained from another state"
    states = [PersonalStateStore(tmp_path / n / "personal", ID).load().state for n in ("usual", "killed")]
    assert digest(states[0].tensors) == digest(states[1].tensors)
    assert list((tmp_path / "killed" / "queue").iterdir()) == []

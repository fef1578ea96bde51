from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_the_last_good_state(tmp_path):
    """Kills at random moments of training, checkpointing and saving: every state on the way is exactly
    the one that an undisturbed device has.
    """
    command = [sys.executable, "-m", "tests.local.kill_loop", str(tmp_path / "state"), "30", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["kills"] == 30
    assert summary["adopted"] > 0
    assert summary["resumed"] > 0

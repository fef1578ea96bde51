"""A short run of each fuzzer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.fuzz.mutate import SEEDS

#: Of a run, by the clock.
SECONDS = 10 if SEEDS else 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_parser_of_updates_raises_nothing_but_its_own_errors(tmp_path):
    # Linux counts the memory of the process that started it as the fuzzer's: single allocations are bounded instead
    limits = [f"-max_total_time={SECONDS}", "-rss_limit_mb=0", "-malloc_limit_mb=256"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.update_file", *limits, "-seed=1", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

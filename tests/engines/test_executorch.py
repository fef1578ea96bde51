"""The threads of ExecuTorch's runtime, which all sessions of a process share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from pfl_mobile.engines.compare import golden_check
from pfl_mobile.errors import EngineError

pytestmark = pytest.mark.slow

_COUNT = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
from pfl_mobile.bundle import Bundle
from pfl_mobile.engines import open_session
from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count as count
with Bundle.open(sys.argv[1]) as bundle, open_session(bundle, "executorch", trusted=True) as session:
    print(count())
"""


def threads() -> int:
    from executorch.extension.pybindings import portable_lib

    return int(portable_lib._threadpool_get_thread_count())


def test_threads_are_as_asked_for_while_sessions_are_open(tiny_bundle_android: Path) -> None:
    with Bundle.open(tiny_bundle_android) as bundle:
        with open_session(bundle, "executorch", threads=1, trusted=True) as first:
            assert threads() == 1
            with (
                open_session(bundle, "executorch", threads=1, trusted=True),
                open_session(bundle, "executorch", trusted=True),
            ):
                assert threads() == 1
            with pytest.raises(EngineError, match="have 1 threads, this one wants 3"):
                open_session(bundle, "executorch", threads=3, trusted=True)
            assert golden_check(bundle, first).ok
        with open_session(bundle, "executorch", threads=3, trusted=True) as second:
            assert threads() == 3
            assert golden_check(bundle, second).ok


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to processors")
def test_there_is_no_thread_more_than_processors_that_may_be_used(tiny_bundle_android: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _COUNT, tiny_bundle_android, "1"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split()[-1] == "1"

"""Which tests are slow: a pytest plugin (`make times`) that writes `slow.txt` after a run of all tests.

A test is slow where its cases take more than ``SLOW_S`` each on average, with their set-up. `make quick` leaves these
out.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: Seconds.
SLOW_S = 0.03
LIST = Path(__file__).with_name("slow.txt")

_took: dict[str, float] = defaultdict(float)
_cases: dict[str, int] = defaultdict(int)


def function_of(nodeid: str) -> str:
    """A test without its parameters: ``tests/a/test_b.py::Class::test_c``."""
    return nodeid.split("[", 1)[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what each test took; in the process that the others report to."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    name = function_of(report.nodeid)
    _took[name] += report.duration
    _cases[name] += report.when == "call"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the list; a run that was stopped or failed says nothing of the tests that did not run."""
    if "PYTEST_XDIST_WORKER" in os.environ or session.testsfailed or session.shouldstop:
        return
    slow = sorted(name for name, seconds in _took.items() if seconds > SLOW_S * max(1, _cases[name]))
    LIST.write_text("".join(f"{name}\n" for name in slow))

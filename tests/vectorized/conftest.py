"""A traced step that many tests look at."""

from __future__ import annotations

import pytest

from pfl_mobile.vectorized.compiled import Graph, trace_step
from tests.simulation.alone import classifier


@pytest.fixture(scope="module")
def graph() -> Graph:
    return trace_step(*classifier())

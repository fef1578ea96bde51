"""Constants of forms: tables and matrices that depend on shapes alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def outside_traces() -> Iterator[None]:
    """Compute now: what is made in here is a constant of the trace, and its values can be looked at."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.no_grad():
        yield

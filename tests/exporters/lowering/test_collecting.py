"""Garbage is looked for when it is told to, and as before at the end."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from pfl_exporters.lowering import collecting


class Circle:
    def __init__(self) -> None:
        self.me = self


def dropped() -> weakref.ref[Circle]:
    return weakref.ref(Circle())


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    gc.unfreeze()  # what was there before any test (see tests/conftest.py)
    yield
    assert gc.isenabled()
    assert not gc.get_freeze_count()


def test_only_what_is_new_is_given_back_when_told() -> None:
    gc.collect()
    with collecting.never():
        old = dropped()
    with collecting.when_told():
        new = dropped()
        [[] for _ in range(100_000)]
        assert new() is not None
        assert not gc.isenabled()
        collecting.among_new(collecting.LARGE - 1)
        assert new() is not None
        collecting.among_new(collecting.LARGE)
        assert new() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_who_looks_for_none_or_froze_objects_keeps_it_so() -> None:
    gc.disable()
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collecting.when_told(), collecting.when_told():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() > frozen // 2  # a few were dropped
    finally:
        gc.unfreeze()
        gc.enable()


def test_an_error_leaves_all_as_it_was() -> None:
    with pytest.raises(KeyError), collecting.when_told():
        raise KeyError

"""A file that grows and is shared."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from pfl_mobile.errors import StorageFullError
from pfl_mobile.simulation import shared
from pfl_mobile.simulation.shared import SharedFile, mapped


def test_it_grows_and_old_views_stay_valid():
    file = SharedFile()
    assert (file.size, len(file.bytes())) == (0, 0)
    file.reserve(10)
    before = file.bytes()
    before[:3] = [1, 2, 3]
    size = file.size
    file.reserve(size + 1)
    assert file.size >= 2 * size, "in doublings"
    assert file.bytes()[:3].tolist() == [1, 2, 3]
    before[0] = 9
    assert file.bytes()[0] == 9
    now = file.size
    file.reserve(5)
    assert file.size == now
    file.close()
    file.close()


def test_who_maps_it_too_sees_what_is_written():
    file = SharedFile()
    file.reserve(100)
    other = mapped(file.fd, file.size)
    other[7] = 5
    assert file.bytes()[7] == 5
    file.close()
    assert other[7] == 5, "the memory goes with the last view"


def test_a_file_with_a_name_is_as_long_as_it_was(tmp_path):
    one = SharedFile(tmp_path / "states")
    one.reserve(4)
    one.bytes()[0] = 7
    size = one.size
    one.close()
    other = SharedFile(tmp_path / "states")
    assert (other.size, other.bytes()[0]) == (size, 7)
    assert other.key != one.key
    other.close()


def test_a_full_disk_is_told_and_takes_nothing(tmp_path, monkeypatch):
    file = SharedFile(tmp_path / "states")
    file.reserve(4)
    size = file.size

    def full(fd, offset, length):
        os.ftruncate(fd, offset + length // 2)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(shared.os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageFullError):
        file.reserve(size + 1)
    assert (tmp_path / "states").stat().st_size == file.size == size
    file.close()


def test_nothing_is_mapped_of_an_empty_file():
    assert np.array_equal(mapped(-1, 0), np.zeros(0, np.uint8))

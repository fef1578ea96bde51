"""Names of files in a bundle: the same on every system, inside the folder."""

from __future__ import annotations

import pytest

from pfl_mobile.bundle.paths import check_distinct, check_path
from pfl_mobile.errors import UnsafePathError


@pytest.mark.parametrize("path", ["a", "model.pte", "engines/torch/model_1.pt2", "A-b+c.d_e", "a" * 100])
def test_safe_paths_are_given_back(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "a/", "a//b", "..", "../a", "a/../b", "./a", ".hidden", "a/.b", "-a", "+a"),
        *("a\\b", "C:a", "a b", "a\n", "a\x00", "\u00e9", "a" * 101, "/".join("a" * 9), "a.", "a./b"),
        *("con", "CON.txt", "a/nul", "com1", "lpt9.x.y", "Aux"),
    ],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        check_path(path)


@pytest.mark.parametrize("path", ["conx", "console.txt", "com10", "a.con"])
def test_names_that_only_look_like_devices_are_safe(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("paths", [["a", "A"], ["a/b", "A/b"], ["a", "a/b"], ["a/b/c", "A/B"]])
def test_paths_that_are_one_file_somewhere_are_refused(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(UnsafePathError):
            check_distinct(order)


def test_different_files_may_share_a_folder() -> None:
    check_distinct(["a/b", "a/c", "ab", "d/a"])

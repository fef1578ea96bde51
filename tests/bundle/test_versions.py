"""Versions of runtimes, of which packages have many forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from pfl_mobile.bundle.versions import is_older, plain, release

numbers = st.lists(st.integers(0, 999_999), min_size=1, max_size=4).map(lambda n: ".".join(map(str, n)))


@given(numbers, numbers)
def test_versions_are_ordered_as_packages_are(one: str, other: str) -> None:
    assert is_older(one, other) == (Version(one) < Version(other))


@given(numbers, st.sampled_from(["", "+cpu", "+cu132", "rc1", ".post1", ".dev3"]))
def test_what_a_build_puts_behind_the_numbers_does_not_count(version: str, behind: str) -> None:
    assert plain(version + behind) == version
    assert not is_older(version + behind, version)


@pytest.mark.parametrize("version", ["", "main", "v1.2", "1234567.0"])
def test_a_version_without_numbers_is_not_older(version: str) -> None:
    assert plain(version) is None
    assert not is_older(version, "1.0")


def test_a_release_is_the_first_two_numbers() -> None:
    assert release("1.5.1+cpu") == "1.5"
    for version in ("main", "2"):
        with pytest.raises(ValueError, match="major and a minor"):
            release(version)

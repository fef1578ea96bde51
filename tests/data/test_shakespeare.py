"""The plays of Shakespeare, by role."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_mobile import data
from pfl_mobile.data import shakespeare
from tests.data.conftest import Pin


def test_shakespeare_roles_speak_their_lines(shakespeare_tgz: Path, pin: Pin) -> None:
    pin("shakespeare", shakespeare_tgz)
    found = data.get("shakespeare", shakespeare_tgz)
    assert {u: found.texts(u) for u in found.users} == {
        "henry_iv_part_1/HAM": ["To be, or not to be,   that", "Is the question.", "And so it goes."],
        "henry_iv_part_1/KING HENRY": ["Well said."],
    }


@pytest.mark.parametrize("line", ["ACT I.", "Enter the King.", "SCENE II", "how now?", "A b c"])
def test_lines_that_name_no_speaker(line: str) -> None:
    assert shakespeare.speaker(line) is None

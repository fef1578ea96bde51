"""Forgotten words: known again, never spelled out, and never taken for none."""

from __future__ import annotations

import json

import pytest

from pfl_mobile.errors import StateError
from pfl_mobile.text.blocked import BlockList


def test_words_are_known_again_and_others_are_not() -> None:
    blocked = BlockList().plus(["zorp", "\ud800"])
    assert "zorp" in blocked
    assert "\ud800" in blocked
    assert len(blocked) == 2
    assert "zor" not in blocked
    assert 3 not in blocked
    assert not BlockList()
    assert blocked.plus(["zorp"]) == blocked


def test_parts_between_apostrophes_are_hidden_too() -> None:
    blocked = BlockList().plus(["zorp"])
    assert [blocked.hides(word) for word in ("zorp", "zorp's", "l'zorp", "zorps")] == [
        True,
        True,
        True,
        False,
    ]


def test_the_file_spells_no_word_and_two_lists_share_no_digest() -> None:
    one, other = (BlockList().plus(["zorp"]) for _ in range(2))
    assert b"zorp" not in one.to_json()
    assert not one.digests & other.digests
    assert "zorp" not in repr(one)
    assert one.key.hex() not in repr(one)


def test_a_file_gives_the_list_back() -> None:
    blocked = BlockList().plus(["zorp", "blarg"])
    assert BlockList.from_json(blocked.to_json(), "it") == blocked


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"key": "00"},
        {"key": 1},
        {"words": ["zorp"]},
        {"words": ["A" * 64]},
        {"words": [1]},
        {"words": None},
        {"schema_version": "1"},
        {"schema_version": 2},
    ],
)
def test_a_damaged_list_is_never_taken_for_empty(change: dict[str, object]) -> None:
    raw = json.loads(BlockList().plus(["zorp"]).to_json()) | change
    with pytest.raises(StateError):
        BlockList.from_json(json.dumps(raw).encode(), "it")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_what_is_no_list_is_refused(data: bytes) -> None:
    with pytest.raises(StateError, match="it is damaged"):
        BlockList.from_json(data, "it")

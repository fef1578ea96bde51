from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Message, UserText, split, split_texts
from pfl_mobile.errors import ConfigError, DataError


def made(sizes: dict[str, int]) -> UserText:
    return UserText.collect(
        "d", [(u, Message(f"{u} {i}", float(i))) for u, n in sizes.items() for i in range(n)]
    )


def test_the_first_80_percent_are_history() -> None:
    parts = split(made({"a": 100, "b": 100, "c": 5}), test_users=1, min_messages=100)
    (user,) = parts.test
    assert parts.test[user].history == [f"{user} {i}" for i in range(80)]
    assert parts.test[user].held_out == [f"{user} {i}" for i in range(80, 100)]


@given(st.integers(2, 300))
def test_history_is_four_fifths_rounded_down_and_nothing_is_lost(n: int) -> None:
    texts = [str(i) for i in range(n)]
    part = split_texts(texts)
    assert part.history + part.held_out == texts
    assert len(part.history) == max(1, n * 4 // 5)


@given(st.integers(0, 5))
def test_test_users_are_apart_deterministic_and_have_enough_messages(seed: int) -> None:
    dataset = made({f"u{i}": 4 + i for i in range(12)})
    parts = split(dataset, test_users=4, min_messages=8, seed=seed)
    assert parts == split(dataset, test_users=4, min_messages=8, seed=seed)
    assert len(parts.test) == 4
    assert not set(parts.test) & set(parts.train.users)
    assert set(parts.test) | set(parts.train.users) == set(dataset.users)
    assert all(len(dataset.users[u]) >= 8 for u in parts.test)


def test_users_with_few_messages_do_not_change_the_choice() -> None:
    few = split(made({"a": 9, "b": 9, "c": 9}), test_users=1, min_messages=9)
    more = split(made({"0": 1, "a": 9, "b": 9, "c": 9, "d": 2}), test_users=1, min_messages=9)
    assert set(few.test) == set(more.test)


def test_the_choice_of_seed_0_never_changes() -> None:
    parts = split(made({f"u{i}": 3 for i in range(10)}), test_users=3, min_messages=3, seed=0)
    assert sorted(parts.test) == ["u3", "u7", "u8"]


def test_own_files_hold_out_at_most_half_of_the_users() -> None:
    assert len(split(made({f"u{i}": 3 for i in range(10)}), min_messages=3).test) == 5


def test_too_few_users_is_an_error_that_counts_them() -> None:
    with pytest.raises(DataError, match="1 of its 2 users have 5 messages"):
        split(made({"a": 5, "b": 4}), test_users=2, min_messages=5)
    with pytest.raises(DataError, match="left to train on"):
        split(made({"a": 5}), test_users=1, min_messages=5)
    with pytest.raises(ConfigError):
        split(made({"a": 5}), test_users=0)
    with pytest.raises(ConfigError):
        split_texts(["a"], 1.0)


def test_too_few_messages_name_what_was_left_out_and_the_option() -> None:
    lines = [(f"u{i}", Message("again")) for i in range(4) for _ in range(120)]
    assert len(split(UserText.collect("d", lines)).test) == 2
    with pytest.raises(
        DataError, match="the largest has 1; left out: 476 repeated by the same user"
    ) as error:
        split(UserText.collect("d", lines, unique=True))
    assert "min_messages" in error.value.mend

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Message, UserText
from pfl_mobile.errors import UnknownNameError

lines = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.builds(Message, st.text("xy ", max_size=3), st.none() | st.floats(0, 100)),
    )
)


@given(lines, st.booleans())
def test_collected_users_have_stripped_texts_in_time_order(
    pairs: list[tuple[str | None, Message]], unique: bool
) -> None:
    found = UserText.collect("d", pairs, unique=unique)
    for user, messages in found.users.items():
        texts = [m.text for m in messages]
        given_ = [m.text.strip() for u, m in pairs if u == user and m.text.strip()]
        assert texts
        assert sorted(texts) == sorted(set(given_) if unique else given_)
        times = [-1.0 if m.time is None else m.time for m in messages]
        assert times == sorted(times)
    assert list(found.users) == sorted(found.users)


@given(lines, st.booleans(), st.none() | st.integers(1, 4))
def test_every_message_is_there_or_counted_as_left_out(
    pairs: list[tuple[str | None, Message]], unique: bool, most: int | None
) -> None:
    found = UserText.collect("d", pairs, unique=unique).newest(most)
    left = found.counts_left_out()
    assert left is not None
    assert found.messages + sum(left.values()) == len(pairs)
    for user in found.users:
        own = sum(u == user for u, _ in pairs)
        assert len(found.users[user]) + sum((found.counts_left_out(user) or {}).values()) == own
    assert ("repeated" not in left) or unique
    assert all(count > 0 for count in left.values())
    some = found.select(list(found.users)[:1])
    assert set(some.left_out or {}) <= set(found.left_out or {})
    assert all(key.user in {None, *some.users} for key in some.left_out or {})


def test_of_two_equal_texts_the_earlier_stays() -> None:
    pairs = [("a", Message("hi", 5.0)), ("a", Message("yo", 4.0)), ("a", Message("hi", 3.0))]
    found = UserText.collect("d", pairs, unique=True)
    assert found.users["a"] == (Message("hi", 3.0), Message("yo", 4.0))
    assert found.words_left_out() == "left out: 1 repeated by the same user"
    assert [m.text for m in UserText.collect("d", pairs).users["a"]] == ["hi", "yo", "hi"]


def test_messages_without_time_keep_their_order() -> None:
    found = UserText.collect("d", [("a", Message(t)) for t in ["c", "a", "b"]])
    assert found.texts("a") == ["c", "a", "b"]


def test_an_unknown_user_is_named_with_near_ones() -> None:
    found = UserText.collect("d", [("anna", Message("hi"))])
    with pytest.raises(UnknownNameError, match="anna"):
        found.texts("ann")
    with pytest.raises(UnknownNameError, match="bob"):
        found.select(["bob"])


def test_summary_counts() -> None:
    found = UserText.collect("d", [("a", Message(str(i))) for i in range(100)] + [("b", Message("x"))])
    assert found.summary() == {"dataset": "d", "users": 2, "messages": 101, "users_with_100_messages": 1}
    assert len(list(found.select(["b"]).all_texts())) == 1

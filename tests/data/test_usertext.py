from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Message, UserText
from pfl_mobile.errors import UnknownNameError

lines = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.builds(Message, st.text("xy ", max_size=3), st.none() | st.floats(0, 100)),
    )
)


@given(lines)
def test_collected_users_have_distinct_stripped_texts_in_time_order(pairs: list[tuple[str, Message]]) -> None:
    found = UserText.collect("d", pairs)
    for user, messages in found.users.items():
        texts = [m.text for m in messages]
        assert texts
        assert len(set(texts)) == len(texts)
        assert set(texts) == {m.text.strip() for u, m in pairs if u == user} - {""}
        times = [-1.0 if m.time is None else m.time for m in messages]
        assert times == sorted(times)
    assert list(found.users) == sorted(found.users)


def test_of_two_equal_texts_the_earlier_stays() -> None:
    found = UserText.collect(
        "d", [("a", Message("hi", 5.0)), ("a", Message("yo", 4.0)), ("a", Message("hi", 3.0))]
    )
    assert found.users["a"] == (Message("hi", 3.0), Message("yo", 4.0))


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

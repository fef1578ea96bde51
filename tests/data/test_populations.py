"""Users of a study: what they have, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Message, UserText
from pfl_mobile.data.populations import (
    ArrayPopulation,
    GeneratedPopulation,
    Population,
    TextPopulation,
    groups_from,
)
from pfl_mobile.errors import ConfigError, DataError, PflError, UnknownNameError
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer

Rows = dict[str, np.ndarray]


def rows(count: int, first: int = 0) -> Rows:
    x = np.arange(first, first + count, dtype=np.float64)
    return {"x": np.stack([x, -x], 1), "labels": x.astype(np.int32), "weight": np.ones(count)}


def two(**changes: Rows) -> ArrayPopulation:
    return ArrayPopulation.of("toy", {"ann": rows(10), "bob": rows(4), **changes})


def generate(index: int) -> tuple[Rows, Rows]:
    one = {n: v.astype(np.float32) for n, v in rows(index + 2).items()}
    return one, {n: v[:1] for n, v in one.items()}


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), test=st.floats(0, 0.99))
def test_every_row_is_in_one_part_and_the_newest_are_tested(sizes: list[int], test: float) -> None:
    users = {f"u{i}": rows(n) for i, n in enumerate(sizes)}
    found = ArrayPopulation.of("toy", users, test)
    for i, n in enumerate(sizes):
        older, newer = found.train(i)["labels"], found.test(i)["labels"]
        assert [*older, *newer] == list(range(n))
        assert len(older) >= 1
        assert (len(newer) > 0) == (test > 0 and n > 1)


def test_arrays_become_float32_and_int64() -> None:
    assert {n: str(v.dtype) for n, v in two().train(0).items()} == {
        "x": "float32",
        "labels": "int64",
        "weight": "float32",
    }


def test_ids_and_length() -> None:
    found = two()
    assert len(found) == 2
    assert [found.id(i) for i in range(2)] == ["ann", "bob"]
    with pytest.raises(UnknownNameError, match=r"no user 2[\s\S]*0\.\.1"):
        found.train(2)
    with pytest.raises(UnknownNameError):
        found.id(-1)


def nan() -> Rows:
    wrong = rows(5)
    wrong["x"][4, 1] = np.nan
    return wrong


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (nan(), "'x' of the test rows of user 'eve' of toy has NaN"),
        ({**rows(5), "weight": np.array([1, 1, np.inf, 1, 1])}, "weight of the .*'eve'"),
        ({"x": np.ones((3, 2)), "labels": np.ones(3, int)}, "'eve' of toy have no 'weight'"),
        ({**rows(5), "labels": np.arange(4)}, "'eve' of toy have 5 weights but 'labels'"),
        (rows(0), "'eve' of toy has no training example"),
        ({**rows(5), "weight": np.zeros(5)}, "'eve' of toy has no training example"),
        (
            {**rows(5), "x": np.ones((5, 3))},
            "'x' of .* user 'eve' .* \\[rows, 3\\]; the first user's is float32 \\[rows, 2\\]",
        ),
        ({"x": rows(3)["x"], "weight": np.ones(3)}, "'labels' of the training .* is missing"),
        ({**rows(3), "more": np.ones(3)}, "'more' .* float32 .*first user's is missing"),
        ({**rows(2), "labels": np.array(["a", "b"])}, "'labels' of user 'eve' of toy has dtype"),
    ],
)
def test_wrong_rows_name_the_user_and_the_array(wrong: Rows, says: str) -> None:
    with pytest.raises(DataError, match=says):
        two(eve=wrong)


def test_one_user_or_none_is_no_study() -> None:
    with pytest.raises(DataError, match="1 user\n"):
        ArrayPopulation.of("toy", {"ann": rows(3)})
    with pytest.raises(DataError, match="0 users"):
        ArrayPopulation.of("toy", {})
    with pytest.raises(DataError, match="1 user\n"):
        GeneratedPopulation("toy", 1, generate)
    with pytest.raises(ConfigError, match="fraction is 1"):
        ArrayPopulation.of("toy", {"ann": rows(3), "bob": rows(3)}, test=1)


def test_a_generated_user_is_always_the_same_and_checked() -> None:
    found = GeneratedPopulation("toy", 1_000_000, generate)
    assert found.id(999_999) == "user-999999"
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(found.train(7)["x"], again.train(7)["x"])
    assert len(found.test(7)["x"]) == 1
    with pytest.raises(UnknownNameError):
        found.train(1_000_000)
    bad = GeneratedPopulation("toy", 3, lambda _: (nan(), rows(1)))
    with pytest.raises(DataError, match="'x' of the training rows of user 'user-2'"):
        bad.train(2)
    assert len(bad.test(2)["x"]) == 1


def text(split: float = 0.25) -> TextPopulation:
    words = [f"w{i}" for i in range(12)]
    users = {u: tuple(Message(f"{w} {u}", float(i)) for i, w in enumerate(words)) for u in ("ann", "bob")}
    data = UserText("chat", users)
    encoder = TextEncoder(WordTokenizer.train(data.all_texts(), 12), 8, 12)
    return TextPopulation(data, encoder, split)


def test_text_is_split_between_messages() -> None:
    found = text()
    assert (found.name, len(found), found.id(1)) == ("chat", 2, "bob")
    assert len(found.train(0)["tokens"]) == 9
    assert len(found.test(0)["tokens"]) == 3
    expected = found.encoder.encode(found.data.texts("bob")[9:])
    for name, value in found.test(1).items():
        np.testing.assert_array_equal(value, expected[name])


def test_words_outside_the_vocabulary_count_only_in_the_test() -> None:
    found = text()
    for index in range(2):
        train, test = found.train(index), found.test(index)
        unknown = found.encoder.id("never seen")
        assert train["weight"][train["labels"] == unknown].sum() == 0
        assert test["weight"][test["labels"] == unknown].sum() > 0


def test_encoded_text_is_kept_for_a_few_users_and_not_pickled() -> None:
    found = text()
    assert found.train(0)["tokens"] is found.train(0)["tokens"]
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(found.train(1)["tokens"], again.train(1)["tokens"])


GROUPS: list[tuple[dict[str, list[int]], str]] = [
    ({"a": [0]}, "1 of 2 users are in no group: 'bob'"),
    ({"a": [0, 1], "b": [1]}, "1 of 2 users are in more than one group: 'bob'"),
    ({"a": [0, 1], "b": []}, "'b' has no users"),
    ({"a": [0, 1, 2]}, "'a' has user 2"),
]


@pytest.mark.parametrize(("groups", "says"), GROUPS)
def test_groups_must_cover_every_user_once(groups: dict[str, list[int]], says: str) -> None:
    make: list[Callable[[], Population]] = [
        lambda: ArrayPopulation.of("toy", {"ann": rows(3), "bob": rows(3)}, groups=groups),
        lambda: TextPopulation(text().data, text().encoder, groups=groups),
    ]
    for one in make:
        with pytest.raises(ConfigError, match=says):
            one()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("g.json", '{"bob": "old", "ann": "new"}'),
        ("g.csv", "group,user,other\nold,bob,1\nnew,ann,2\n"),
        ("g.CSV", "\ufeffuser,group\r\nbob,old\r\nann,new\r\n"),
    ],
)
def test_groups_come_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = groups_from(path, two())
    assert {n: v.tolist() for n, v in found.items()} == {"new": [0], "old": [1]}
    assert two().groups == {}


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("g.json", '{"ann": "a"}', ConfigError, "1 of 2 users are in no group: 'bob'"),
        ("g.json", '{"ann": "a", "bop": "a"}', UnknownNameError, r"no user 'bop'[\s\S]*'bob'"),
        ("g.json", '{"ann": "a", "bob": "a", "ann": "b"}', ConfigError, "'ann' is in 'a' and in 'b'"),
        ("g.json", '{"ann": "a", "bob": null}', DataError, "'bob' has the group None"),
        ("g.json", '["ann"]', DataError, "not a JSON object"),
        ("g.json", "{}", DataError, "names no user"),
        ("g.json", "{", DataError, "is not JSON"),
        ("g.csv", "name,group\nann,a\n", DataError, "no columns user and group"),
        ("g.csv", "user,group\nann\n", DataError, "'ann' has the group None"),
        ("g.txt", "", DataError, "neither in .json nor in .csv"),
    ],
)
def test_a_wrong_groups_file_is_named(
    tmp_path: Path, name: str, content: str, error: type[PflError], says: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(error, match=says):
        groups_from(path, two())


def test_a_missing_groups_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        groups_from(tmp_path / "none.csv", two())


def test_a_text_population_says_what_was_left_out() -> None:
    import torch

    from pfl_mobile.study import Machine, Study

    lines = [(u, Message(t)) for u in "ab" for t in ("see you", "see you", " ", "ok", "then")]
    text = UserText.collect("t", lines).newest(3)
    encoder = TextEncoder(WordTokenizer.train(list(text.all_texts()), 20), 4, 20)
    found = TextPopulation(text, encoder)
    assert found.left_out == {"empty": 2, "older": 2}
    study = Study(
        lambda: torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Linear(4, 20)),
        found,
        machine=Machine(processes=0),
    )
    assert study.effective()["left_out"] == {"empty": 2, "older": 2}

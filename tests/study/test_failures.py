"""Failures of users in evaluations, recommendations and comparisons: named, and above a share no verdict."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.errors import CohortFailedError, DataError, TrainingFailedError, UnusableRowsError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.strategies import Local
from pfl_mobile.study import Machine, Study
from pfl_mobile.study.compare import compare
from pfl_mobile.study.evaluation import MOST_FAILED, Trainings
from pfl_mobile.study.recommend import recommend
from tests.study.evaluations import evaluation, noisy
from tests.study.small import Net, population

USERS = 10


def failed(count):
    return {f"bad{i}": "NonFiniteError: the loss is not finite" for i in range(count)}


@pytest.mark.parametrize("harm", [-3.0, 0.0, 3.0])
@pytest.mark.parametrize(("well", "bad"), [(8, 22), (20, 6), (79, 20), (80, 20), (30, 1)])
def test_above_a_share_of_failures_there_is_no_verdict_and_below_they_are_named(well, bad, harm):
    found = recommend(replace(noisy(harm, well), failed=failed(bad)))
    assert (found.verdict == "training failed") == (bad > MOST_FAILED * (well + bad))
    said = json.loads(json.dumps(found.to_json()))
    assert said["failed"] == failed(bad)
    assert any("bad0 (NonFiniteError)" in sentence for sentence in said["why"])
    if found.verdict == "training failed":
        assert (said["expected_gain"], said["appeal"], said["users"]) == (None, None, 0)
        assert not any("certain" in sentence for sentence in said["why"])


@pytest.mark.parametrize("own", [True, False])
def test_failed_training_comes_before_too_few_users_and_no_own_models(own):
    found = replace(evaluation([1.0], [2.0]), failed=failed(3), has_own=own)
    assert recommend(found).verdict == "training failed"


def test_trainings_that_failed_in_rounds_count_although_all_users_were_measured():
    sometimes = {"u0": "NonFiniteError: lost (in 9 of its 10 rounds)"}
    few = replace(noisy(3.0, 30), trainings=Trainings(100, {}, sometimes, 9))
    assert recommend(few).verdict == "personalize"
    assert any("u0 (NonFiniteError)" in sentence for sentence in recommend(few).why)
    many = replace(few, trainings=Trainings(100, {}, sometimes, 60))
    assert recommend(many).verdict == "training failed"
    assert many.to_json()["failed_in_rounds"] == sometimes


@pytest.mark.parametrize(("worse", "verdict"), [(16, "training failed"), (14, "personalize")])
def test_training_that_made_most_users_worse_on_their_own_examples_is_no_evidence(worse, verdict):
    losses = np.ones((30, 2))
    losses[:worse, 1] = 7.0
    found = replace(noisy(3.0, 30), losses=losses)
    assert recommend(found).verdict == verdict
    assert (found.no_verdict is None) == (verdict == "personalize")
    assert replace(found, has_own=False).no_verdict is None  # one model for all is not everybody's


@pytest.mark.parametrize(("largest", "verdict"), [(9.0, "personalize"), (11.0, "training failed")])
def test_training_that_went_through_huge_losses_has_diverged_wherever_it_ended(largest, verdict):
    found = replace(noisy(3.0, 30), losses=np.ones((30, 2)), trainings=Trainings(9, largest_loss=largest))
    assert recommend(found).verdict == verdict


def test_two_evaluations_are_compared_user_by_user():
    one = replace(evaluation([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]), users=["a", "b", "c"])
    other = replace(
        evaluation([10.0, 20.0], [10.0, 20.0]), users=["c", "a"], failed={"b": "NonFiniteError: lost"}
    )
    found = one.against(other)
    assert list(zip(found.users, found.shared, found.personal, strict=True)) == [("a", 20, 4), ("c", 10, 6)]
    assert found.failed == {"b": "NonFiniteError: lost"}
    assert found.beside.startswith("of the one model for all, 1 of 3 users failed")
    assert "of the one model for all" in found.no_verdict or "1 of 3 users failed" in found.no_verdict


def test_an_evaluation_of_failures_alone_is_an_error_that_names_them():
    with pytest.raises(TrainingFailedError, match=r"all 2 users failed \(2 NonFiniteError\): bad0") as caught:
        evaluation([], [], failed=failed(2))
    assert caught.value.failed == failed(2)
    assert caught.value.exit_code == 1


# -- whole studies


def spoiled(index):
    """What can be wrong with one user: a function of its (train, test)."""

    def raises(_train, _test):
        raise FileNotFoundError(2, "No such file or directory", "u4.npz")

    def changed(name, value):
        return lambda train, test: ({**train, name: value(train[name])}, test)

    return {
        "raises": raises,
        "no dict": lambda train, test: ([1, 2], test),
        "lists": changed("x", lambda x: x.tolist()),
        "one number": changed("x", lambda _: np.float32(1)),
        "objects": changed("x", lambda x: x.astype(object)),
        "float64": changed("x", lambda x: x.astype(np.float64)),
        "wide": changed("x", lambda x: np.ones((len(x), 9), np.float32)),
        "nan": changed(
            "x", lambda x: np.where(np.arange(len(x))[:, None] == 2, np.nan, x).astype(np.float32)
        ),
        "label 7": changed("labels", lambda y: np.where(np.arange(len(y)) == 3, 7, y)),
        "label -1": changed("labels", lambda y: np.where(np.arange(len(y)) == 3, -1, y)),
        "short": changed("labels", lambda y: y[:-1]),
        "nothing": lambda train, test: tuple({n: v[:0] for n, v in part.items()} for part in (train, test)),
        "test alone": lambda train, test: ({n: v[:0] for n, v in train.items()}, test),
        "no weight": changed("weight", np.zeros_like),
        "negative weight": changed("weight", lambda w: -w),
        "test nan": lambda train, test: (train, {**test, "x": test["x"] * np.float32(np.nan)}),
        "test wide": lambda train, test: (train, {**test, "x": np.ones((len(test["x"]), 9), np.float32)}),
        "test label": lambda train, test: (train, {**test, "labels": test["labels"] + 9}),
    }[index]


class Some:
    """Users of whom some are spoiled; not frozen, so that it is a population of one's own."""

    name, groups = "some", {}

    def __init__(self, spoil, bad):
        self.spoil, self.bad, self.parts = spoil, bad, population(USERS).parts

    def __len__(self):
        return USERS

    def id(self, index):
        return f"u{index}"

    def _pair(self, index):
        train, test = ({n: v.copy() for n, v in part.items()} for part in self.parts[index])
        return self.spoil(train, test) if index in self.bad else (train, test)

    def train(self, index):
        return self._pair(index)[0]

    def test(self, index):
        return self._pair(index)[1]


LOCAL = Local(epochs=1, optimizer=Sgd(lr=0.3))
FIXED = {"batch": 8, "machine": Machine(processes=0, lanes=2), "local": LOCAL}
KINDS = (
    "raises", "no dict", "lists", "one number", "objects", "float64", "wide", "nan", "label 7", "label -1",
    "short", "nothing", "test alone", "no weight", "negative weight", "test nan", "test wide", "test label",
)  # fmt: skip


@pytest.mark.parametrize("bad", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_user_is_skipped_counted_and_named_with_a_verdict_on_the_others(kind, bad):
    strategy = "fedavg" if bad else "ditto"
    with Study(Net, Some(spoiled(kind), {bad}), strategy, **FIXED).run(rounds=2) as result:
        found, advice = result.evaluate(), result.recommend()
    assert list(found.failed) == [f"u{bad}"]
    assert found.failed[f"u{bad}"].split(":")[0].endswith("Error")
    assert f"u{bad}" not in found.users
    assert len(found.users) == USERS - 1
    assert np.isfinite(found.shared).all()
    assert np.isfinite(found.personal).all()
    assert found.no_verdict is None
    assert advice.verdict not in ("training failed", "not enough data")
    assert any(f"u{bad} (" in sentence for sentence in advice.why)
    expected = 0 if kind.startswith("test ") and kind != "test alone" else 2
    assert result.costs()["failures"] == expected


def test_one_user_with_a_single_row_trains_and_has_no_test():
    first = lambda train, test: ({n: v[:1] for n, v in train.items()}, {n: v[:0] for n, v in test.items()})  # noqa: E731
    with Study(Net, Some(first, {3}), "ditto", **FIXED).run(rounds=1) as result:
        found = result.evaluate()
    assert (list(found.untested), dict(found.failed)) == (["u3"], {})


@pytest.mark.parametrize("kind", ["raises", "nan", "label 7", "nothing"])
def test_many_bad_users_leave_no_verdict(kind):
    with Study(Net, Some(spoiled(kind), {1, 4, 7}), "ditto", **FIXED).run(rounds=1) as result:
        assert set(result.evaluate().failed) == {"u1", "u4", "u7"}
        advice = result.recommend()
    assert advice.verdict == "training failed"
    assert "3 of 10 users failed" in advice.why[0]
    assert set(advice.failed) == {"u1", "u4", "u7"}


def test_code_that_fails_for_everybody_is_a_typed_error_before_anything_runs():
    with pytest.raises(
        UnusableRowsError, match=r"user 'u0' of some: .*FileNotFoundError.*test_failures.py, line"
    ):
        Study(Net, Some(spoiled("raises"), set(range(USERS))), **FIXED)
    with pytest.raises(DataError, match="float64"):
        Study(Net, Some(spoiled("float64"), set(range(USERS))), **FIXED)


def test_code_that_fails_for_everybody_later_is_a_typed_error_too():
    data = Some(spoiled("raises"), set())
    one = Study(Net, data, **FIXED)
    data.bad = set(range(USERS))
    with pytest.raises(CohortFailedError, match=r"all 10 devices of round 0 failed .*FileNotFoundError"):
        one.run(rounds=3)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, word):
        return self.head(self.table(word))


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_word_that_the_model_does_not_have_is_one_users_failure(lanes):
    def generate(index):
        draw = np.random.default_rng(index)
        word = draw.integers(0, 9, 20)
        word[3] = 99 if index == 2 else word[3]
        rows = {"word": word, "labels": word % 3, "weight": np.ones(20, np.float32)}
        return {n: v[:15] for n, v in rows.items()}, {n: v[15:] for n, v in rows.items()}

    data = GeneratedPopulation("words", 8, generate)
    settings = FIXED | {"machine": Machine(processes=0, lanes=lanes), "local": None}
    with Study(Words, data, "ditto", **settings).run(rounds=2) as result:
        found = result.evaluate()
    assert list(found.failed) == ["user-2"]
    assert "cannot be trained on its rows: IndexError" in found.failed["user-2"]
    assert found.no_verdict is None


def wild(scale, **settings):
    parts = population(USERS)
    rows = [tuple({**part, "x": part["x"] * np.float32(scale)} for part in pair) for pair in parts.parts]
    return Study(deep, replace(parts, parts=tuple(rows)), **(FIXED | settings))


def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.mark.parametrize("strategy", ["fedper", "fedavg_finetune", "ditto", "fedavg"])
@pytest.mark.parametrize(("lr", "scale"), [(3.0, 1.0), (3.0, 30.0), (1e3, 1.0), (1e3, 30.0), (1e8, 1.0)])
def test_there_is_never_a_verdict_from_diverged_training(strategy, lr, scale):
    given = {"personal": ["4"]} if strategy == "fedper" else {}
    one = wild(scale, strategy=strategy, local=Local(epochs=3, optimizer=Sgd(lr=lr)), **given)
    try:
        with one.run(rounds=3) as result:
            advice = result.recommend()
    except CohortFailedError as error:
        said = [error.message, error.mend]
    else:
        # without models of users' own there is nothing to tell; and one model for all may harm users who differ
        assert advice.verdict == (
            "not measured" if (strategy, lr, scale) == ("fedavg", 3.0, 1.0) else "training failed"
        )
        said = [*advice.why, *(["learning rate"] if advice.verdict == "not measured" else [])]
    assert any("learning rate" in sentence for sentence in said)


def test_result_json_says_who_failed_and_that_there_is_no_verdict(tmp_path):
    with Study(Net, Some(spoiled("nan"), {1, 4, 7}), "ditto", **FIXED).run(rounds=1) as result:
        said = json.loads(result.save(tmp_path).read_text())
    assert set(said["evaluation"]["failed"]) == {"u1", "u4", "u7"}
    assert "3 of 10 users failed" in said["evaluation"]["no_verdict"]
    assert said["recommendation"]["verdict"] == "training failed"
    assert {client for client, _ in said["history"][0]["failed"]} == {1, 4, 7}


def test_a_comparison_names_users_that_failed_and_gives_no_figures_where_training_did():
    found = compare(Study(Net, Some(spoiled("nan"), {4}), **FIXED), ["ditto", "local"], rounds=1)
    rows = {r["strategy"]: r for r in found.rows()}
    assert all(list(r["failed"]) == ["u4"] for r in rows.values())
    columns, cells = found.table()
    assert [line[columns.index("failed users")] for line in cells] == ["1", "1", "1"]
    assert "1 users failed with ditto" in found.markdown()
    assert found.some_failed
    with pytest.raises(TrainingFailedError, match="fedavg with seed 0: 3 of 10 users failed"):
        compare(Study(Net, Some(spoiled("nan"), {1, 4, 7}), **FIXED), ["ditto", "local"], rounds=1)

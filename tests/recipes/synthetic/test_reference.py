"""The reference table: what is run, what is measured, and that it is what the authors' program does."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pfl_mobile.cli.common import run
from pfl_mobile.data import synthetic
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.strategies.state import RoundContext
from pfl_recipes.synthetic import published, reference

USERS, ROUNDS = 4, 5


@pytest.fixture(scope="module")
def small() -> ArrayPopulation:
    """Users with one batch each, so that neither its order nor the cohort is random."""
    drawn = synthetic.build(users=USERS, times=1)
    parts = {}
    for i in range(USERS):
        rows = {n: np.concatenate([v, drawn.test(i)[n]])[:50] for n, v in drawn.train(i).items()}
        parts[drawn.id(i)] = (
            {n: v[: 14 + 2 * i] for n, v in rows.items()},
            {n: v[30:] for n, v in rows.items()},
        )
    return ArrayPopulation.split("small", parts)


def _gradient(w: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = x @ w
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(x)), labels] -= 1
    return np.asarray(x.T @ p / len(x))


class Program:
    """The authors' loop as it reads, in numpy, float64: a bias is a weight of a constant input."""

    def __init__(self, users: ArrayPopulation, seed: int) -> None:
        def rows(part: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            return np.hstack([part["x"], np.ones((len(part["x"]), 1))]).astype(np.float64), part["labels"]

        self.train = [rows(users.train(i)) for i in range(len(users))]
        self.test = [rows(users.test(i)) for i in range(len(users))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = torch.nn.Linear(60, 10)
        self.w = np.vstack([layer.weight.detach().numpy().T, layer.bias.detach().numpy()[None]]).astype(
            np.float64
        )

    def accuracy(self, models: list[np.ndarray]) -> float:
        right = [(np.argmax(x @ w, axis=1) == y) for (x, y), w in zip(self.test, models, strict=True)]
        return 100 * float(np.concatenate(right).mean())

    def mean(self, models: list[np.ndarray]) -> np.ndarray:
        return np.average(models, axis=0, weights=[len(y) for _, y in self.train])

    def fedavg(self) -> dict[str, float]:
        found = {"fedavg": self.accuracy([self.w] * USERS)}
        models = []
        for x, y in self.train:
            w = self.w.copy()
            for _ in range(20):
                w -= 0.02 * _gradient(w, x, y)
            models.append(w)
        self.w = self.mean(models)
        return found

    def per_fedavg(self) -> dict[str, float]:
        adapted = []
        for x, y in self.test:
            w = self.w - 0.02 * _gradient(self.w, x, y)
            adapted.append(w - 0.002 * _gradient(w, x, y))
        found = {"per_fedavg_global": self.accuracy([self.w] * USERS), "per_fedavg": self.accuracy(adapted)}
        adapted = [self.w - 0.02 * _gradient(self.w, x, y) for x, y in self.train]
        found["per_fedavg_train"] = self.accuracy(adapted)
        models = []
        for x, y in self.train:
            w = self.w.copy()
            for _ in range(20):
                w -= 0.002 * _gradient(w - 0.02 * _gradient(w, x, y), x, y)
            models.append(w)
        self.w = self.mean(models)
        return found

    def pfedme(self) -> dict[str, float]:
        found = {"pfedme_global": self.accuracy([self.w] * USERS)}
        models, personal = [], []
        for x, y in self.train:
            w, theta = self.w.copy(), self.w.copy()
            for _ in range(20):
                for _ in range(5):
                    theta = theta - 0.01 * (_gradient(theta, x, y) + 20 * (theta - w) + 0.001 * theta)
                w = w - 20 * 0.01 * (w - theta)
            models.append(w)
            personal.append(theta)
        found |= {"pfedme_personal": self.accuracy(models), "pfedme_theta": self.accuracy(personal)}
        self.w = -self.w + 2 * self.mean(models)
        return found


@pytest.mark.parametrize("name", published.METHODS)
def test_every_figure_is_that_of_the_program(name: str, small: ArrayPopulation) -> None:
    found = published.run_method(name, 3, rounds=ROUNDS, population=small)
    program = Program(published.shuffled(small, 3), 3)
    expected = [getattr(program, name)() for _ in range(ROUNDS)]
    assert set(found) == set(expected[0])
    one_example = 100 / sum(len(small.test(i)["weight"]) for i in range(USERS))
    for figure, values in found.items():
        # float32 here, float64 there: an example on the border may fall to the other side
        np.testing.assert_allclose(values, [e[figure] for e in expected], atol=1.01 * one_example, rtol=0)
    assert len(set(found[next(iter(found))])) > 1


def test_the_last_round_is_measured_before_its_merge(small: ArrayPopulation) -> None:
    short = published.run_method("fedavg", 0, rounds=3, population=small)["fedavg"]
    long = published.run_method("fedavg", 0, rounds=published.TAIL + 2, population=small)["fedavg"]
    assert len(short) == 3
    assert len(long) == published.TAIL
    assert long[0] == short[2]


def test_shuffling_keeps_every_example_and_the_sizes(small: ArrayPopulation) -> None:
    one, other = published.shuffled(small, 0), published.shuffled(small, 1)
    for i in range(USERS):
        assert len(one.train(i)["weight"]) == len(small.train(i)["weight"])
        both = [np.concatenate([p.train(i)["x"], p.test(i)["x"]]) for p in (small, one)]
        np.testing.assert_array_equal(*(np.sort(b[:, 0]) for b in both))
    assert not np.array_equal(one.train(0)["x"], other.train(0)["x"])


def test_adaptation_on_test_batches_takes_both_rates(small: ArrayPopulation) -> None:
    method = published.METHODS["per_fedavg"]
    assert method.tested is not None
    table = published.study(small, "linear", cohort=USERS).model.device_tensors()
    plan = method.tested.personal_plan(RoundContext(tuple(table), method.local))
    assert plan is not None
    steps = [p for p in plan.steps() if isinstance(p, TrainPhase)]
    assert [(p.optimizer.lr, p.steps) for p in steps] == [(0.02, 1), (0.002, 1)]
    assert plan.upload == ()


def test_within_is_the_mean_over_seeds_against_the_tolerance() -> None:
    near, far = 76.44 + reference.TOLERANCE - 0.01, 77.16 - reference.TOLERANCE - 0.01
    records = reference.summary({"fedavg": [[0.0, near - 1], [0.0, near + 1]], "pfedme_global": [[far, far]]})
    assert [r["within"] for r in records] == [True, False]
    assert (records[0]["low"], records[0]["high"]) == (near - 1, near + 1)
    assert records[1]["moves"] == 0


@pytest.fixture
def command(small: ArrayPopulation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(published, "_drawn", lambda: small)
    return lambda *words: run(reference.app, "reference", [*words, "--rounds", "2", "--processes", "0"])


def test_the_command_prints_one_json_value(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--json", "--seeds", "2") == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["figure"] for f in found["figures"]] == list(reference.FIGURES)
    assert all(len(f["seeds"]) == 2 for f in found["figures"])


def test_the_command_prints_the_reference_beside_the_figures(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--seeds", "1") == 0
    shown = capsys.readouterr().out
    for _, figure in reference.FIGURES.values():
        assert figure is None or f"{figure:.2f}" in shown


@pytest.mark.slow
def test_runs_in_other_processes_give_the_same(
    small: ArrayPopulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "METHODS", {"fedavg": published.METHODS["fedavg"]})
    said: list[float] = []
    here, there = (
        reference.run_all(
            [0, 1],
            rounds=4,
            processes=n,
            population=small,
            report=lambda _what, fraction: said.append(fraction),
        )
        for n in (0, 2)
    )
    assert here == there
    assert here["fedavg"][0] != here["fedavg"][1], "the seeds are in order"
    assert said[-1] > 0

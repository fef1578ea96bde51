"""Local training that nobody gave: it trains whatever the scale of the data, and what is given is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.plan.optimizers import AdamW, Sgd
from pfl_mobile.strategies import Local
from pfl_mobile.study import Machine, Study
from pfl_mobile.study.variants import baseline, for_strategy
from tests.study.small import Net, population


def net(outputs):
    return lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def users(inputs=1.0, targets=None, count=8, rows=30):
    """Users with inputs of a scale; real targets of a scale, or two classes."""
    found = {}
    for user in range(count):
        draw = np.random.default_rng(user)
        x = draw.normal(size=(rows, 6)).astype(np.float32)
        y = x @ (np.linspace(1, 2, 6) + 0.3 * draw.normal(size=6))
        labels = (y > 0).astype(np.int64) if targets is None else (targets * y[:, None]).astype(np.float32)
        found[f"u{user}"] = {"x": x * np.float32(inputs), "labels": labels}
    return found


@pytest.mark.parametrize(
    ("inputs", "targets", "left"),
    [
        (1.0, None, 0.9),
        (100.0, None, 0.5),
        (1e4, None, 0.5),
        (1e-2, None, 1.0),
        (1.0, 1.0, 0.3),
        (100.0, 100.0, 0.3),
        (1.0, 1e6, 0.5),
        (1e6, 1e6, 0.5),
    ],
)
def test_a_default_study_trains_whatever_the_scale_of_its_data(inputs, targets, left):
    one = Study(
        net(2 if targets is None else 1),
        users(inputs, targets),
        "fedper",
        split=["2"],
        machine=Machine(processes=0),
    )
    assert one.local.optimizer.lr <= 0.1
    with one.run(rounds=10) as result:
        found = result.evaluate()
    assert not found.failed
    assert found.no_verdict is None
    before, after = found.losses.mean(axis=0)
    assert after < left * before


@pytest.mark.parametrize("value", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("targets", [None, 100.0])
def test_constant_inputs_and_tiny_data_train_too(value, targets):
    data = users(1.0, targets, count=2, rows=2)
    for rows in data.values():
        rows["x"][:] = value
    with Study(net(2 if targets is None else 1), data, machine=Machine(processes=0)).run(rounds=2) as result:
        found = result.evaluate()
    assert not found.failed
    assert np.isfinite(found.losses).all()


def test_readings_in_their_own_units_train():
    """Glucose in mg/dL, as a meter gives it, with one patient whose sensor was off."""
    data = {}
    for user in range(12):
        draw = np.random.default_rng(user)
        level = 140 + 40 * np.sin(np.arange(80) / 9 + user) + 8 * draw.normal(size=80)
        level[20] = 4000 if user == 5 else level[20]
        x = np.lib.stride_tricks.sliding_window_view(level[:-6], 6).astype(np.float32)
        data[f"p{user}"] = {"x": x, "labels": level[11 : 11 + len(x), None].astype(np.float32)}
    with Study(net(1), data, "fedper", personal=["2"], machine=Machine(processes=0)).run(rounds=10) as result:
        found = result.evaluate()
    assert not found.failed
    assert found.no_verdict is None
    assert (np.delete(found.losses[:, 1], 5) < 0.5 * np.delete(found.losses[:, 0], 5)).all()


@pytest.mark.parametrize("optimizer", [Sgd(lr=0.1), Sgd(lr=5.0), AdamW(lr=0.3)], ids=str)
def test_an_optimizer_that_is_given_is_kept(optimizer):
    one = Study(
        net(2), users(100.0), local=Local(epochs=2, optimizer=optimizer), machine=Machine(processes=0)
    )
    assert one.local == Local(epochs=2, optimizer=optimizer)
    assert "by_default" not in one.effective()["local"]


def test_the_rest_of_what_is_given_is_kept_too():
    one = Study(net(2), users(100.0), local=Local(epochs=2, clip=0.5), machine=Machine(processes=0)).replace(
        local_epochs=3
    )
    assert (one.local.epochs, one.local.clip) == (3, 0.5)
    assert one.local.optimizer.lr <= 0.1
    said = one.effective()["local"]
    assert said["by_default"] == ["optimizer"]
    assert said["optimizer"]["lr"] == one.local.optimizer.lr


def test_one_choice_is_for_all_strategies_and_seeds_and_repeats():
    one = Study(net(2), users(100.0), "fedper", split=["2"], machine=Machine(processes=0))
    chosen = one.local
    assert Study(net(2), users(100.0), "fedper", split=["2"], machine=Machine(processes=0)).local == chosen
    for other in (
        baseline(one),
        for_strategy(one, "scaffold"),
        one.replace(seed=3),
        one.replace(local_steps=4),
    ):
        assert (other.local.optimizer, other.local.clip) == (chosen.optimizer, chosen.clip)
        assert other.effective()["local"]["by_default"] == ["optimizer", "clip"]
    assert one.replace(data=users(1.0)).local.optimizer != chosen.optimizer


def test_what_was_chosen_is_kept_in_the_folder_and_gone_on_with(tmp_path, monkeypatch):
    def study():
        return Study(net(2), users(100.0), machine=Machine(processes=0), folder=tmp_path)

    with study().run(rounds=1) as result:
        chosen = result.study.local
    about = json.loads((tmp_path / "study.json").read_text())
    assert about["study"]["local"]["by_default"] == ["optimizer", "clip"]
    assert about["chosen"] == {"optimizer": chosen.optimizer.model_dump(), "clip": chosen.clip}
    # another machine would choose otherwise
    monkeypatch.setattr("pfl_mobile.study.study.choose_local", lambda *_: pytest.fail("it was chosen again"))
    with study().run(rounds=2, resume=True) as result:
        assert result.study.local == chosen
    with study().result() as result:
        assert result.study.local == chosen


def test_users_who_cannot_train_are_no_part_of_the_trial():
    parts = population(8)

    def generate(index):
        if index % 3 == 0:
            raise OSError("gone")
        return parts.parts[index]

    one = Study(Net, GeneratedPopulation("some", 8, generate), batch=8, machine=Machine(processes=0, lanes=2))
    assert one.local.optimizer.lr == 0.1
    assert one.local.clip is not None

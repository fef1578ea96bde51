"""The recipes' studies, on made-up users with the shapes of their data."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

import pfl_recipes
from pfl_mobile import data
from pfl_mobile.cli.user_code import load_study
from pfl_mobile.errors import UnknownNameError
from pfl_mobile.study import Machine
from pfl_mobile.study.variants import for_strategy

QUICK = {"cohort": 4, "machine": Machine(processes=0, lanes=4)}
ARRAYS = [name for name in pfl_recipes.names() if name != "keyboard"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [*ARRAYS, pytest.param("keyboard", marks=pytest.mark.slow)])
def test_a_round_trains_and_every_user_is_measured(name: str) -> None:
    found = load_study(name, data=pfl_recipes.find(name).made_up(), **QUICK)
    before = {n: v.numpy().copy() for n, v in found.model.values().items()}
    with found.run(1, local_steps=2) as result:
        evaluation = result.evaluate()
        assert any(not np.array_equal(v, before[n]) for n, v in result.values.items())
    assert len(evaluation.users) == 4
    assert np.isfinite(evaluation.shared).all()
    assert np.isfinite(evaluation.personal).all()
    assert not evaluation.failed
    assert found.name == name


@pytest.mark.parametrize("name", ARRAYS)
def test_strategies_with_and_without_personal_layers_run(name: str) -> None:
    base = load_study(name, data=pfl_recipes.find(name).made_up(), **QUICK)
    for strategy in ("fedavg", "fedrep"):
        with for_strategy(base, strategy).run(1, local_steps=2) as result:
            assert np.isfinite(result.evaluate().personal).all()


def test_the_registry_names_folders_and_datasets_that_exist() -> None:
    for name in pfl_recipes.names():
        recipe = pfl_recipes.find(name)
        assert {recipe.data, *recipe.also} <= set(data.names())
        assert callable(getattr(importlib.import_module(recipe.study[0]), recipe.study[1]))
        folder = Path(importlib.import_module(recipe.study[0]).__file__ or "").parent
        assert "pfl compare" in (folder / "README.md").read_text() or name == "keyboard"
        assert pfl_recipes.for_data(recipe.data) is recipe


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'activity'"):
        pfl_recipes.find("activty")
    with pytest.raises(UnknownNameError, match="'wisdm'"):
        pfl_recipes.for_data("wisdn")


def test_synthetic_has_a_convex_model_without_personal_layers() -> None:
    people = pfl_recipes.find("synthetic").made_up()
    linear = load_study("synthetic", data=people, model="linear", **QUICK)
    assert [t.role for t in linear.model.device_tensors()] == ["shared", "shared"]
    split = load_study("synthetic", data=people, **QUICK).model.device_tensors()
    assert "personal" in {t.role for t in split}
    with pytest.raises(UnknownNameError, match="'linear'"):
        load_study("synthetic", data=people, model="linar")


def test_a_missed_fraud_weighs_more_than_a_false_alarm() -> None:
    from pfl_recipes.fraud.study import COST

    people = data.population("fraud", users=3)
    weighed = load_study("fraud", data=people, cohort=2).data
    assert (len(weighed), list(weighed.groups)) == (len(people), list(people.groups))
    for part in ("train", "test"):
        rows = getattr(weighed, part)(0)
        assert np.array_equal(rows["weight"], np.where(rows["labels"] == 1, COST, 1.0))
        assert np.array_equal(rows["x"], getattr(people, part)(0)["x"])


@pytest.mark.slow
def test_a_keyboard_study_ships_its_tokenizer() -> None:
    found = load_study("keyboard", data=pfl_recipes.find("keyboard").made_up(), **QUICK)
    with found.run(1, local_steps=1) as result:
        deployment = result.deployment()
    assert deployment.tokenizer
    assert deployment.encoder is not None
    assert deployment.encoder["kind"] == "text"
    assert deployment.encoder["length"] == deployment.batch["tokens"].shape[1]
    inputs = deployment.inputs_of_predict()
    assert inputs["tokens"].shape == (1, deployment.encoder["length"])
    assert inputs["position"].shape == (1,)

"""From what a user names to a study."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import pfl_recipes
from pfl_mobile.cli.user_code import find_function, load_study
from pfl_mobile.errors import ConfigError, UnknownNameError, UserCodeError
from pfl_mobile.study import Study

SOURCE = """
import pfl_recipes
from torch import nn
from pfl_mobile.study import Study

PEOPLE = pfl_recipes.find("driving").made_up()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 3)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.body(x))

def study(data=PEOPLE, **settings):
    return Study(Net, data, **({"batch": 8, "seed": 5} | settings))

def plain():
    return Study(Net, PEOPLE, "fedprox", parameters={"mu": 0.5})

def net():
    return Net()

def number():
    return 1

def fails():
    raise ValueError("boom")

def needs(x):
    pass
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "study.py"
    path.write_text(SOURCE)
    return path


def test_settings_go_to_the_function_that_takes_them(file: Path) -> None:
    found = load_study(f"{file}:study", strategy="fedper", personal=["head"], seed=1)
    assert isinstance(found, Study)
    assert (found.strategy_name, found.seed, found.effective()["batch"]) == ("fedper", 1, 8)


def test_what_is_no_function_is_said_to_belong_into_one(tmp_path: Path) -> None:
    path = tmp_path / "made.py"
    path.write_text(SOURCE.partition("def study")[0] + "study = Study(Net, PEOPLE, batch=8)")
    with pytest.raises(UnknownNameError, match=r"'study' in .*made\.py is a Study, not a function") as caught:
        load_study(f"{path}:study")
    assert "put it into a function" in caught.value.mend
    assert "def study(" in caught.value.mend


def test_settings_that_the_function_does_not_take_replace_the_studys(file: Path) -> None:
    found = load_study(f"{file}:plain", strategy="fedavg", cohort=2)
    # and mu is gone: it was the other strategy's
    assert (found.strategy_name, found.cohort.size) == ("fedavg", 2)
    assert load_study(f"{file}:plain").strategy_name == "fedprox"


@pytest.mark.parametrize("name", ["Net", "net"])
def test_a_model_becomes_a_study_with_the_data_given(file: Path, name: str) -> None:
    people = pfl_recipes.find("driving").made_up()
    found = load_study(f"{file}:{name}", data=people, strategy="fedrep", personal=["head"])
    assert found.strategy_name == "fedrep"
    assert found.data is people
    with pytest.raises(ConfigError, match="no data"):
        load_study(f"{file}:{name}", seed=1)


def test_weights_of_a_model_class_follow_the_seed(file: Path) -> None:
    people = pfl_recipes.find("driving").made_up()
    one, same, other = (load_study(f"{file}:Net", data=people, seed=s).model.values() for s in (0, 0, 1))
    assert all((one[n] == same[n]).all() for n in one)
    assert any((one[n] != other[n]).any() for n in one)


def test_two_files_of_one_name_do_not_mix(file: Path, tmp_path: Path) -> None:
    load_study(f"{file}:study")
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "study.py"
    second.write_text(SOURCE.replace("nn.Linear(7, 3)", "nn.Linear(7, 4)").replace("(3, 1)", "(4, 1)"))
    model = type(load_study(f"{second}:study").model.backbone)
    assert sys.modules[model.__module__].Net is model  # what pickle looks up


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("{}:stduy", UnknownNameError, "'study'"),
        ("{}", ConfigError, "which function in it makes the study"),
        ("{}:number", ConfigError, "returned a int, not a Study"),
        ("{}:fails", UserCodeError, "raise ValueError"),
        ("{}:needs", ConfigError, "needs the argument 'x'"),
        ("activty", UnknownNameError, "'activity'"),
    ],
)
def test_wrong_names_and_functions_are_refused(
    file: Path, spec: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load_study(spec.format(file))


def test_unknown_settings_are_refused_with_near_names(file: Path) -> None:
    with pytest.raises(UnknownNameError, match="'cohort'"):
        load_study(f"{file}:study", cohrt=3)


def test_a_recipe_without_a_deployment_of_its_own_gives_its_study() -> None:
    assert find_function("activity").call is find_function("activity", "study").call
    assert find_function("keyboard").call is not find_function("keyboard", "study").call


def test_a_folder_that_is_no_run_is_no_deployment(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run"):
        find_function(str(tmp_path)).deployment(None, print)


def test_a_dataset_gives_the_study_of_the_recipe_that_serves_it() -> None:
    assert load_study("driving", cohort=3).data.name == "driving"
    assert find_function("movielens-small", "study").shown == "recipe recommendation on movielens-small"
    with pytest.raises(UnknownNameError, match="'wisdm'"):
        find_function("wisdn", "study")

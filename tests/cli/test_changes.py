"""Settings by the names of the command line's options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pfl_mobile.cli.changes import with_changes
from pfl_mobile.cli.runs import note_source, study_of
from pfl_mobile.cli.user_code import load_study
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.study import Cohort, Machine
from tests.study.small import study


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that are named are imported from folders that are put in front of it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_parts_are_changed_and_the_rest_of_a_group_stays() -> None:
    one = study(cohort=Cohort(size=4, dropout=0.25), machine=Machine(processes=0, lanes=2))
    assert with_changes(one, {}) is one
    other = with_changes(one, {"cohort": 6, "processes": 2, "seed": 5})
    assert (other.cohort, other.seed) == (Cohort(size=6, dropout=0.25), 5)
    assert other.machine == Machine(processes=2, lanes=2)
    assert with_changes(one, {"dropout": 0.5}).cohort == Cohort(size=4, dropout=0.5)
    assert with_changes(one, {"dropout": 0.0, "cohort": 3}).cohort == Cohort(size=3)
    assert with_changes(one, {"local_steps": 7}).local.steps == 7
    with pytest.raises(ConfigError, match="cohort's dropout is 2"):
        with_changes(one, {"dropout": 2})


#: As earlier versions wrote them, when each of these was a setting of its own.
SETTINGS = {"dropout": 0.25, "lanes": 1}
CHANGES = {
    "strategy": "ditto",
    "cohort": 5,
    "processes": 0,
    "backend": "local",
    "device": "cpu",
    "local_epochs": 3,
}


def test_the_note_of_an_earlier_run_is_read(tmp_path: Path) -> None:
    note_source(tmp_path, "tests.study.small:study", SETTINGS, CHANGES)
    found = study_of(tmp_path)
    assert (found.strategy_name, found.cohort) == ("ditto", Cohort(size=5, dropout=0.25))
    assert (found.machine, found.local.epochs) == (Machine(processes=0, lanes=1), 3)


def test_the_note_of_a_run_from_before_backends_had_their_name_is_read(tmp_path: Path) -> None:
    changes = {("engine" if name == "backend" else name): value for name, value in CHANGES.items()}
    note_source(tmp_path, "tests.study.small:study", SETTINGS, changes)
    assert study_of(tmp_path).machine == Machine(processes=0, lanes=1)


def test_a_finished_run_of_before_is_read_with_its_results(tmp_path: Path) -> None:
    """Its note, its description and its checkpoint have the form that they had."""
    note_source(tmp_path, "tests.study.small:study", SETTINGS, CHANGES)
    with study_of(tmp_path).run(rounds=2, local_epochs=3) as result:
        values = result.values
    about = json.loads((tmp_path / "study.json").read_text())
    told = {"rounds": 2, "local_epochs": 3, "local_steps": None}
    assert {name: about[name] for name in told} == told
    flat = {"backend": "local", "device": "cpu", "processes": 0, "lanes": 1, "cohort": 5, "dropout": 0.25}
    assert {name: about["study"][name] for name in flat} == flat
    with study_of(tmp_path).result() as again:
        assert all((again.values[name] == value).all() for name, value in values.items())


def test_a_function_gets_a_part_only_where_it_asks_for_it(tmp_path: Path) -> None:
    file = tmp_path / "of_parts.py"
    file.write_text(
        "from tests.study.small import study\n"
        "def named(lanes=1):\n    return study(seed=lanes)\n"
        "def open_to_all(**settings):\n    return study(**settings)\n"
    )
    assert load_study(f"{file}:named", lanes=4).seed == 4
    assert load_study(f"{file}:open_to_all", lanes=4).machine.lanes == 4
    with pytest.raises(UnknownNameError, match="'lane'") as caught:
        load_study(f"{file}:open_to_all", lane=4)
    assert "'lanes'" in caught.value.mend

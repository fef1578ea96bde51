"""Studies named on the command line, with changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pfl_mobile.cli.runs import changed_study, is_run, note_source, study_of

SOURCE = """
import pfl_recipes
from pfl_recipes.driving.study import study as base

def study(**settings):
    return base(pfl_recipes.find("driving").made_up(), **({"cohort": 4} | settings))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(SOURCE)
    return f"{tmp_path / 'mine.py'}:study"


@pytest.mark.parametrize(
    ("strategy", "roles"),
    [(None, {"personal", "shared"}), ("fedrep", {"personal", "shared"}), ("fedavg", {"shared"})],
)
def test_another_strategy_decides_whether_layers_are_personal(
    model: str, strategy: str | None, roles: set[str]
) -> None:
    found = changed_study(model, {}, {} if strategy is None else {"strategy": strategy, "seed": 3})
    assert {t.role for t in found.model.device_tensors()} == roles
    assert found.seed == (0 if strategy is None else 3)


def test_a_run_is_made_again_from_its_note(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_run(folder)
    note_source(folder, model, {}, {"strategy": "ditto", "seed": 2})
    assert is_run(folder)
    found = study_of(folder)
    assert (found.strategy_name, found.seed, found.folder) == ("ditto", 2, folder)

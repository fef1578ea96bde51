"""The groups of a study's settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from pfl_mobile.errors import ConfigError, PflError, UnknownNameError
from pfl_mobile.study import Cohort, Machine
from tests.study.small import study


@pytest.mark.parametrize(
    ("group", "settings", "error", "text", "mend"),
    [
        (Cohort, {"size": 0}, ConfigError, "cohort's size is 0", "1 or more"),
        (Cohort, {"size": 2.5}, ConfigError, "cohort's size is 2.5", "whole number"),
        (Cohort, {"size": "3"}, ConfigError, "cohort's size is '3'", "whole number"),
        (Cohort, {"size": 3, "dropout": "x"}, ConfigError, "cohort's dropout is 'x'", r"\[0, 1\)"),
        (Cohort, {"size": 3, "dropout": 1.0}, ConfigError, "cohort's dropout is 1.0", r"\[0, 1\)"),
        (Machine, {"lanes": 0}, ConfigError, "machine's lanes is 0", "1 or more"),
        (Machine, {"processes": "2"}, ConfigError, "machine's processes is '2'", "0 or more"),
        (Machine, {"processes": -1}, ConfigError, "machine's processes is -1", "0 or more"),
        (Machine, {"backend": "locale"}, UnknownNameError, "'locale'", "'local'"),
        (Machine, {"backend": 3}, ConfigError, "backend is 3", "local, ray"),
        (Machine, {"device": "gpu"}, ConfigError, "'gpu'", "'cpu' or 'cuda'"),
        (Machine, {"device": 3.5}, ConfigError, "3.5", "'cpu' or 'cuda'"),
    ],
)
def test_what_is_out_of_range_is_refused_with_its_name(
    group: Any, settings: dict[str, Any], error: type[PflError], text: str, mend: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        group(**settings)
    assert re.search(mend, caught.value.mend)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no GPU") as caught:
        Machine(device="cuda")
    assert "leave device out" in caught.value.mend


def test_a_number_is_a_cohort_without_dropout() -> None:
    assert study(cohort=5).cohort == study(cohort=Cohort(size=5)).cohort == Cohort(size=5, dropout=0.0)
    assert study(cohort=None).cohort == Cohort(size=8)


def test_the_machine_changes_no_result() -> None:
    found = []
    for machine in (Machine(processes=0, lanes=2), Machine(processes=1, lanes=2)):
        with study(cohort=Cohort(size=4, dropout=0.3), machine=machine).run(rounds=2) as result:
            found.append({name: value.tobytes() for name, value in result.values.items()})
    assert found[0] == found[1]


def test_dropout_leaves_devices_out() -> None:
    with study(cohort=Cohort(size=8, dropout=0.5)).run(rounds=3) as result:
        assert sum(record.clients for record in result.history) < 3 * 8

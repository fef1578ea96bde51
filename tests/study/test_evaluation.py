"""None"""

from __future__ import annotations

import json

import numpy as np
import pytest

from pfl_mobile.errors import NoExamplesError
from tests.study.evaluations import evaluation


def test_gains_point_upwards_whichever_way_the_metric_does():
    assert evaluation([10, 20], [12, 19]).gains.tolist() == [2, -1]
    found = evaluation([10, 20], [12, 19], metric="mae")
    assert found.gains.tolist() == [-2, 1]
    assert (found.users_better, found.users_worse) == (1, 1)
    assert found.worst_decile == 19


def test_the_worst_group_may_change():
    found = evaluation([50, 50, 30, 30], [50, 52, 60, 64], groups=["a", "a", "b", "b"])
    assert found.per_group["b"]["personalized_acc"] == 62
    assert found.worst_group_improvement == 21
    assert evaluation([1], [2]).worst_group_improvement is None


def test_forgetting_is_what_is_lost_on_others():
    found = evaluation([1, 1], [2, 2], general_shared=40.0, general_personal=np.array([39.0, 37.0]))
    assert found.forgetting == 2.0


def test_an_evaluation_is_json():
    found = evaluation([50, 40], [51, 39], groups=["a", "b"])
    assert json.loads(json.dumps(found.to_json(users=True)))["per_user"][1]["gain"] == -1


def test_nobody_is_an_error():
    with pytest.raises(NoExamplesError):
        evaluation([], [])

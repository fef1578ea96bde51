from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import MovePhase, TrainPhase
from pfl_mobile.plan.schema import CopyStart, Plan
from pfl_mobile.plan.upload import change, check_sends, update_shapes


def entry(name, role):
    return SimpleNamespace(name=name, role=role, shape=(2,), dtype="float32", update="gradient", module="m")


TABLE = (entry("a", "shared"), entry("b", "personal"), entry("c", "group"))


def plan(**fields):
    return Plan(phases=(TrainPhase(steps=1, trains="mine", optimizer=Sgd(lr=1.0)),), **fields)


def values(*numbers):
    return {n: np.full(2, x, np.float32) for n, x in zip("abc", numbers, strict=True)}


def test_personal_tensors_are_never_in_an_update():
    p = plan(upload=("*",), upload_copies=("mine",))
    sent = change(p, TABLE, (values(1, 2, 3), {}), (values(2, 9, 5), {"mine": values(4, 4, 4)}))
    assert {n: v.tolist() for n, v in sent.items()} == {
        "a": [1, 1],
        "c": [2, 2],
        "copy:mine:a": [4, 4],
        "copy:mine:c": [4, 4],
    }
    assert update_shapes(p, TABLE) == dict.fromkeys(sent, (2,))


def test_the_change_of_a_copy_is_from_where_it_was():
    p = plan(upload=("a",), upload_copies=("mine",))
    sent = change(
        p, TABLE, (values(0, 0, 0), {"mine": values(1, 1, 1)}), (values(0, 0, 0), {"mine": values(4, 4, 4)})
    )
    assert sent["copy:mine:a"].tolist() == [3, 3]


def test_uploading_only_personal_tensors_is_refused():
    with pytest.raises(ConfigError, match="never leave"):
        update_shapes(plan(upload=("b",)), TABLE)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "sends nothing"),
        ({"upload": ("a",)}, "changes nothing of what it sends"),
        ({"upload": ("a",), "group": ("role:personal",), "trains": "theta"}, "changes nothing"),
        ({"upload": ("c",), "group": ("a",), "trains": "theta"}, "changes nothing"),
    ],
)
def test_a_plan_that_sends_nothing_new_is_refused(fields, what):
    phase = {name: fields.pop(name) for name in ("group", "trains") if name in fields}
    train = TrainPhase(steps=1, optimizer=Sgd(lr=1.0), **({"trains": "mine"} | phase))
    taken = MovePhase(group=("a",), toward="global", rate=1.0)
    with pytest.raises(ConfigError, match=what):
        check_sends(Plan(phases=(taken, train), **fields), TABLE)


def test_a_plan_sends_what_it_trains_moves_or_keeps_a_copy_of():
    mine = TrainPhase(steps=1, trains="mine", optimizer=Sgd(lr=1.0))
    for phases, fields in (
        ((TrainPhase(steps=1, optimizer=Sgd(lr=1.0)),), {}),
        ((mine, MovePhase(group=("a",), toward="mine", rate=0.5)), {}),
        ((mine,), {"upload_copies": ("mine",), "copies": {"mine": CopyStart()}}),
    ):
        check_sends(Plan(phases=phases, upload=("a",), **fields), TABLE)

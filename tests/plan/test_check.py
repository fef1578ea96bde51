"""What a plan reads is there, and fits, before it reads it."""

from __future__ import annotations

from typing import Any

import pytest

from pfl_mobile.errors import ConfigError, PflError, UnknownNameError
from pfl_mobile.plan.check import check_plan, named_sets
from pfl_mobile.plan.schema import Plan
from tests.local.fake import Tensor, plan, sgd

TABLE = (
    Tensor("a", "shared", (2,)),
    Tensor("b", "personal", (2,)),
    Tensor("slots.active", "personal", (3,), update="assign", module="slots"),
)
MOVE: dict[str, Any] = {"kind": "move", "toward": "own", "rate": 1.0}
MEASURE = {"kind": "measure", "report": "x", "at": "own"}
OWN = sgd(trains="own", group=["a"])
COPY = {"copies": {"own": {"group": ["a"]}}}


def check(found: Plan) -> None:
    check_plan(found, TABLE, {"global": {}, "initial": {}}, ["kept"])


def test_the_sets_that_a_plan_names_in_order_of_first_use() -> None:
    found = plan(
        {"kind": "combine", "makes": "sum", "terms": [{"of": "c"}, {"of": "global"}]},
        {"kind": "repeat", "times": 2, "phases": [sgd(anchor="global", mu="fisher", start_from="d"), MOVE]},
        {"kind": "measure", "report": "x", "at": "e"},
        {"kind": "choose", "among": ["f", "global"], "report": "y"},
        copies={"sum": {"of": "a"}},
        serve={"kind": "mix", "other": "b", "alpha": 0.5},
    )
    assert named_sets(found) == ["a", "theta", "b", "c", "global", "d", "fisher", "own", "e", "f"]


@pytest.mark.parametrize(
    ("phases", "rest"),
    [
        ([OWN, {**MOVE, "group": ["a"]}], {}),
        ([{**MOVE, "group": ["a"]}], COPY),
        ([sgd(trains="own", group=["b"]), MOVE], COPY),
        ([{**MOVE, "toward": "kept"}, {**MOVE, "toward": "zero"}], {}),
        ([sgd(anchor="start", mu=0.1)], {}),
        ([sgd(trains="own", anchor="own", mu=0.1)], {}),
        ([{"kind": "repeat", "times": 2, "phases": [sgd(trains="own"), MOVE]}], {}),
        ([OWN, MEASURE], {}),
        ([{"kind": "assign_slots"}], {}),
    ],
)
def test_a_set_is_read_once_it_is_there(phases: list[dict[str, Any]], rest: dict[str, Any]) -> None:
    check(plan(*phases, **rest))


UNKNOWN, CONFIG = UnknownNameError, ConfigError


@pytest.mark.parametrize(
    ("phases", "rest", "error", "words"),
    [
        ([MOVE], {}, UNKNOWN, "a set 'own' that is not there"),
        ([sgd(), {**MOVE, "toward": "globl"}], {}, UNKNOWN, "'globl'"),
        ([MOVE, sgd(trains="own")], {}, CONFIG, "move phase reads the set 'own' before any phase makes it"),
        ([MEASURE, OWN], {}, CONFIG, "measure phase reads the set 'own' before"),
        ([sgd(trains="own", start_from="own")], {}, CONFIG, "train phase reads the set 'own' before"),
        ([sgd(), {**MOVE, "toward": "start"}], {}, CONFIG, "'start' which only a train phase has"),
        ([sgd(start_from="start")], {}, CONFIG, "'start' which only a train phase has"),
        ([OWN, MOVE], {}, CONFIG, "move phase reads 'b' of the set 'own', which holds other tensors"),
        ([{"kind": "choose", "among": ["own"], "report": "x"}], COPY, CONFIG, "choose phase reads 'b'"),
        ([sgd(control="own")], COPY, CONFIG, "train phase reads 'b' of the set 'own'"),
        (
            [sgd()],
            {"copies": {"own": {"of": "later"}, "later": {}}},
            CONFIG,
            "copy 'own' reads the set 'later'",
        ),
        ([sgd(group=["c"])], {}, UNKNOWN, "'c' matches no tensor"),
        ([sgd()], {"upload": ["b"]}, CONFIG, "never leave"),
        (
            [{"kind": "assign_slots", "module": "slot"}],
            {},
            UNKNOWN,
            "assign_slots phase is for module 'slot'",
        ),
        ([{"kind": "memorize", "module": "slots"}], {}, UNKNOWN, "memorize phase is for module 'slots'"),
    ],
)
def test_a_set_that_is_not_there_yet_or_too_small_is_refused(
    phases: list[dict[str, Any]], rest: dict[str, Any], error: type[PflError], words: str
) -> None:
    with pytest.raises(error, match=words):
        check(plan(*phases, **rest))


def test_a_repeat_is_checked_as_its_first_run_finds_it() -> None:
    late = {"kind": "repeat", "times": 2, "phases": [{**MOVE, "group": ["a"]}, OWN]}
    with pytest.raises(ConfigError, match="before any phase makes it"):
        check(plan(late))

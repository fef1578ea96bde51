"""The report of local training: what of it may leave the app."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pfl_mobile.local.guard import GuardReport
from pfl_mobile.local.report import Trained, TrainReport
from pfl_mobile.local.state import StateWarning

TRAINED = Trained({"w": np.ones(2, np.float32)}, {}, {})


def report(**other: Any) -> TrainReport:
    given: dict[str, Any] = {
        "status": "adopted",
        "guard": GuardReport("loss", 1.0, 0.5, 4, True, "better"),
        "state": None,
        "version": 2,
        "before": {"loss": 1.0},
        "after": {"loss": 0.5},
        "steps": 3,
        "losses": (1.0, 0.75, 0.5),
        "seconds": 0.5,
        "ms_per_step": 100.0,
        "words": ("zaphod",),
        "reports": {"sent_loss": 1.0},
        "resumed_at": 1,
        "warnings": (StateWarning(1, "damaged", 0),),
        "notes": ("2 messages left out",),
        "trained": TRAINED,
    }
    return TrainReport(**given | other)


@pytest.mark.parametrize(
    ("status", "adopted"), [("adopted", True), ("kept", False), ("skipped", False), ("cancelled", False)]
)
def test_only_an_adopted_state_serves(status: str, adopted: bool) -> None:
    assert report(status=status).adopted is adopted


def test_json_has_everything_but_tensors_and_words() -> None:
    found = report().to_json()
    assert json.loads(json.dumps(found)) == found
    assert found == {
        "status": "adopted",
        "version": 2,
        "steps": 3,
        "seconds": 0.5,
        "ms_per_step": 100.0,
        "resumed_at": 1,
        "before": {"loss": 1.0},
        "after": {"loss": 0.5},
        "losses": [1.0, 0.75, 0.5],
        "reports": {"sent_loss": 1.0},
        "slots_assigned": 1,
        "notes": ["2 messages left out"],
        "guard": {
            "metric": "loss",
            "before": 1.0,
            "after": 0.5,
            "examples": 4,
            "adopted": True,
            "reason": "better",
        },
        "warnings": [{"version": 1, "message": "damaged", "used": 0}],
    }


def test_the_users_words_are_counted_and_not_told() -> None:
    assert "zaphod" not in json.dumps(report().to_json())
    assert report(words=()).to_json()["slots_assigned"] == 0


def test_training_that_was_cancelled_has_no_guards_decision() -> None:
    assert report(status="cancelled", guard=None, ms_per_step=None).to_json()["guard"] is None


def test_trained_tensors_are_neither_compared_nor_printed() -> None:
    one, other = report(), report(trained=None)
    assert one == other
    assert "trained" not in repr(one)

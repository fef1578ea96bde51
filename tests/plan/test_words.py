from __future__ import annotations

from pfl_mobile.plan.words import plan_words
from tests.local.fake import plan, sgd


def test_a_plan_in_words() -> None:
    found = plan(
        {"kind": "move", "toward": "global", "rate": 1.0},
        {
            "kind": "repeat",
            "times": 3,
            "phases": [sgd(steps=5, trains="own", anchor="theta", mu=0.1, clip=2.0), {"kind": "memorize"}],
        },
        guard={"metric": "top1", "tolerance": 0.1, "min_examples": 4, "appeal": 0.9},
        upload=["role:shared"],
        upload_copies=["own"],
        serve={"kind": "mix", "one": "own", "other": "global", "alpha": 0.25},
        remember_holdout=True,
    )
    assert plan_words(found) == [
        "go on from the adopted state; hold out the newest 20 % of the examples",
        "move theta towards global by a factor of 1",
        "3 times:",
        "  train all tensors, for 5 steps, with sgd, lr 0.5, gradients clipped to 2, into the copy 'own', "
        "held near theta (mu 0.1)",
        "  write the examples into the memory 'memory'",
        "predict with 0.25 own + 0.75 global",
        "adopt the result only if top1 rises on the held-out examples (or gets worse by less than 0.1); "
        "train nothing with fewer than 4 of them; train nothing when the shipped model already reaches 0.9",
        "once adopted, memorize the held-out examples too",
        "send the change of role:shared, and of the copies own",
    ]


def test_a_plan_that_sends_nothing_says_so() -> None:
    lines = plan_words(plan(sgd(steps=1), start="initial"))
    assert lines[0].startswith("start from the shipped values")
    assert lines[-1] == "send nothing"

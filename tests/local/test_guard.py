from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.local.guard import before_training, decide
from pfl_mobile.plan.schema import Guard


@given(before=st.floats(0, 10), after=st.floats(0, 10), tolerance=st.sampled_from([0.0, 0.5]))
def test_guard_adopts_only_what_is_better(before, after, tolerance):
    loss = decide(Guard(tolerance=tolerance), before, after, 5)
    recall = decide(Guard(metric="top1", tolerance=tolerance), before, after, 5)
    assert loss.adopted == (before - after > 0 or before - after > -tolerance)
    assert recall.adopted == (after - before > 0 or after - before > -tolerance)
    assert (loss.reason == "better") == (after < before)
    if tolerance == 0:
        assert not (loss.adopted and recall.adopted)


def test_guard_edges():
    assert not decide(Guard(), 1.0, 1.0, 5).adopted
    assert decide(Guard(), 1.0, float("nan"), 5).reason == "not_finite"
    assert decide(Guard(), float("inf"), 1.0, 5).adopted
    assert decide(Guard(min_examples=6), 1.0, 0.5, 5).reason == "too_few_examples"
    assert before_training(Guard(), 1.0, 1.0, 5) is None
    assert before_training(Guard(), None, None, 0).reason == "too_few_examples"
    appeal = Guard(metric="top1", appeal=0.4)
    assert before_training(appeal, 0.5, 0.39, 5) is None
    assert before_training(appeal, 0.1, 0.4, 5).reason == "good_enough"
    assert before_training(Guard(appeal=0.4), 0.5, 0.4, 5).reason == "good_enough"

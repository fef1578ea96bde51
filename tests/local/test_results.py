"""What personalization did, for many users together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pfl_mobile.errors import NoExamplesError
from pfl_mobile.local.results import UserResult, is_recall, scale, summarize


def result(before, after, *, status="adopted", engine="torch", general=(None, None), guard=None, ms=None):
    return UserResult(
        user="u",
        engine=engine,
        status=status,
        examples={"all": 3},
        before=before,
        after=after,
        general_before=general[0],
        general_after=general[1],
        guard=guard,
        steps=1,
        ms_per_step=ms,
        peak_mb=None,
        slots=0,
        seconds=0.1,
        report=SimpleNamespace(notes=["a note"], warnings=[SimpleNamespace(message="a warning")]),
    )


def test_recalls_are_in_percent_and_other_metrics_as_measured():
    found = summarize([result({"top1": 0.2, "loss": 3.0}, {"top1": 0.3, "loss": 2.0})])
    assert (found["top1_before"], found["top1_after"]) == (pytest.approx(20), pytest.approx(30))
    assert (found["loss_before"], found["loss_after"]) == (3.0, 2.0)
    assert [is_recall(m) for m in ("top1", "top10", "top", "topic", "loss")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert (scale("top3"), scale("mae")) == (100, 1)


def test_users_are_better_or_worse_by_recall():
    users = [result({"top1": 0.5}, {"top1": 0.5 + gain / 100}) for gain in (5, 0, -3)]
    found = summarize(users)
    assert (found["users"], found["users_better"], found["users_worse"]) == (3, 1, 1)
    assert found["worst_decile_gain"] == pytest.approx(-3)


def test_the_worst_tenth_is_a_mean():
    found = summarize([result({"top1": 0.5}, {"top1": 0.5 + gain / 100}) for gain in range(20)])
    assert found["worst_decile_gain"] == pytest.approx(0.5)


def test_without_recall_the_metric_of_the_guard_decides_whichever_way_it_points():
    guard = {"metric": "mae"}
    found = summarize([result({"mae": 2.0}, {"mae": 1.0}, guard=guard), result({"mae": 1.0}, {"mae": 1.5})])
    assert (found["users_better"], found["users_worse"], found["worst_decile_gain"]) == (1, 1, -0.5)


def test_what_was_measured_of_some_is_the_mean_of_those():
    found = summarize(
        [
            result({"top1": 0.1}, {"top1": 0.2}, general=({"top1": 0.4}, {"top1": 0.3}), ms=1.0),
            result({"top1": 0.1}, {"top1": 0.1}, status="kept", engine="onnxruntime", ms=3.0),
        ]
    )
    assert (found["general_top1_before"], found["general_top1_after"]) == (
        pytest.approx(40),
        pytest.approx(30),
    )
    assert (found["adopted"], found["engine"], found["ms_per_step"]) == (1, "onnxruntime+torch", 2.0)


def test_nobody_is_an_error():
    with pytest.raises(NoExamplesError):
        summarize([])


def test_the_json_has_notes_and_warnings_and_no_report():
    found = result({"top1": 0.1}, {"top1": 0.2}).to_json()
    assert found["notes"] == ["a note", "a warning"]
    assert "report" not in found
    assert found["before"] == {"top1": 0.1}

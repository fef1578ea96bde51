"""A task, from downloaded values to an update, without a network: what is declined and why, and what is sent."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from pfl_mobile.device.pipeline import DeclineTask, Pipeline, evaluation_report
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.sent import SentNoise
from pfl_mobile.files.tensors import tensors_from_bytes
from pfl_mobile.local.state import PersonalState, PersonalStateStore
from pfl_mobile.protocol.bodies import RoundTask
from pfl_mobile.protocol.update_file import parse_prefix
from tests.device.conftest import ID, linear_model
from tests.local.fake import Linear, linear_rows, sgd

PLAN = {"schema_version": 1, "phases": [sgd(steps=4, group=["*"])], "upload": ["role:shared"]}


def task(**changes):
    base = {
        "id": "e" * 32,
        "round": 1,
        "version": 1,
        "plan": PLAN,
        "sets": {},
        "layout": [{"name": "head.weight", "shape": [3, 4]}],
        "reports": [],
        "privacy": {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0},
        "evaluate": True,
        "expires": 1e10,
        "expires_in_s": 100.0,
        "update_url": "/v1/x",
    }
    return RoundTask.model_validate(base | changes)


@pytest.fixture
def make(tmp_path):
    def pipeline(rows=60, session=None, **settings):
        settings = {"policy": PrivacyPolicy(require=False), **settings}
        store = PersonalStateStore(tmp_path / "personal", ID)
        return Pipeline(
            linear_model(session), linear_rows(rows), store, SentNoise(tmp_path / "sent.json"), **settings
        )

    return pipeline


def shared(pipeline):
    return {"global": {"head.weight": np.zeros((3, 4), np.float32)}}


@pytest.mark.parametrize(("rows", "told"), [(0, 0), (1, 0), (60, 38), (200, 120), (1577, 1000)])
def test_the_count_of_examples_is_told_to_two_digits(make, rows, told):
    assert make(rows).training_examples() == told


def test_a_task_that_fits_is_accepted(make):
    plan, layout = make().accept(task())
    assert list(layout.shapes) == ["head.weight"]
    assert plan.phases[0].steps == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan": {**PLAN, "upload": ["role:personal"]}}, "plan"),
        ({"plan": {"phases": "?"}}, "plan"),
        ({"layout": []}, "plan"),
        ({"layout": [{"name": "head.weight", "shape": [4, 3]}]}, "plan"),
        ({"layout": [{"name": "head.bias", "shape": [3]}]}, "plan"),
    ],
)
def test_tasks_that_ask_for_other_tensors_are_declined(make, changes, reason):
    with pytest.raises(DeclineTask) as caught:
        make().accept(task(**changes))
    assert caught.value.reason == reason


def test_a_task_that_protects_nothing_is_declined_by_the_policy(make):
    with pytest.raises(DeclineTask, match="nothing protects") as caught:
        make(policy=PrivacyPolicy()).accept(task())
    assert caught.value.reason == "privacy"


def test_the_update_is_the_change_and_the_new_state_does_not_serve_yet(make):
    pipeline = make()
    done = pipeline.carry_out(task(), shared(pipeline))
    head, values = decoded(done, pipeline)
    assert (head.task, head.round, head.steps, head.examples) == ("e" * 32, 1, 4, 38)
    assert np.abs(values["head.weight"]).max() > 0
    assert done.evaluation is not None
    assert done.evaluation.global_["loss"].weight == 12.0, "of the newest fifth"
    assert pipeline.store.current == 0
    assert done.adopts is not None
    pipeline.store.adopt(done.adopts)
    assert pipeline.store.current == done.adopts


def decoded(done, pipeline):
    _, layout = pipeline.accept(task())
    head, _ = parse_prefix(done.update, layout, len(done.update))
    return head, tensors_from_bytes(done.update)


def test_the_update_is_clipped_to_what_the_task_says(make):
    pipeline = make()
    privacy = {"mechanism": "none", "clip_norm": 1e-3, "noise_multiplier": 0.0}
    done = pipeline.carry_out(task(privacy=privacy), shared(pipeline))
    head, values = decoded(done, pipeline)
    assert head.clipped
    assert math.sqrt(sum((v**2).sum() for v in values.values())) == pytest.approx(1e-3, rel=1e-5)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        ({"rows": 1}, "no_examples"),
        ({"poison": 2}, "diverged"),
    ],
)
def test_what_cannot_be_trained_is_declined_with_the_protocols_reason(make, arrange, reason):
    session = Linear()
    session.poison_at = arrange.get("poison")
    pipeline = make(arrange.get("rows", 60), session)
    with pytest.raises(DeclineTask) as caught:
        pipeline.carry_out(task(), shared(pipeline))
    assert caught.value.reason == reason


def test_a_plan_without_a_measure_cannot_report_it(make):
    pipeline = make()
    with pytest.raises(DeclineTask, match="measures no 'loss'"):
        pipeline.carry_out(task(reports=["loss"]), shared(pipeline))


def test_a_cancelled_task_is_none(make):
    pipeline = make()
    assert pipeline.carry_out(task(), shared(pipeline), cancel=SimpleNamespace(is_set=lambda: True)) is None


def test_copies_are_taken_back_and_the_rest_stays(make):
    pipeline, one = make(), np.ones(3, np.float32)
    before = pipeline.store.save(PersonalState({"head.bias": one}, {"c": {"head.bias": one}}))
    pipeline.store.save(
        PersonalState({"head.bias": 2 * one}, {"c": {"head.bias": 3 * one}, "d": {"head.bias": 4 * one}})
    )
    pipeline.take_back(("c",), before)
    now = pipeline.store.load().state
    assert now.tensors["head.bias"][0] == 2
    assert (now.copies["c"]["head.bias"][0], now.copies["d"]["head.bias"][0]) == (1, 4)
    pipeline.take_back(("d",), 0)
    assert sorted(pipeline.store.load().state.copies) == ["c"]


def test_reports_have_metrics_that_are_finite_in_both_and_whole_labels():
    report = evaluation_report(
        {"loss": (3.0, 1.5), "top1": (1.0, 2.0), "nan": (math.nan, 2.0)},
        {"loss": (1.0, 0.2), "nan": (1.0, 2.0)},
        True,
    )
    assert set(report.global_) == {"loss"}
    assert (report.global_["loss"].sum, report.global_["loss"].weight) == (4.0, 2.0)
    assert (report.personalized["loss"].sum, report.personalized["loss"].weight) == (5.0, 1.0)
    assert evaluation_report({"loss": (math.inf, 1.0)}, {"loss": (1.0, 1.0)}, True) is None

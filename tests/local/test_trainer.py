from __future__ import annotations

import itertools
import json
import threading

import numpy as np
import pytest

from pfl_mobile.errors import (
    ConfigError,
    DataError,
    NoExamplesError,
    NonFiniteError,
    StateError,
    TensorMismatchError,
    TooManyStepsError,
    TooSlowError,
    UnknownNameError,
)
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer, Most
from pfl_mobile.rows import padded_batches, split_rows
from tests.local.fake import Linear, Unigram, Words, linear_rows, plan, sgd

TRAIN, HELD = split_rows(linear_rows(60), 0.2)


def trainer(p, session=None, **kwargs):
    session = session or Linear()
    return LocalTrainer(session, p, session.tensors, session.initial(), **kwargs)


def run(p, state=None, train=TRAIN, held=HELD, **kwargs):
    return trainer(p, **kwargs).personalize(train, held, state)


def same(a, b):
    return all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


@pytest.fixture
def store(tmp_path):
    return PersonalStateStore(tmp_path / "s", ModelId.of("m", "1", Linear.tensors))


def test_training_helps_and_is_adopted(store):
    seen = []
    report = trainer(plan(sgd(steps=20), seed=3)).personalize(TRAIN, HELD, store, on_progress=seen.append)
    assert report.status == "adopted"
    assert report.guard.after < report.guard.before
    assert report.version == store.current == 1
    assert same(store.load().state, report.state)
    assert [(p.step, p.of) for p in seen] == [(i, 20) for i in range(1, 21)]
    assert all(b.seconds >= a.seconds for a, b in itertools.pairwise(seen))
    assert report.ms_per_step > 0
    assert report.losses[-1] < report.losses[0]
    assert json.loads(json.dumps(report.to_json()))["guard"]["reason"] == "better"
    assert trainer(plan(sgd())).evaluate(HELD, report.state) == pytest.approx(report.after)


def test_same_seed_gives_the_same_bits_and_another_seed_others():
    p = plan(sgd(steps=9), seed=5)
    assert same(run(p).state, run(p).state)
    assert not same(run(p).state, run(p.model_copy(update={"seed": 6})).state)


def test_guard_keeps_the_old_state_when_training_hurts(store):
    good = trainer(plan(sgd(steps=30))).personalize(TRAIN, HELD, store)
    wrong = {**TRAIN, "labels": (TRAIN["labels"] + 1) % 3}
    report = trainer(plan(sgd(steps=30))).personalize(wrong, HELD, store)
    assert report.status == "kept"
    assert report.guard.reason == "not_better"
    assert store.current == 1
    assert same(report.state, good.state)
    assert same(store.load().state, good.state)


def test_appeal_stops_before_training():
    session = Linear()
    p = plan(sgd(), guard={"metric": "loss", "appeal": 2.0})
    report = LocalTrainer(session, p, session.tensors, session.initial()).personalize(TRAIN, HELD)
    assert (report.status, report.guard.reason, session.calls) == ("skipped", "good_enough", 0)
    assert run(plan(sgd(), guard={"metric": "loss", "appeal": 0.1})).status == "adopted"


def test_too_few_held_out_examples_stops_before_training():
    p = plan(sgd(), guard={"min_examples": 13})
    assert run(p).guard.reason == "too_few_examples"
    empty = {n: v[:0] for n, v in HELD.items()}
    assert run(plan(sgd()), held=empty).status == "skipped"


def test_full_batch_step_is_a_central_gradient_step():
    """McMahan 2017: one local full-batch step = one central step on the pooled data."""
    report = run(plan(sgd(lr=0.3, steps=1, batches_per_step="all")))
    whole = Linear(batch=len(TRAIN["weight"])).run("gradients", {**TRAIN, **Linear().initial()})
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(report.state.tensors[name], -0.3 * whole[f"grad.{name}"] / 48, atol=1e-6)


def test_padding_does_not_change_a_step():
    a = run(plan(sgd(steps=1, batches_per_step="all")), session=Linear(batch=48))
    b = run(plan(sgd(steps=1, batches_per_step="all")), session=Linear(batch=7))
    for name in a.state.tensors:
        np.testing.assert_allclose(a.state.tensors[name], b.state.tensors[name], atol=1e-6)


def test_rows_without_weight_are_left_out():
    zero = {n: np.concatenate([v, v[:5]]) for n, v in TRAIN.items()}
    zero["weight"][-5:] = 0
    assert same(run(plan(sgd())).state, run(plan(sgd()), train=zero).state)
    with pytest.raises(NoExamplesError):
        run(plan(sgd()), train={**TRAIN, "weight": np.zeros(48, np.float32)})


def test_fedprox_limits():
    free = run(plan(sgd(lr=0.1)))
    assert same(free.state, run(plan(sgd(lr=0.1, mu=0.0, anchor="global"))).state)
    held = run(plan(sgd(lr=0.1, mu=1e12, anchor="global", prox="implicit"), guard={"tolerance": 9.0}))
    assert max(np.abs(v).max() for v in held.state.tensors.values()) < 1e-6
    some = run(plan(sgd(lr=0.1, mu=1.0, anchor="global")))
    norm = [np.linalg.norm(r.state.tensors["head.weight"]) for r in (held, some, free)]
    assert norm[0] < norm[1] < norm[2]


def test_ditto_trains_a_personal_copy_beside_the_shared_tensors():
    """Li 2021: lambda = 0 is local training; the guard measures what is served."""
    shared = sgd(lr=0.1, group=["role:shared"])
    ditto = {**shared, "trains": "mine", "mu": 0.0, "anchor": "global", "start_from": "initial"}
    report = run(plan(shared, ditto, serve="mine"))
    local = run(plan(shared))
    assert np.linalg.norm(report.state.copies["mine"]["head.weight"]) > 0
    assert np.array_equal(report.state.tensors["head.weight"], local.state.tensors["head.weight"])
    assert not report.state.tensors["head.bias"].any()
    strong = run(
        plan(shared, {**ditto, "mu": 1e12, "prox": "implicit"}, serve="mine", guard={"tolerance": 9})
    )
    assert np.abs(strong.state.copies["mine"]["head.weight"]).max() < 1e-6


def test_copies_survive_saving(store):
    p = plan(sgd(trains="mine"), serve="mine")
    first = trainer(p).personalize(TRAIN, HELD, store)
    loaded = store.load().state
    assert np.array_equal(loaded.copies["mine"]["head.bias"], first.state.copies["mine"]["head.bias"])
    second = trainer(p).personalize(TRAIN, HELD, store)
    assert second.before == pytest.approx(first.after)


def test_fedrep_trains_only_its_group_in_each_phase():
    only = run(plan(sgd(group=["role:personal"])))
    assert not only.state.tensors["head.weight"].any()
    assert only.state.tensors["head.bias"].any()
    both = run(plan(sgd(group=["role:personal"]), sgd(group=["head.w*"])))
    assert np.array_equal(both.state.tensors["head.bias"], only.state.tensors["head.bias"])
    assert both.state.tensors["head.weight"].any()


def test_per_fedavg_with_step_zero_takes_the_plain_gradient():
    """Fallah 2020, first order: alpha = 0 is FedAvg (full batches, as B1 and B2 are otherwise different)."""
    zero = sgd(evaluate_at={"kind": "lookahead", "step": 0.0}, batches_per_step="all", steps=3)
    a, b = run(plan(zero)), run(plan(sgd(batches_per_step="all", steps=3)))
    for name in a.state.tensors:
        np.testing.assert_allclose(a.state.tensors[name], b.state.tensors[name], atol=1e-6)
    assert not same(a.state, run(plan({**zero, "evaluate_at": {"kind": "lookahead", "step": 0.5}})).state)


def test_mix_limits():
    at = {"kind": "mix", "other": "initial"}
    assert same(run(plan(sgd())).state, run(plan(sgd(evaluate_at={**at, "alpha": 1.0}))).state)
    serve_global = run(plan(sgd(), serve={**at, "alpha": 0.0}))
    assert serve_global.after == serve_global.before
    assert serve_global.status == "kept"


def test_pfedme_outer_step_moves_towards_the_inner_solution():
    inner = sgd(lr=0.05, steps=5, trains="inner", start_from="theta", mu=15.0, anchor="theta")
    outer = {"kind": "move", "toward": "inner", "rate": 0.2}
    report = run(plan({"kind": "repeat", "times": 3, "phases": [inner, outer]}))
    assert report.steps == 15
    assert report.status == "adopted"
    one = run(plan(inner, {**outer, "rate": 1.0}, serve="theta"))
    assert np.array_equal(one.state.tensors["head.bias"], one.state.copies["inner"]["head.bias"])


def test_control_and_mask_and_mu_sets():
    sets = {
        "c": {"head.weight": np.full((3, 4), 2, np.float32), "head.bias": np.zeros(3, np.float32)},
        "m": {"head.weight": np.zeros((3, 4), np.float32), "head.bias": np.ones(3, np.float32)},
        "fisher": {"head.weight": np.full(1, 3, np.float32), "head.bias": np.zeros(3, np.float32)},
    }
    plain = run(plan(sgd(lr=0.1, steps=1))).state
    moved = run(plan(sgd(lr=0.1, steps=1, control="c"), guard={"tolerance": 9.0}), sets=sets).state
    np.testing.assert_allclose(moved.tensors["head.weight"], plain.tensors["head.weight"] - 0.2, atol=1e-6)
    masked = run(plan(sgd(mask="m")), sets=sets).state
    assert not masked.tensors["head.weight"].any()
    ewc = run(plan(sgd(lr=0.1, mu="fisher", anchor="initial")), sets=sets).state
    free = run(plan(sgd(lr=0.1))).state
    assert np.linalg.norm(ewc.tensors["head.weight"]) < np.linalg.norm(free.tensors["head.weight"])


def test_plan_errors_are_found_before_training():
    with pytest.raises(UnknownNameError, match=r"head\.wieght"):
        trainer(plan(sgd(group=["head.wieght"])))
    with pytest.raises(UnknownNameError, match="globl"):
        trainer(plan(sgd(mu=0.1, anchor="globl")))
    with pytest.raises(UnknownNameError, match="memory"):
        trainer(plan({"kind": "memorize"}))
    with pytest.raises(ConfigError, match="top9"):
        run(plan(sgd(), guard={"metric": "top9"}))
    with pytest.raises(ConfigError, match="encoder"):
        run(plan(sgd()), train=["a b"])
    with pytest.raises(ConfigError, match="never leave"):
        trainer(plan(sgd(), upload=["role:personal"]))
    with pytest.raises(TensorMismatchError, match=r"toward has no tensor 'head\.bias'"):
        run(plan(sgd(start_from="half")), sets={"half": {"head.weight": np.zeros((3, 4), np.float32)}})
    session = Unigram()
    with pytest.raises(ConfigError, match="no gradient trains"):
        trainer(plan(sgd(group=["slots.*"])), session)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(TensorMismatchError, match="labels"):
        run(plan(sgd()), train={k: v for k, v in TRAIN.items() if k != "labels"})
    with pytest.raises(TensorMismatchError, match="float64"):
        run(plan(sgd()), train={**TRAIN, "x": TRAIN["x"].astype(np.float64)})
    with pytest.raises(TensorMismatchError, match="5"):
        run(plan(sgd()), train={**TRAIN, "x": np.zeros((48, 5), np.float32)})
    with pytest.raises(DataError, match="negative"):
        run(plan(sgd()), train={**TRAIN, "weight": -TRAIN["weight"]})
    with pytest.raises(TensorMismatchError, match=r"head\.bias"):
        LocalTrainer(Linear(), plan(sgd()), Linear.tensors, {"head.weight": np.zeros((3, 4), np.float32)})


def test_nan_gradient_keeps_the_old_state(store):
    trainer(plan(sgd())).personalize(TRAIN, HELD, store)
    session = Linear()
    session.poison_at = 4
    with pytest.raises(NonFiniteError, match=r"head\.weight"):
        trainer(plan(sgd()), session, checkpoint_every=1).personalize(TRAIN, HELD, store)
    assert store.current == 1
    assert not store.checkpoint_path().exists()


def test_diverging_training_is_an_error():
    with pytest.raises(NonFiniteError):
        run(plan(sgd(lr=3e38, steps=5)), train={**TRAIN, "x": TRAIN["x"] * 1000})


def test_cancel_leaves_the_last_good_state(store):
    trainer(plan(sgd())).personalize(TRAIN, HELD, store)
    event = threading.Event()
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.step == 3:
            event.set()

    report = trainer(plan(sgd())).personalize(TRAIN, HELD, store, on_progress=stop, cancel=event)
    assert (report.status, report.steps, len(seen)) == ("cancelled", 3, 3)
    assert store.current == 1
    assert trainer(plan(sgd())).personalize(TRAIN, HELD, cancel=event).steps == 0


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 9])
def test_resuming_gives_the_bits_of_an_uninterrupted_run(store, stop_at):
    adam = {"kind": "adamw", "lr": 0.05}
    p = plan(
        sgd(steps=5, schedule="linear", mu=0.1, anchor="start"),
        sgd(steps=5, optimizer=adam, trains="c"),
        serve="c",
    )
    expected = run(p)
    event = threading.Event()
    t = trainer(p, checkpoint_every=100)
    stop = lambda progress: progress.step == stop_at and event.set()  # noqa: E731
    assert t.personalize(TRAIN, HELD, store, on_progress=stop, cancel=event).status == "cancelled"
    report = t.personalize(TRAIN, HELD, store)
    assert report.resumed_at == stop_at
    assert report.losses == expected.losses
    assert same(report.state, expected.state)
    for name, value in expected.state.copies["c"].items():
        assert np.array_equal(value, report.state.copies["c"][name])
    assert not store.checkpoint_path().exists()


def test_checkpoint_of_another_job_is_discarded_and_reported(store):
    event = threading.Event()
    t = trainer(plan(sgd()), checkpoint_every=1)
    t.personalize(TRAIN, HELD, store, on_progress=lambda p: event.set(), cancel=event)
    other = trainer(plan(sgd(lr=0.2)), checkpoint_every=1).personalize(TRAIN, HELD, store)
    assert other.resumed_at is None
    assert "discarded" in other.notes[0]
    store.checkpoint_path().write_bytes(b"nonsense")
    assert "could not be read" in t.personalize(TRAIN, HELD, store).notes[0]


def test_start_initial_trains_afresh(store):
    p = plan(sgd(steps=5), start="initial", guard={"tolerance": 9.0})
    first = trainer(p).personalize(TRAIN, HELD, store)
    again = trainer(p).personalize(TRAIN, HELD, store)
    assert again.version == 2
    assert same(first.state, again.state)


TEXTS = ["a b zoe", "b zoe", "a tim zoe c", "tim a", "b a", "zoe b c", "once a"] * 3


def test_slots_and_memory_phases():
    session = Unigram()
    p = plan(
        {"kind": "assign_slots", "module": "slots"},
        {"kind": "memorize", "module": "memory"},
        sgd(lr=0.5, steps=None, epochs=4),
        guard={"metric": "top1"},
    )
    report = trainer(p, session, encoder=Words()).personalize(TEXTS[:15], TEXTS[15:])
    words = report.words if report.adopted else ()
    assert words == ("zoe", "tim", "once")
    state = report.state.tensors
    assert state["slots.active"].tolist() == [1, 1, 1]
    # The last 16 label positions of the training texts, as a ring.
    labels = [w for t in TEXTS[:15] for w in t.split()]
    ids = {w: i for i, w in enumerate((*Words.known, *words))}
    ring = [0] * 16
    for j, w in enumerate(labels):
        ring[j % 16] = ids[w]
    assert state["memory.next"].tolist() == ring
    assert report.steps == 4 * 4
    # Words keep their slots in the next run.
    again = trainer(p, session, encoder=Words()).personalize(TEXTS[:15], TEXTS[15:], report.state)
    assert again.words[:3] == words


def test_a_loss_is_compared_on_the_same_labels_before_and_after_slots():
    session = Unigram()
    p = plan({"kind": "assign_slots"}, guard={"tolerance": 99.0})
    report = trainer(p, session, encoder=Words()).personalize(TEXTS[:15], TEXTS[15:])
    # Assigned slots only take probability from the eight base words: ln 8 becomes ln 11.
    assert report.before["loss"] == pytest.approx(np.log(8), rel=1e-5)
    assert report.after["loss"] == pytest.approx(np.log(11), rel=1e-5)


def test_memory_only_plan_needs_no_steps():
    session = Unigram()
    p = plan({"kind": "memorize"})
    report = trainer(p, session, encoder=Words()).personalize(TEXTS[:15], TEXTS[15:])
    assert (report.status, report.steps, report.ms_per_step) == ("adopted", 0, None)


def test_held_out_examples_are_memorized_once_adopted():
    session = Unigram()
    p = plan({"kind": "memorize"}, guard={"metric": "top1"}, remember_holdout=True)
    report = trainer(p, session, encoder=Words()).personalize(TEXTS[:15], TEXTS[15:])
    everything = trainer(plan({"kind": "memorize"}), session, encoder=Words()).personalize(TEXTS, TEXTS[15:])
    assert report.adopted
    for name in ("memory.next", "memory.context"):
        assert np.array_equal(report.state.tensors[name], everything.state.tensors[name])
    # the guard measured the memory without them
    only = trainer(plan({"kind": "memorize"}, guard={"metric": "top1"}), session, encoder=Words())
    assert report.after == only.personalize(TEXTS[:15], TEXTS[15:]).after


def test_max_steps_ends_epochs_and_their_schedule_early():
    long = run(plan(sgd(steps=None, epochs=4, max_steps=5, schedule="linear"), seed=1))
    short = run(plan(sgd(steps=5, schedule="linear"), seed=1))
    assert long.steps == 5
    assert same(long.state, short.state)
    assert run(plan(sgd(steps=None, epochs=1, max_steps=500))).steps == 6


def test_state_in_memory_is_gone_on_from():
    first = run(plan(sgd()))
    second = run(plan(sgd()), first.state)
    assert isinstance(second.state, PersonalState)
    assert second.before == first.after
    assert sum(len(b["weight"]) for b in padded_batches(HELD, 5)) == 15


def test_what_was_trained_is_told_although_the_guard_keeps_the_old_state():
    t = trainer(plan(sgd(steps=5, lr=0.1)))
    held = {**HELD, "labels": (HELD["labels"] + 1) % 3}  # whatever is learned is wrong here
    report = t.personalize(TRAIN, held)
    assert report.status == "kept"
    assert report.state is None
    assert report.trained is not None
    assert np.abs(report.trained.tensors["head.weight"]).max() > 0
    assert report.trained.copies_before == {}


def test_a_skipped_or_cancelled_job_has_trained_nothing():
    skipped = trainer(plan(sgd(), guard={"min_examples": 10_000})).personalize(TRAIN, HELD)
    stop = threading.Event()
    stop.set()
    cancelled = trainer(plan(sgd())).personalize(TRAIN, HELD, cancel=stop)
    assert (skipped.status, skipped.trained) == ("skipped", None)
    assert (cancelled.status, cancelled.trained) == ("cancelled", None)


def test_a_state_that_is_not_published_serves_only_once_it_is_adopted(tmp_path):
    store = PersonalStateStore(tmp_path, ModelId.of("m", "1", Linear.tensors))
    report = trainer(plan(sgd())).personalize(TRAIN, HELD, store, publish=False)
    assert (report.status, report.version, store.current) == ("adopted", 1, 0)
    store.adopt(report.version)
    assert store.current == 1
    with pytest.raises(StateError, match="no version 7"):
        store.adopt(7)


# -- what the bundle allows


@pytest.mark.parametrize(
    "phases", [[sgd(steps=6)], [sgd(steps=3), sgd(steps=3)], [sgd(steps=None, epochs=6)]], ids=str
)
def test_a_plan_of_more_steps_than_the_bundle_allows_is_not_begun(phases, tmp_path):
    def trainer(most):
        session = Linear()
        made = LocalTrainer(session, plan(*phases), session.tensors, session.initial(), most=Most(steps=most))
        return made, session

    made, session = trainer(5)
    store = PersonalStateStore(tmp_path / "s", ModelId.of("m", "1", Linear.tensors))
    with pytest.raises(TooManyStepsError, match="makes 6 steps on these examples, the bundle allows 5"):
        made.personalize(linear_rows(8), linear_rows(4), store)
    assert session.calls == 0
    assert store.load().state is None
    made, _ = trainer(6)
    assert made.personalize(linear_rows(8), linear_rows(4), store).steps == 6


def test_training_that_takes_longer_than_the_bundle_allows_stops_and_can_go_on(tmp_path):
    session = Linear()
    store = PersonalStateStore(tmp_path / "s", ModelId.of("m", "1", Linear.tensors))

    def trainer(seconds):
        return LocalTrainer(
            session,
            plan(sgd(steps=9)),
            session.tensors,
            session.initial(),
            checkpoint_every=100,
            most=Most(seconds=seconds),
        )

    for step in (1, 2):
        with pytest.raises(TooSlowError, match=f"step {step} of 9"):
            trainer(1e-9).personalize(linear_rows(8), linear_rows(4), store)
        assert store.load().state is None
    report = trainer(600).personalize(linear_rows(8), linear_rows(4), store)
    assert (report.resumed_at, report.steps) == (2, 9)


def test_the_last_step_is_never_too_late():
    session = Linear()
    made = LocalTrainer(
        session, plan(sgd(steps=1)), session.tensors, session.initial(), most=Most(seconds=1e-9)
    )
    assert made.personalize(linear_rows(8), linear_rows(4)).steps == 1

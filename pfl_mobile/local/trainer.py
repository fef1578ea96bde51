"""Trains a personal state by a plan, on any engine, and adopts it only if the guard agrees.

Killed or cancelled at any moment, the last good state stays. With ``checkpoint_every`` a later call with the
same plan and examples goes on from the last checkpoint (bit for bit as if never stopped); without it, or with
other examples, training starts again from the last good state.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.errors import (
    ConfigError,
    NonFiniteError,
    TensorMismatchError,
    TooManyStepsError,
    TooSlowError,
    TrainingError,
)
from pfl_mobile.files.sealed import digest
from pfl_mobile.local import checkpoint, guard
from pfl_mobile.local.phases import PhaseContext, Work, kept_copies, remember, run_phases, served
from pfl_mobile.local.report import Cancel, Progress, Trained, TrainReport
from pfl_mobile.local.session import Encoder, Programs, TrainingSession
from pfl_mobile.local.state import Loaded, PersonalState, PersonalStateStore
from pfl_mobile.plan.check import check_plan
from pfl_mobile.rows import Rows, check_rows

if TYPE_CHECKING:
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.select import TensorEntry
    from pfl_mobile.text.blocked import BlockList

#: Rows of arrays, or texts for the encoder; oldest first.
Examples = Mapping[str, np.ndarray] | Sequence[str]


@dataclass(frozen=True)
class Most:
    """What training on a device must not exceed; None for no limit.

    Attributes:
        steps: optimizer steps of the whole plan.
        seconds: of one call of ``personalize``, up to the step after which it ends.
    """

    steps: int | None = None
    seconds: float | None = None


class LocalTrainer:
    """The device side for one loaded bundle.

    Args:
        session: engine with ``gradients`` and ``evaluate``.
        plan: what to do.
        tensors: the manifest's device tensors.
        initial: their shipped values.
        encoder: for examples given as texts.
        sets: arrays that the plan names: ``global`` (the aggregator's latest values), controls, masks, ...
        checkpoint_every: steps between checkpoints; None for none. Needs a store.
        most: what it must not exceed, as the bundle says.

    Raises:
        ConfigError: the plan does not fit the tensors.
        TensorMismatchError: ``initial`` does not fit the tensors.
    """

    def __init__(
        self,
        session: TrainingSession,
        plan: Plan,
        tensors: Sequence[TensorEntry],
        initial: Mapping[str, np.ndarray],
        *,
        encoder: Encoder | None = None,
        sets: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        checkpoint_every: int | None = None,
        most: Most | None = None,
    ) -> None:
        """Check that plan, tensors and values fit together."""
        for tensor in tensors:
            value = initial.get(tensor.name)
            if value is None or value.shape != tuple(tensor.shape) or value.dtype.name != tensor.dtype:
                found = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise TensorMismatchError(
                    f"the initial value of {tensor.name!r} is {found}, "
                    f"not {tensor.dtype} {list(tensor.shape)}",
                    mend="take the initial values from the same bundle as the table of tensors",
                )
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ConfigError(f"checkpoint_every is {checkpoint_every}", mend="give 1 or more, or None")
        self.plan = plan
        self.tensors = tuple(tensors)
        self.initial = {t.name: initial[t.name] for t in tensors}
        self.encoder = encoder
        self.sets = {"initial": self.initial, **(sets or {})}
        self.sets["global"] = {**self.initial, **self.sets.get("global", {})}
        self.checkpoint_every, self.most = checkpoint_every, most or Most()
        self.programs = Programs(session, [t.name for t in tensors])
        check_plan(plan, self.tensors, self.sets, [])

    def evaluate(self, examples: Examples, state: PersonalState | None = None) -> dict[str, float]:
        """Metrics of a state (None: the shipped values) on examples, as the guard measures them.

        With texts, labels outside the vocabulary are left out where the guard compares a loss, and count as
        misses where it compares a recall.
        """
        work = self._work(state)
        return self._measure(self._holdout(examples, work.words), work)

    def personalize(
        self,
        train: Examples,
        holdout: Examples,
        state: PersonalStateStore | PersonalState | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
        publish: bool = True,
    ) -> TrainReport:
        """Train, measure, and adopt the result if it is better.

        Args:
            train: rows or texts, oldest first.
            holdout: the newest examples, never trained on; memorized after adoption if the plan asks for it.
            state: a store: training continues from its current version and saves the result in it; or a state in
                memory; or None for the shipped values.
            on_progress: called after each step.
            cancel: asked after each step.
            publish: False writes an adopted state into the store, but leaves the old one current until
                ``store.adopt(report.version)``.

        Raises:
            NonFiniteError: training diverged; the old state stays.
            NoExamplesError: no training row has a positive weight.
            TooManyStepsError, TooSlowError: the limits; the old state stays.
            StateError, StorageFullError: the store; the old state stays.
        """
        store = state if isinstance(state, PersonalStateStore) else None
        with store.hold() if store else contextlib.nullcontext():
            loaded = store.load() if store else Loaded(state if isinstance(state, PersonalState) else None, 0)
            trainer = self if store is None else self._without(store.blocked)
            return _Run(trainer, train, holdout, store, loaded, on_progress, cancel, publish).run()

    def _without(self, blocked: BlockList) -> LocalTrainer:
        """This trainer for a user who wants these words forgotten."""
        if not blocked or self.encoder is None:
            return self
        found = copy.copy(self)
        found.encoder = self.encoder.with_blocked(blocked)
        return found

    def _work(self, state: PersonalState | None) -> Work:
        return Work(dict(self.initial)) if state is None else Work.of(state, self.initial)

    def _measure(self, rows: Rows, work: Work) -> dict[str, float]:
        return self.programs.evaluate(rows, served(self.plan, work, self.sets))

    def _encode(self, examples: Examples, words: tuple[str, ...], drop_unknown: bool, what: str) -> Rows:
        if isinstance(examples, Mapping):
            rows = dict(examples)
        elif self.encoder is None:
            raise ConfigError(
                f"the {what} examples are texts but there is no encoder", mend="give an encoder"
            )
        else:
            rows = dict(self.encoder.with_words(words).encode(examples, drop_unknown=drop_unknown))
        check_rows(rows, f"{what} rows")
        self.programs.check(rows)
        return rows

    def _holdout(self, examples: Examples, words: tuple[str, ...]) -> Rows:
        return self._encode(examples, words, self.plan.guard.lower_is_better, "holdout")


class _Run:
    """One call of ``personalize``."""

    def __init__(
        self,
        trainer: LocalTrainer,
        train: Examples,
        holdout: Examples,
        store: PersonalStateStore | None,
        loaded: Loaded,
        on_progress: Callable[[Progress], None] | None,
        cancel: Cancel | None,
        publish: bool,
    ) -> None:
        self.publish = publish
        self.trainer, self.train, self.store, self.loaded = trainer, train, store, loaded
        self.on_progress, self.cancel, self.holdout_examples = on_progress, cancel, holdout
        self.plan = trainer.plan
        self.began = time.perf_counter()
        self.times: list[float] = []
        self.notes: list[str] = []
        self.resumed_at: int | None = None
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}

    def run(self) -> TrainReport:
        trainer, plan = self.trainer, self.plan
        old = trainer._work(self.loaded.state)
        rows = trainer._holdout(self.holdout_examples, old.words)
        examples = (
            len(rows["weight"]) if isinstance(self.holdout_examples, Mapping) else len(self.holdout_examples)
        )
        value = shipped = None
        if rows["weight"].sum() > 0:
            self.before = trainer._measure(rows, old)
            value = shipped = self._metric(self.before)
            if plan.guard.appeal is not None:
                work = Work(dict(trainer.sets["global"]))
                shipped = self._metric(trainer._measure(trainer._holdout(self.holdout_examples, ()), work))
        stop = guard.before_training(plan.guard, value, shipped, examples)
        if stop is not None:
            return self._report("skipped", stop, None)
        done, work = self._train(old)
        if not done:
            return self._report("cancelled", None, work)
        self.after = trainer._measure(self._holdout_after(rows, work), work)
        decision = guard.decide(
            plan.guard, self.before[plan.guard.metric], self._metric(self.after), examples
        )
        version, state = self.loaded.version, self.loaded.state
        tensors = dict(work.tensors)
        if decision.adopted:
            self._remember_holdout(work)
            state = PersonalState(work.tensors, kept_copies(plan, work), work.words, self.after)
            version = 0
            if self.store:
                version = self.store.save(state) if self.publish else self.store.write(state)
        if self.store:
            checkpoint.discard(self.store.checkpoint_path())
        before = {} if self.loaded.state is None else self.loaded.state.copies
        trained = Trained(tensors, work.copies, before)
        return self._report(
            "adopted" if decision.adopted else "kept", decision, work, state, version, trained
        )

    def _train(self, old: Work) -> tuple[bool, Work]:
        """Whether training ran to its end (False: cancelled), and what it gave."""
        trainer, plan = self.trainer, self.plan
        start = old if plan.start == "current" else Work(dict(trainer.initial))
        rows = trainer._encode(self.train, start.words, True, "training")
        job = self._job(rows)
        work = self._resume(job) or start
        texts = None if isinstance(self.train, Mapping) else self.train
        encoder = None if trainer.encoder is None else trainer.encoder.with_words(work.words)
        if work.words != start.words and encoder is not None and texts is not None:
            rows = trainer._encode(self.train, work.words, True, "training")
        context = PhaseContext(
            trainer.programs, trainer.tensors, trainer.sets, plan.seed, lambda *_: True, rows, encoder, texts
        )

        def after_step(now: Work, loss: float, seconds: float) -> bool:
            self.times.append(seconds)
            of = context.total_steps(plan)
            self._check_steps(of)  # words that got a slot may have brought more rows
            if self.on_progress:
                self.on_progress(Progress(now.done, of, loss, time.perf_counter() - self.began))
            stopping = self.cancel is not None and self.cancel.is_set()
            every = trainer.checkpoint_every
            late = now.done < of and self._is_late()
            if every and self.store and (stopping or late or now.done % every == 0):
                checkpoint.save(self.store.checkpoint_path(), now, job)
            if late and not stopping:
                raise TooSlowError(
                    f"training was stopped at step {now.done} of {of}: it took longer than the "
                    f"{trainer.most.seconds:g} seconds that the bundle allows",
                    mend="go on later where the state is kept in a folder, or take another engine or a shorter plan",
                )
            return not stopping

        context.after_step = after_step
        self._check_steps(context.total_steps(plan))
        if self.cancel is not None and self.cancel.is_set():
            return False, work
        try:
            return run_phases(plan, work, context), work
        except NonFiniteError:
            if self.store:  # going on from the checkpoint would only diverge again
                checkpoint.discard(self.store.checkpoint_path())
            raise

    def _check_steps(self, steps: int) -> None:
        most = self.trainer.most.steps
        if most is not None and steps > most:
            raise TooManyStepsError(
                f"the plan makes {steps} steps on these examples, the bundle allows {most}",
                mend="give the plan's phases max_steps or fewer epochs, or export the bundle with another limit",
            )

    def _is_late(self) -> bool:
        most = self.trainer.most.seconds
        return most is not None and time.perf_counter() - self.began > most

    def _remember_holdout(self, work: Work) -> None:
        """Run what remembers examples again with all of them, where the plan asks for it."""
        plan, trainer = self.plan, self.trainer
        if not plan.remember_holdout or not any(phase.remembers for phase in plan.distinct_steps()):
            return
        parts = [
            trainer._encode(examples, work.words, True, "training")
            for examples in (self.train, self.holdout_examples)
        ]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        every = PhaseContext(
            trainer.programs, trainer.tensors, trainer.sets, plan.seed, lambda *_: True, rows
        )
        remember(plan, work, every)

    def _resume(self, job: str) -> Work | None:
        if self.store is None or self.trainer.checkpoint_every is None:
            return None
        work, why = checkpoint.load(self.store.checkpoint_path(), job)
        if why is not None:
            self.notes.append(why)
            checkpoint.discard(self.store.checkpoint_path())
        if work is not None:
            self.resumed_at = work.done
        return work

    def _job(self, rows: Rows) -> str:
        if self.store is None or self.trainer.checkpoint_every is None:
            return ""
        texts = "" if isinstance(self.train, Mapping) else "\0".join(self.train)
        model = self.store.model
        parts = (self.plan.dump(), model.name, model.version, model.fingerprint, str(self.loaded.version))
        return checkpoint.job_key((*parts, digest(rows), texts), self.trainer.sets)

    def _holdout_after(self, before: Rows, work: Work) -> Rows:
        """The held-out rows for the trained state.

        A loss is compared on the same labels as before, so words that have just got a slot do not count.
        """
        if isinstance(self.holdout_examples, Mapping):
            return before
        rows = self.trainer._holdout(self.holdout_examples, work.words)
        if self.plan.guard.lower_is_better:
            if rows["weight"].shape != before["weight"].shape:
                raise TrainingError(
                    "the encoder gives other rows once slots have words", mend="use an encoder of fixed rows"
                )
            rows["weight"] = before["weight"]
        return rows

    def _metric(self, metrics: Mapping[str, float]) -> float:
        name = self.plan.guard.metric
        if name not in metrics:
            raise ConfigError(
                f"the guard's metric {name!r} is not one that the bundle measures",
                mend=f"use one of {', '.join(sorted(metrics))}",
            )
        return metrics[name]

    def _report(
        self,
        status: Any,
        decision: guard.GuardReport | None,
        work: Work | None,
        state: PersonalState | None = None,
        version: int | None = None,
        trained: Trained | None = None,
    ) -> TrainReport:
        kept = status != "adopted"
        state = self.loaded.state if kept else state
        return TrainReport(
            status=status,
            guard=decision,
            state=state,
            version=None if self.store is None else (self.loaded.version if kept else version),
            before=self.before,
            after=self.after,
            steps=work.done if work else 0,
            losses=tuple(work.losses) if work else (),
            seconds=time.perf_counter() - self.began,
            ms_per_step=1000 * statistics.median(self.times) if self.times else None,
            words=state.words if state else (),
            reports=dict(work.reports) if work else {},
            resumed_at=self.resumed_at,
            warnings=self.loaded.warnings,
            notes=tuple(self.notes),
            trained=trained,
        )

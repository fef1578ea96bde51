"""One task, from the values that were downloaded to an update that may be sent; nothing here uses the network.

    task -> may it be done? -> train by its plan -> guard -> change -> clip, noise -> update file

What is sent is the change that training made, whatever the guard decided: the guard is about the personal state, which
stays here, and an aggregator that got only changes that helped would learn from lucky devices alone. Training that
diverged, or that was not done at all, sends nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.device.privacy import PrivacyPolicy, Protected, protect
from pfl_mobile.errors import (
    ConfigError,
    NoExamplesError,
    NonFiniteError,
    StateError,
    StorageFullError,
    TooManyStepsError,
    TooSlowError,
)
from pfl_mobile.local.measure import metric_sums
from pfl_mobile.local.parts import Parts, count_examples, parts
from pfl_mobile.local.phases import Work, served
from pfl_mobile.local.session import Programs
from pfl_mobile.local.state import PersonalState
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.upload import change, check_sends
from pfl_mobile.protocol.bodies import EvaluationReport, MetricSum, UpdateHead
from pfl_mobile.protocol.update_file import encode, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.device.model import Model
    from pfl_mobile.device.sent import SentNoise
    from pfl_mobile.local.measure import MetricSums
    from pfl_mobile.local.report import Cancel, Progress, TrainReport
    from pfl_mobile.local.state import PersonalStateStore
    from pfl_mobile.local.trainer import Examples
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.privacy import Noise
    from pfl_mobile.protocol.bodies import RoundTask

Sets = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class TaskResult:
    """A finished task.

    Attributes:
        update: the update file.
        protected: its values, norm, and whether they were clipped.
        evaluation: the report; None where none is asked for or may be sent.
        adopts: the version of the personal state that is to serve now; None where the old one stays.
        copies: names of the copies whose change is in the update.
        report: of the trainer.
    """

    update: bytes
    protected: Protected
    evaluation: EvaluationReport | None
    adopts: int | None
    copies: tuple[str, ...]
    report: TrainReport


class DeclineTask(Exception):
    """No update comes of this task: one of the protocol's reasons, and why in words."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason, self.why = reason, why


class Pipeline:
    """Carries out tasks on one device.

    Args:
        model: checked programs.
        examples: of the user, oldest first; the newest part is for testing and nothing else.
        store: the personal state.
        sent: what left the device under its own noise.
        policy: what must protect updates.
        test: share of the examples to test on.
        checkpoint_every: steps between checkpoints of training; None for none.
        noise: of the device; None for the secure source.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        store: PersonalStateStore,
        sent: SentNoise,
        *,
        policy: PrivacyPolicy | None = None,
        test: float = 0.2,
        checkpoint_every: int | None = 20,
        noise: Noise | None = None,
    ) -> None:
        """Nothing is trained yet."""
        self.model, self.examples, self.store = model, examples, store
        self.sent, self.policy = sent, policy or PrivacyPolicy()
        self.test, self.checkpoint_every, self.noise = test, checkpoint_every, noise

    def training_examples(self) -> int:
        """How many there are to train on, rounded down to two digits, as a check-in tells it."""
        if count_examples(self.examples) < 2:
            return 0
        count = count_examples(parts(self.examples, test=self.test, most=self.model.most).train)
        unit: int = 10 ** max(len(str(count)) - 2, 0)
        return count // unit * unit

    def accept(self, task: RoundTask) -> tuple[Plan, UpdateLayout]:
        """Look at a task before anything is downloaded for it.

        Raises:
            DeclineTask: it must not be done, or cannot.
        """
        refusal = self.policy.refusal(task.privacy, task.reports, self.sent)
        if refusal is not None:
            raise DeclineTask("privacy", refusal)
        try:
            plan = Plan.load(json.dumps(task.plan))
            check_sends(plan, self.model.tensors)
            layout = layout_of(plan, self.model.tensors)  # never a personal tensor
        except ConfigError as error:
            raise DeclineTask("plan", error.message) from error
        asked = [(t.name, tuple(t.shape)) for t in task.layout]
        if not asked or asked != list(layout.shapes.items()):
            raise DeclineTask("plan", "the task asks for other tensors than its plan sends")
        return plan, layout

    def carry_out(
        self,
        task: RoundTask,
        sets: Sets,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
    ) -> TaskResult | None:
        """Train, and make the update; None when cancelled.

        The store then holds the new personal state, which serves once ``store.adopt(done.adopts)`` is called: after
        the update is safe, so that a crash repeats both or none.

        Raises:
            DeclineTask: there is no update to send.
            EngineError: the engine failed; this device cannot train.
        """
        plan, layout = self.accept(task)
        try:
            cut = parts(self.examples, test=self.test, holdout=plan.holdout, most=self.model.most)
            trainer = LocalTrainer(
                self.model.session,
                plan,
                self.model.tensors,
                self.model.initial,
                encoder=self.model.encoder,
                sets=sets,
                checkpoint_every=self.checkpoint_every,
                most=self.model.work,
            )
            report = trainer.personalize(
                cut.train, cut.holdout, self.store, on_progress=on_progress, cancel=cancel, publish=False
            )
            if report.status == "cancelled":
                return None
            return self._finish(task, plan, layout, cut, trainer, report)
        except NoExamplesError as error:
            raise DeclineTask("no_examples", error.message) from error
        except NonFiniteError as error:
            raise DeclineTask("diverged", error.message) from error
        except (ConfigError, TooManyStepsError) as error:
            raise DeclineTask("plan", error.message) from error
        except TooSlowError as error:
            raise DeclineTask("too_slow", error.message) from error
        except StorageFullError as error:
            raise DeclineTask("storage", error.message) from error
        except MemoryError as error:
            raise DeclineTask("out_of_memory", "there is not enough memory to train") from error

    def _finish(
        self,
        task: RoundTask,
        plan: Plan,
        layout: UpdateLayout,
        cut: Parts,
        trainer: LocalTrainer,
        report: TrainReport,
    ) -> TaskResult:
        trained, guard = report.trained, report.guard
        if trained is None:
            enough = guard is not None and guard.reason == "good_enough"
            reason = "good_enough" if enough else "no_examples"
            raise DeclineTask(reason, f"nothing was trained: {guard.reason if guard else report.status}")
        if report.steps == 0:
            raise DeclineTask("plan", "the plan trains nothing, so there is nothing to send")
        if guard is not None and guard.reason == "not_finite":
            raise DeclineTask("diverged", f"{guard.metric} is not finite after training")
        missing = [name for name in task.reports if name not in report.reports]
        if missing:
            raise DeclineTask("plan", f"the plan measures no {missing[0]!r}, which the task asks for")
        before = trainer.sets["global"], trained.copies_before
        found = change(plan, self.model.tensors, before, (trained.tensors, trained.copies))
        flat = np.empty(layout.size, np.float32)
        layout.pack(found, flat)
        protected = protect(flat, task.privacy, self.noise)
        head = UpdateHead(
            task=task.id,
            round=task.round,
            version=task.version,
            examples=_count_trained(cut.train),
            steps=report.steps,
            # Where the device hides its update itself, this bit of the update before the noise stays here too.
            clipped=protected.clipped and not task.privacy.local_noise_multiplier,
            reports={name: report.reports[name] for name in task.reports},
        )
        update = encode(head, layout.unpack(protected.flat), layout)
        evaluation = None
        if task.evaluate and self.policy.may_report(task.privacy):
            evaluation = evaluation_report(
                *self.measure(plan, trainer, cut.test, report.state), report.adopted
            )
        adopts = self._adopts(plan, report)
        return TaskResult(update, protected, evaluation, adopts, plan.upload_copies, report)

    def _adopts(self, plan: Plan, report: TrainReport) -> int | None:
        """The version that is to serve.

        Copies that are sent (control variates) are kept also where the guard keeps the old state: the aggregator
        counts on them. They do not serve, or they would be the guard's business. ``take_back`` undoes it.
        """
        if report.adopted:
            return report.version
        trained, old = report.trained, report.state
        serve = [plan.serve] if isinstance(plan.serve, str) else [plan.serve.one, plan.serve.other]
        sent = [copy for copy in plan.upload_copies if copy not in serve]
        if trained is None or not sent:
            return None
        old = old or PersonalState({})
        copies = {**old.copies, **{copy: trained.copies[copy] for copy in sent}}
        return self.store.write(PersonalState(old.tensors, copies, old.words, old.metrics))

    def take_back(self, copies: tuple[str, ...], before: int) -> None:
        """Give copies the values of an earlier version again, as the aggregator did not get their change.

        Args:
            copies: their names; the rest of the personal state stays.
            before: the version; 0 where there was none.
        """
        now = self.store.load().state
        if now is None or not copies:
            return
        try:
            old = self.store.read(before).copies if before else {}
        except StateError:
            old = {}  # the version is gone: without a copy the plan begins from zero
        kept = {name: values for name, values in now.copies.items() if name not in copies}
        kept |= {name: old[name] for name in copies if name in old}
        self.store.save(PersonalState(now.tensors, kept, now.words, now.metrics))

    def measure_shared(self, values: Mapping[str, np.ndarray]) -> MetricSums:
        """Sums of the aggregator's values on the test part.

        Raises:
            NoExamplesError: there is nothing to measure on.
        """
        programs = Programs(self.model.session, [t.name for t in self.model.tensors])
        test = parts(self.examples, test=self.test, most=self.model.most).test
        return metric_sums(
            programs, {**self.model.initial, **values}, test, encoder=self.model.encoder, known=()
        )

    def measure(
        self, plan: Plan, trainer: LocalTrainer, test: Examples, state: PersonalState | None
    ) -> tuple[MetricSums, MetricSums]:
        """Sums on the test part: of the values as sent, and of what serves with this personal state.

        A device without a personal state of its own serves the values as sent.
        """
        programs, encoder = trainer.programs, trainer.encoder
        shared = served(plan, Work(dict(trainer.sets["global"])), trainer.sets)
        first = metric_sums(programs, shared, test, encoder=encoder, known=())
        if state is None or not state.tensors:
            return first, first
        own = served(plan, Work.of(state, trainer.initial), trainer.sets)
        second = metric_sums(programs, own, test, encoder=encoder, words=state.words, known=())
        return first, second


def evaluation_report(shared: MetricSums, own: MetricSums, adopted: bool) -> EvaluationReport | None:
    """The report of two measurements; None where no metric is finite in both.

    Labels are counted whole, and at least one: where examples have weights their sum may be anything.
    """
    names = [
        name
        for name in shared
        if name in own and all(math.isfinite(s) and w > 0 for s, w in (shared[name], own[name]))
    ]
    if not names:
        return None
    pairs = [{name: _whole(*sums[name]) for name in names} for sums in (shared, own)]
    return EvaluationReport.model_validate({"global": pairs[0], "personalized": pairs[1], "adopted": adopted})


def _whole(total: float, weight: float) -> MetricSum:
    labels = float(max(round(weight), 1))
    return MetricSum(sum=total / weight * labels if labels != weight else total, weight=labels)


def _count_trained(examples: Examples) -> int:
    if isinstance(examples, Mapping):
        weight = examples["weight"]
        return int((weight.reshape(len(weight), -1).sum(axis=1) > 0).sum())
    return len(examples)

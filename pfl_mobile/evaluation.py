"""How much personalization helps: one user before and after, and many users together.

    with Bundle.open("keyboard-bundle") as bundle, open_session(bundle) as session:
        result = personalize_user(bundle, session, "ann", texts)
        print(result.before["top1"], result.after["top1"])

The newest part of a user's examples is the test part: the trainer never sees it. What the trainer is given
it splits again by the plan (``holdout``), for its guard. Metrics are those of the bundle's ``evaluate``
program: recalls are fractions from 0 to 1, words outside the vocabulary are misses, and the loss is the mean
over the labels that were in the vocabulary before, so that it is of the same labels before and after.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.data.split import split_texts
from pfl_mobile.errors import ConfigError, NoExamplesError
from pfl_mobile.local.batches import holdout_size
from pfl_mobile.local.phases import Work, served
from pfl_mobile.local.plan import LOWER_IS_BETTER, Plan
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer
from pfl_mobile.text import UNK, TextEncoder, WordTokenizer
from pfl_mobile.verification import GoldenReport, golden_check

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines.base import Session
    from pfl_mobile.local.report import Cancel, Progress, TrainReport
    from pfl_mobile.local.trainer import Examples

Sets = Mapping[str, Mapping[str, np.ndarray]]


def text_encoder(bundle: Bundle) -> TextEncoder | None:
    """The encoder that a bundle describes; None for a bundle that takes arrays.

    Raises:
        DataError: its tokenizer is not one of ours.
    """
    encoder, path = bundle.manifest.encoder, bundle.tokenizer_path
    if encoder is None or encoder.kind != "text" or path is None:
        return None
    return TextEncoder(WordTokenizer.load(path), encoder.length, encoder.vocabulary, encoder.slots)


def model_id(bundle: Bundle) -> ModelId:
    """Which model the personal states of a bundle belong to."""
    return ModelId.of(bundle.manifest.name, bundle.manifest.version, bundle.manifest.tensors)


@dataclass(frozen=True)
class UserResult:
    """What personalization did for one user; it holds none of the user's words.

    Attributes:
        user: the user's id.
        engine: that trained and measured.
        status: ``adopted``, ``kept``, ``skipped`` or ``cancelled``, see ``TrainReport``.
        examples: how many there were: ``all``, ``train``, ``holdout`` (for the guard), ``test``.
        before: metrics on the test part with the state that served until now.
        after: with the state that serves now; equal to ``before`` unless adopted.
        general_before: metrics on other people's examples with the state that served until now.
        general_after: with the state that serves now: what was forgotten.
        guard: its decision, see ``GuardReport``; None when cancelled.
        steps: optimizer steps.
        ms_per_step: median, in milliseconds; None when there was no step.
        peak_mb: largest memory of this process so far, in MB; None where the system does not say.
        slots: vocabulary slots that have a word now.
        seconds: training and the measurements before and after.
        report: the trainer's own report, with the state that serves now; not part of the JSON.
    """

    user: str
    engine: str
    status: str
    examples: Mapping[str, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    general_before: Mapping[str, float] | None
    general_after: Mapping[str, float] | None
    guard: Mapping[str, Any] | None
    steps: int
    ms_per_step: float | None
    peak_mb: float | None
    slots: int
    seconds: float
    report: TrainReport = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values of every field but ``report``, and its notes and warnings."""
        out = {name: value for name, value in vars(self).items() if name != "report"}
        out = {name: dict(v) if isinstance(v, Mapping) else v for name, v in out.items()}
        out["notes"] = [*self.report.notes, *(w.message for w in self.report.warnings)]
        return out


class Evaluator:
    """Personalizes users of one loaded bundle, one after another; the bundle is read and checked once.

    Args:
        bundle: an open bundle.
        session: its programs on an engine.
        general: other people's examples, to measure what is forgotten.
        sets: arrays by name that the plan needs from the host.
        checkpoint_every: steps between checkpoints, for users with a state store; None for none.

    Raises:
        EngineMismatchError: the engine gives other numbers on the golden batch than PyTorch; like a phone, no
            training is done then.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        general: Examples | None = None,
        sets: Sets | None = None,
        checkpoint_every: int | None = None,
    ) -> None:
        """Check the engine, read plan, values and tokenizer."""
        self.golden: GoldenReport = golden_check(bundle, session)
        self.golden.require()
        self.bundle, self.session, self.general = bundle, session, general
        self.encoder = text_encoder(bundle)
        self.plan = Plan.load(bundle.plan_json())
        self.trainer = LocalTrainer(
            session,
            self.plan,
            bundle.manifest.tensors,
            bundle.values(),
            encoder=self.encoder,
            sets=sets,
            checkpoint_every=checkpoint_every,
        )
        self._general_shipped: dict[str, float] | None = None

    def measure(
        self, examples: Examples, state: PersonalState | None, known: tuple[str, ...] | None = None
    ) -> dict[str, float]:
        """Metrics of a state on examples.

        Args:
            examples: texts, or rows for a bundle that takes arrays.
            state: None for the shipped values.
            known: slot words that were there when the comparison began; the loss leaves out labels that are
                unknown with them. By default the state's own.

        Raises:
            NoExamplesError: nothing in the examples counts.
        """
        words = () if state is None else state.words
        rows = self._rows(examples, words)
        work = Work(dict(self.trainer.initial)) if state is None else Work.of(state, self.trainer.initial)
        tensors = served(self.plan, work, self.trainer.sets)
        metrics = self.trainer.programs.evaluate(rows, tensors)
        if not isinstance(examples, Mapping):
            labels = rows["labels"] if known is None else self._rows(examples, known)["labels"]
            unknown = rows["weight"] * (labels == UNK)
            touched = unknown.sum(axis=1) > 0
            if touched.any():  # the same sum without those labels, by measuring only the rows that have any
                total, part = float(rows["weight"].sum()), float(unknown.sum())
                only = {name: value[touched] for name, value in {**rows, "weight": unknown}.items()}
                lost = self.trainer.programs.evaluate(only, tensors)["loss"] * part
                loss = metrics.pop("loss") * total - lost
                metrics |= {"loss": loss / (total - part)} if total > part else {}
        return metrics

    def personalize(
        self,
        user: str,
        examples: Examples,
        *,
        test: float = 0.2,
        state: PersonalStateStore | PersonalState | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
    ) -> UserResult:
        """Personalize one user; see :func:`personalize_user`."""
        began = time.perf_counter()
        learn, tested = self._split(user, examples, test)
        train, holdout = _cut(learn, _count(learn) - holdout_size(_count(learn), self.plan.holdout))
        counts = {"all": _count(examples), "train": _count(train), "holdout": _count(holdout)}
        counts["test"] = _count(tested)
        old = state.load().state if isinstance(state, PersonalStateStore) else state
        known = () if old is None else old.words
        before = self.measure(tested, old)
        general = self._general(old, known)
        report = self.trainer.personalize(train, holdout, state, on_progress=on_progress, cancel=cancel)
        changed = report.adopted
        return UserResult(
            user=user,
            engine=self.session.name,
            status=report.status,
            examples=counts,
            before=before,
            after=self.measure(tested, report.state, known) if changed else before,
            general_before=general,
            general_after=self._general(report.state, known) if changed else general,
            guard=None if report.guard is None else asdict(report.guard),
            steps=report.steps,
            ms_per_step=report.ms_per_step,
            peak_mb=peak_mb(),
            slots=len(report.words),
            seconds=time.perf_counter() - began,
            report=report,
        )

    def _general(self, state: PersonalState | None, known: tuple[str, ...]) -> dict[str, float] | None:
        if self.general is None or state is not None:
            return None if self.general is None else self.measure(self.general, state, known)
        if self._general_shipped is None:  # the same for every user who starts from the shipped values
            self._general_shipped = self.measure(self.general, None)
        return self._general_shipped

    def _rows(self, examples: Examples, words: tuple[str, ...]) -> dict[str, np.ndarray]:
        if isinstance(examples, Mapping):
            rows = dict(examples)
        else:
            rows = dict(self._text_encoder().with_words(words).encode(examples))
        self.trainer.programs.check(rows)
        return rows

    def _text_encoder(self) -> TextEncoder:
        if self.encoder is None:
            raise ConfigError(
                f"bundle {self.bundle.manifest.name!r} takes arrays, not texts",
                mend=f"give arrays by name: {', '.join(sorted(self.trainer.programs.shapes))}",
            )
        return self.encoder

    def _split(self, user: str, examples: Examples, test: float) -> tuple[Examples, Examples]:
        count = _count(examples)
        if count < 2:
            raise NoExamplesError(
                f"user {user!r} has {count} example{'s' * (count != 1)}",
                mend="give at least 3: one to learn from, one for the guard, one to test on",
            )
        if not 0.0 < test < 1.0:
            raise ConfigError(
                f"the test part is {test:g}", mend="give a share between 0 and 1, for instance 0.2"
            )
        cut = len(split_texts([""] * count, 1 - test).history)
        learn, tested = _cut(examples, cut)
        most = self.bundle.manifest.limits.max_examples
        if most is not None and cut > most:  # the newest ones, as a device keeps
            learn = _cut(learn, cut - most)[1]
        return learn, tested


def personalize_user(
    bundle: Bundle,
    session: Session,
    user: str,
    texts: Examples,
    *,
    test: float = 0.2,
    general: Examples | None = None,
    state: PersonalStateStore | PersonalState | None = None,
    sets: Sets | None = None,
    checkpoint_every: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: Cancel | None = None,
) -> UserResult:
    """Personalize one user and measure before and after. For many users, make one :class:`Evaluator`.

    Args:
        bundle: an open bundle.
        session: its programs on an engine.
        user: name of the user, for messages.
        texts: the user's messages, oldest first; or rows (arrays by name) for a bundle that takes arrays.
        test: share of the examples, the newest, to test on; never trained on.
        general: other people's examples, to measure what is forgotten.
        state: where the personal state is kept, or one in memory; None starts from the shipped values.
        sets: arrays by name that the plan needs from the host.
        checkpoint_every: steps between checkpoints; needs a store.
        on_progress: called after each step.
        cancel: asked after each step; the state before stays.

    Raises:
        EngineMismatchError: the engine disagrees with PyTorch on the golden batch.
        NoExamplesError: too few examples, or none of them counts.
        TrainingError, StateError: as ``LocalTrainer.personalize``; the old state stays.
    """
    evaluator = Evaluator(bundle, session, general=general, sets=sets, checkpoint_every=checkpoint_every)
    return evaluator.personalize(user, texts, test=test, state=state, on_progress=on_progress, cancel=cancel)


def summarize(results: Sequence[UserResult]) -> dict[str, Any]:
    """Means over users, each user counting the same.

    Recalls (``top1``, ``top3``, ...) are in percent, gains in points; other metrics are as measured.
    A user is better or worse by top-1 recall, or by the guard's metric where the bundle has no top-1.
    ``worst_decile_gain`` is the mean gain of the tenth of the users (at least one) who gained least.

    Returns:
        ``users``; for every metric M ``M_before``, ``M_after`` and, where general examples were measured,
        ``general_M_before``, ``general_M_after``; ``users_better``, ``users_worse``, ``worst_decile_gain``;
        ``adopted`` (users whose state was adopted); ``engine``; ``ms_per_step`` (median over users).

    Raises:
        NoExamplesError: there is no result.
    """
    if not results:
        raise NoExamplesError("there is no user to sum up", mend="personalize at least one")
    out: dict[str, Any] = {"users": len(results)}
    for prefix, before, after in (
        ("", [r.before for r in results], [r.after for r in results]),
        ("general_", [r.general_before for r in results], [r.general_after for r in results]),
    ):
        for name in sorted({n for metrics in before if metrics for n in metrics}):
            out[f"{prefix}{name}_before"] = _mean(name, before)
            out[f"{prefix}{name}_after"] = _mean(name, after)
    metric = "top1"
    if not all("top1" in r.before for r in results):
        metric = next((r.guard["metric"] for r in results if r.guard), "loss")
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    gains = sorted(
        sign * _scale(metric) * (r.after[metric] - r.before[metric]) for r in results if metric in r.before
    )
    worst = gains[: max(1, -(-len(gains) // 10))]
    out |= {
        "users_better": sum(g > 0 for g in gains),
        "users_worse": sum(g < 0 for g in gains),
        "worst_decile_gain": statistics.fmean(worst) if worst else None,
        "adopted": sum(r.status == "adopted" for r in results),
        "engine": "+".join(sorted({r.engine for r in results})),
    }
    times = [r.ms_per_step for r in results if r.ms_per_step is not None]
    return out | {"ms_per_step": statistics.median(times) if times else None}


def peak_mb() -> float | None:
    """The largest resident memory of this process so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _scale(metric: str) -> float:
    return 100.0 if metric.startswith("top") and metric[3:].isdecimal() else 1.0


def _mean(name: str, metrics: Sequence[Mapping[str, float] | None]) -> float | None:
    values = [m[name] for m in metrics if m is not None and name in m]
    return _scale(name) * statistics.fmean(values) if values else None


def _count(examples: Examples) -> int:
    if isinstance(examples, Mapping):
        return len(next(iter(examples.values()))) if examples else 0
    return len(examples)


def _cut(examples: Examples, at: int) -> tuple[Examples, Examples]:
    if isinstance(examples, Mapping):
        return {n: v[:at] for n, v in examples.items()}, {n: v[at:] for n, v in examples.items()}
    return examples[:at], examples[at:]

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

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.engines.compare import GoldenReport, golden_check
from pfl_mobile.errors import DataError
from pfl_mobile.local.measure import metric_sums
from pfl_mobile.local.parts import count_examples, parts
from pfl_mobile.local.phases import Work, served
from pfl_mobile.local.results import UserResult, peak_mb, summarize
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.local.trainer import LocalTrainer, Most
from pfl_mobile.plan.schema import Plan
from pfl_mobile.text.encoder import SubwordTokenizer, TextEncoder, WordTokenizer
from pfl_mobile.text.specials import SpecialIds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines.base import Session
    from pfl_mobile.local.report import Cancel, Progress
    from pfl_mobile.local.trainer import Examples

__all__ = [
    "Evaluator",
    "UserResult",
    "model_id",
    "peak_mb",
    "personal_store",
    "personalize_user",
    "summarize",
    "text_encoder",
    "unusable",
]

Sets = Mapping[str, Mapping[str, np.ndarray]]


def text_encoder(bundle: Bundle) -> TextEncoder | None:
    """The encoder that a bundle describes; None for a bundle that takes arrays.

    Raises:
        DataError: its tokenizer cannot be read, or is not cut by the rules that the manifest says.
    """
    encoder, path = bundle.manifest.encoder, bundle.tokenizer_path
    if encoder is None or encoder.kind != "text" or path is None:
        return None
    tokenizer: WordTokenizer | SubwordTokenizer
    if encoder.subwords is not None:
        tokenizer = SubwordTokenizer.load(path, SpecialIds(**encoder.subwords.ids()))
    else:
        tokenizer = WordTokenizer.load(path)
        if tokenizer.rules.version != encoder.rules:
            raise DataError(
                f"the manifest says version {encoder.rules} of the piece rules, the tokenizer's file version "
                f"{tokenizer.rules.version}",
                mend="export the bundle again",
            )
    return TextEncoder(tokenizer, encoder.length, encoder.vocabulary, encoder.slots)


def unusable(examples: Examples, encoder: TextEncoder | None) -> dict[str, int]:
    """How many texts give nothing to learn from: ``no_words``, or ``unknown_words`` only; 0 for rows of arrays."""
    if encoder is None or isinstance(examples, Mapping):
        return {"no_words": 0, "unknown_words": 0}
    ids = [encoder.ids(text) for text in examples]
    return {
        "no_words": sum(not own for own in ids),
        "unknown_words": sum(bool(own) and all(i == encoder.unknown for i in own) for own in ids),
    }


def model_id(bundle: Bundle) -> ModelId:
    """Which model the personal states of a bundle belong to."""
    manifest = bundle.manifest
    return ModelId.of(manifest.name, manifest.version, manifest.tensors, manifest.frozen_sha256)


def personal_store(
    bundle: Bundle, directory: str | os.PathLike[str], user: str | None = None
) -> PersonalStateStore:
    """The personal state of a bundle; what an earlier version of the bundle with the same weights learned is kept.

    Args:
        bundle: an open bundle.
        directory: made when missing.
        user: whose it is; None where every folder has the same user.

    Raises:
        StateError: the folder is another user's, or that of a device, or in use by another process.
        UnwritableError, StorageFullError: it cannot be made, or not be carried over.
    """
    store = PersonalStateStore(directory, model_id(bundle), user=user)
    store.carry_over(same_weights=bundle.manifest.frozen_sha256 is not None)
    return store


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
            most=Most(bundle.manifest.limits.max_steps, bundle.manifest.limits.max_seconds),
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
        work = Work(dict(self.trainer.initial)) if state is None else Work.of(state, self.trainer.initial)
        tensors = served(self.plan, work, self.trainer.sets)
        sums = metric_sums(
            self.trainer.programs, tensors, examples, encoder=self.encoder, words=words, known=known
        )
        return {name: total / weight for name, (total, weight) in sums.items()}

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
        most = self.bundle.manifest.limits.max_examples
        cut = parts(examples, test=test, holdout=self.plan.holdout, most=most, what=f"user {user!r}")
        tested = cut.test
        counts = {"all": count_examples(examples), "train": count_examples(cut.train)}
        counts |= {"holdout": count_examples(cut.holdout), "test": count_examples(tested), "older": cut.older}
        counts |= unusable(examples, self.encoder)
        old = state.load().state if isinstance(state, PersonalStateStore) else state
        known = () if old is None else old.words
        before = self.measure(tested, old)
        general = self._general(old, known)
        report = self.trainer.personalize(
            cut.train, cut.holdout, state, on_progress=on_progress, cancel=cancel
        )
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

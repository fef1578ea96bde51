"""A device's examples in three parts by age: to train on, for the guard, to test on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError, NoExamplesError
from pfl_mobile.rows import holdout_size, split_texts

if TYPE_CHECKING:
    from pfl_mobile.local.trainer import Examples


@dataclass(frozen=True)
class Parts:
    """Examples, oldest first.

    Attributes:
        train: what is trained on.
        holdout: newer: what the guard measures.
        test: newest: what neither training nor the guard sees.
        older: how many there were before them, beyond what a device keeps.
    """

    train: Examples
    holdout: Examples
    test: Examples
    older: int = 0


def parts(
    examples: Examples,
    *,
    test: float = 0.2,
    holdout: float = 0.2,
    most: int | None = None,
    what: str = "a device",
) -> Parts:
    """Cut examples, oldest first, into the three parts.

    Args:
        examples: texts, or arrays by name with the same first axis.
        test: share of all examples, the newest, to test on; at least one.
        holdout: share of the others, the newest, for the guard.
        most: examples that a device keeps for training and guard, the newest; None for all.
        what: whose they are, for messages.

    Raises:
        NoExamplesError: fewer than 2.
        ConfigError: ``test`` is not between 0 and 1.
    """
    count = count_examples(examples)
    if count < 2:
        raise NoExamplesError(
            f"{what} has {count} example{'s' * (count != 1)}",
            mend="give at least 3: one to learn from, one for the guard, one to test on",
        )
    if not 0.0 < test < 1.0:
        raise ConfigError(f"the test part is {test:g}", mend="give a share between 0 and 1, for instance 0.2")
    cut = len(split_texts([""] * count, 1 - test).history)
    learn, tested = cut_examples(examples, cut)
    older = 0 if most is None else max(cut - most, 0)
    learn = cut_examples(learn, older)[1]  # the newest ones, as a device keeps
    train, held = cut_examples(learn, count_examples(learn) - holdout_size(count_examples(learn), holdout))
    return Parts(train, held, tested, older)


def count_examples(examples: Examples) -> int:
    """How many there are."""
    if isinstance(examples, Mapping):
        return len(next(iter(examples.values()))) if examples else 0
    return len(examples)


def cut_examples(examples: Examples, at: int) -> tuple[Examples, Examples]:
    """The first ``at``, and the others."""
    if isinstance(examples, Mapping):
        return {n: v[:at] for n, v in examples.items()}, {n: v[at:] for n, v in examples.items()}
    return examples[:at], examples[at:]

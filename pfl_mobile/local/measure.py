"""Metrics of values on examples, as sums and weights, so that those of several devices can be added.

Recalls count labels outside the vocabulary as misses. The loss leaves them out, so that it is of the same labels
whatever words have a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from pfl_mobile.local.session import Encoder, Programs
    from pfl_mobile.local.trainer import Examples

#: Metric -> (sum over the labels that count, their weight).
MetricSums = dict[str, tuple[float, float]]


def metric_sums(
    programs: Programs,
    tensors: Mapping[str, np.ndarray],
    examples: Examples,
    *,
    encoder: Encoder | None = None,
    words: tuple[str, ...] = (),
    known: tuple[str, ...] | None = None,
) -> MetricSums:
    """Measure device tensors on examples.

    Args:
        programs: of the bundle.
        tensors: every device tensor by name.
        examples: texts, or rows for a bundle that takes arrays.
        encoder: for texts.
        words: slot words that belong to the tensors.
        known: the loss leaves out labels that are unknown with these slot words; None: with ``words``.

    Raises:
        NoExamplesError: nothing in the examples counts.
        ConfigError: texts without an encoder.
        TensorMismatchError: rows that do not fit the programs.
    """
    rows = encoded(programs, examples, encoder, words)
    totals, weight = programs.sums(rows, tensors)
    sums = {name: (total, weight) for name, total in totals.items()}
    if isinstance(examples, Mapping) or encoder is None or "loss" not in sums:
        return sums
    labels = rows["labels"] if known is None else encoded(programs, examples, encoder, known)["labels"]
    unknown = rows["weight"] * (labels == encoder.unknown)
    touched = unknown.sum(axis=1) > 0
    if touched.any():  # the same sum without those labels, by measuring only the rows that have any
        part = float(unknown.sum())
        only = {name: value[touched] for name, value in {**rows, "weight": unknown}.items()}
        loss = sums.pop("loss")[0] - programs.sums(only, tensors)[0]["loss"]
        sums |= {"loss": (loss, weight - part)} if weight > part else {}
    return sums


def encoded(
    programs: Programs, examples: Examples, encoder: Encoder | None, words: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Rows of the examples, checked; labels outside the vocabulary keep their weight."""
    if isinstance(examples, Mapping):
        rows = dict(examples)
    elif encoder is None:
        raise ConfigError(
            "the bundle takes arrays, not texts",
            mend=f"give arrays by name: {', '.join(sorted(programs.shapes))}",
        )
    else:
        rows = dict(encoder.with_words(words).encode(examples))
    programs.check(rows)
    return rows

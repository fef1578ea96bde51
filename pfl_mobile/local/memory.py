"""What the host writes without gradients: the n-gram memory and the vocabulary slots."""

from __future__ import annotations

import numpy as np

from pfl_mobile.errors import DataError


def memorize(
    tokens: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    capacity: int,
    context: int,
    *,
    ring: tuple[np.ndarray, np.ndarray, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Write one entry for each label position with a positive weight, rows in order, left to right.

    Entry number j goes to place j mod capacity, so the newest ``capacity`` entries stay.

    Args:
        tokens: int64 [rows, T].
        labels: int64 [rows, T], the token after each position.
        weight: float32 [rows, T].
        capacity: entries of the memory.
        context: tokens of context kept with each entry (order - 1).
        ring: (next, context, count) of an earlier call to go on from; None starts empty.

    Returns:
        next int64 [capacity] (the label; 0 = empty), context int64 [capacity, context] (the token at the
        position first, then the ones before it; 0 where the sequence had not begun), and how many entries
        have been written in all.
    """
    following, before, count = ring or (
        np.zeros(capacity, np.int64),
        np.zeros((capacity, context), np.int64),
        0,
    )
    following, before = following.copy(), before.copy()
    if tokens.shape != labels.shape or tokens.shape != weight.shape or tokens.ndim != 2:
        raise DataError(
            f"tokens {tokens.shape}, labels {labels.shape} and weight {weight.shape} differ",
            mend="the memory needs rows of tokens [rows, T] with a label and a weight at every position",
        )
    padded = np.concatenate([np.zeros((len(tokens), max(context - 1, 0)), np.int64), tokens], axis=1)
    row, position = np.nonzero(weight > 0)
    # More than the capacity would only be overwritten.
    skip = max(len(row) - capacity, 0)
    count += skip
    for r, t in zip(row[skip:].tolist(), position[skip:].tolist(), strict=True):
        place = count % capacity
        following[place] = labels[r, t]
        if context:
            before[place] = padded[r, t : t + context][::-1]
        count += 1
    return following, before, count


def active(assigned: int, size: int) -> np.ndarray:
    """float32 [size]: 1 for the first ``assigned`` slots, 0 for the free ones behind them."""
    return (np.arange(size) < assigned).astype(np.float32)

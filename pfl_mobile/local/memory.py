"""What the host writes without gradients: the n-gram memory and the vocabulary slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping


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


def assign_slots(
    counts: Mapping[str, int], slots: Mapping[str, int], size: int, min_count: int
) -> dict[str, int]:
    """Give free slots to new words; words that have one keep it.

    Words with at least ``min_count`` occurrences are taken most frequent first, equal counts in order of
    their UTF-8 bytes, and get the lowest free slot.

    Args:
        counts: occurrences of each word that the vocabulary does not have.
        slots: the present map, word -> slot in 0..size-1.
        size: number of slots.
        min_count: least number of occurrences.

    Returns:
        The new map.
    """
    assigned = dict(slots)
    taken = set(assigned.values())
    free = (slot for slot in range(size) if slot not in taken)
    new = [word for word, count in counts.items() if count >= min_count and word not in assigned]
    for word, slot in zip(sorted(new, key=lambda w: (-counts[w], w.encode())), free, strict=False):
        assigned[word] = slot
    return assigned


def active(slots: Mapping[str, int], size: int) -> np.ndarray:
    """float32 [size]: 1 where a slot is assigned."""
    out = np.zeros(size, dtype=np.float32)
    out[list(slots.values())] = 1
    return out

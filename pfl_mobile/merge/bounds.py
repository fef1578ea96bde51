"""How much one device may count in a round where nobody can check what it says: its part of a mean, its loss."""

from __future__ import annotations

import numpy as np

#: A device never has more of a mean than this, where there are two or more.
MOST_PART = 0.5
#: Losses further from the cohort's median than so many times the median count as that far.
LOSS_SPREAD = 3.0


def largest_part(count: int, most: float) -> float:
    """The largest part of a mean of so many devices.

    Args:
        count: devices in the mean.
        most: in equal shares, 1 or more.
    """
    return 1.0 if count < 2 else max(1 / count, min(most / count, MOST_PART))


def bounded_parts(parts: np.ndarray, most: float) -> np.ndarray:
    """Parts of a mean, none above `largest_part`; what is cut off goes to the others, by their parts.

    Where all others are 0 there is nobody to give it to, and the parts add up to less than 1: the step is shorter.

    Args:
        parts: not negative, of sum 1, float64 [n].
        most: in equal shares.
    """
    limit = largest_part(len(parts), most)
    found = np.asarray(parts, np.float64)
    at_limit = np.zeros(len(found), bool)
    while (over := ~at_limit & (found > limit)).any():
        at_limit |= over
        found = np.where(at_limit, limit, parts)
        rest = found[~at_limit].sum()
        if rest > 0:
            left = max(1.0 - limit * int(at_limit.sum()), 0.0)
            found[~at_limit] *= left / rest if rest > 1e-290 else 0.0
    return found


def lowered(terms: np.ndarray, most: float) -> np.ndarray:
    """Terms of a sum, each at most `largest_part` of what the sum is then, float64 [n].

    Args:
        terms: not negative, float64 [n].
        most: in equal shares.
    """
    found = np.asarray(terms, np.float64)
    limit, ordered = largest_part(len(found), most), np.sort(found)[::-1]
    if not len(found) or ordered[0] <= limit * found.sum():
        return found
    for above in range(1, len(found)):
        # the largest ``above`` become c = limit * (above * c + the rest)
        left = 1 - limit * above
        cap = limit * float(ordered[above:].sum()) / left if left > 0 else float(ordered[above])
        if left <= 0 or ordered[above] <= cap:
            return np.asarray(np.minimum(found, cap), np.float64)
    return np.asarray(np.minimum(found, ordered[-1]), np.float64)


def bounded_losses(losses: np.ndarray) -> np.ndarray:
    """Losses no further from their median than `LOSS_SPREAD` times it, float64 [n].

    The median is the lower one, so that of two devices the one with the larger loss does not decide it.
    """
    found = np.asarray(losses, np.float64)
    if not len(found):
        return found
    middle = float(np.sort(found)[(len(found) - 1) // 2])
    reach = LOSS_SPREAD * abs(middle)
    return np.asarray(np.clip(found, middle - reach, middle + reach), np.float64)

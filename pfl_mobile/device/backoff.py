"""How long to wait before something is tried again."""

from __future__ import annotations

import email.utils
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

#: Longest wait that an answer can impose, in seconds.
MOST_TOLD_S = 24 * 3600.0


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter, so that devices that failed together do not come back together.

    Attributes:
        attempts: tries without progress before giving up.
        first_s: seconds before the second try; doubled before each further one.
        most_s: longest wait that is chosen here.
    """

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 60.0

    def pause(self, failures: int, told_s: float | None, draw: random.Random) -> float:
        """Seconds to wait after a number of failures in a row.

        The wait doubles with each failure; a random factor between a half and one keeps devices apart (jitter). It is
        never shorter than the server asked for.

        Args:
            failures: 1 or more.
            told_s: ``Retry-After`` of the answer; None where there is none.
            draw: for the jitter.
        """
        own = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 60)) * draw.uniform(0.5, 1.0)
        return own if told_s is None else max(own, min(told_s, MOST_TOLD_S))


def retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given as seconds or as a date; None when unreadable."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else _until(value)
    except (ValueError, TypeError):
        return None
    return max(seconds, 0.0)


def _until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()

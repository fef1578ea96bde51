"""The time of a server: seconds since 1970 that pass evenly, whatever is done to the system's clock meanwhile.

Rounds, tasks and leases end by it. Processes that one `pfl serve` starts share it exactly; others on the same database
follow the one that coordinates (`coordinator.py`). Whoever starts takes the system's time; ends that then lie too far
ahead are brought near (`rounds.keep_in_reach`).
"""

from __future__ import annotations

import time

#: Counts on while the machine sleeps, where there is such a clock.
_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed() -> float:
    """Seconds since some moment; the same moment for all processes of this machine, until it starts anew."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


class SteadyClock:
    """Seconds since 1970 by the system's clock when it was made, and from then on by one that nobody sets.

    Attributes:
        began: seconds since 1970 at which `elapsed` was 0.

    Args:
        began: of another process of this machine; None: by the system's clock.
    """

    def __init__(self, began: float | None = None) -> None:
        self.began = time.time() - elapsed() if began is None else began

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.began + elapsed()

    def set(self, now: float) -> None:
        """Go on from another time."""
        self.began = now - elapsed()

    def ahead(self) -> float:
        """Seconds by which it is ahead of the system's clock."""
        return self() - time.time()

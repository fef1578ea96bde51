"""Locks and leases on rows of the database."""

from __future__ import annotations

from typing import Any

#: Seconds from now after which no lease ends, also by the clock of another process.
FAR_S = 90.0


#: Keys do not change, so rows that refer to a locked one may still be written (PostgreSQL: FOR NO KEY UPDATE).
LOCK: dict[str, Any] = {"key_share": True}


def lapsed(until: Any, now: float) -> Any:
    """Whether a lease is over: its end has passed, or lies so far ahead that the clock was set back since.

    Args:
        until: end of the lease, a column or seconds since 1970.
        now: seconds since 1970.
    """
    return (until < now) | (until > now + FAR_S)


def changed(result: Any) -> int:
    """Rows that an UPDATE changed."""
    return int(result.rowcount)

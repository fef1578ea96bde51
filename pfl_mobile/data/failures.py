"""Why users failed, in one vocabulary: ``<error>: <reason>``, from the device that fails to every report."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pfl_mobile.errors import NonFiniteError, PflError, UnusableRowsError

#: Letters of a reason; what user code raises may hold a whole table.
_LONGEST = 400


def reason(error: PflError) -> str:
    """An error as the failure of a user."""
    return _short(f"{error.code}: {error.message}")


def diverged(why: str | None) -> str | None:
    """What a trainer says of a client whose rows were checked: all that can fail is the arithmetic."""
    return why and f"{NonFiniteError.__name__}: {why}"


def unusable(error: Exception, what: str) -> UnusableRowsError:
    """The typed error for any exception that one user's rows raised.

    Args:
        error: what was raised.
        what: for instance ``the training rows cannot be read``.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return UnusableRowsError(
        _short(f"{what}: {type(error).__name__}: {error}") + place,
        mend="mend this user's data, or leave the user out",
    )


def kind(why: str) -> str:
    """The name of the error in a reason."""
    return why.split(":", 1)[0]


def kinds(reasons: Iterable[str]) -> dict[str, int]:
    """How many failed with which error."""
    return dict(Counter(map(kind, reasons)))


def counted(reasons: Iterable[str]) -> str:
    """As words: ``2 DataError, 1 NonFiniteError``."""
    return ", ".join(f"{n} {name}" for name, n in sorted(kinds(reasons).items()))


def named(failed: Mapping[str, str], most: int = 10) -> str:
    """Users with their errors as words: ``ann (DataError), bob (NonFiniteError) and 3 more``."""
    some = ", ".join(f"{user} ({kind(why)})" for user, why in list(failed.items())[:most])
    return some + (f" and {len(failed) - most} more" if len(failed) > most else "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."

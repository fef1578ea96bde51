"""Messages in a JSONL file: one object a line, ``{"user": ..., "text": ..., "time": ...}``.

``time`` may be left out, and is either seconds since 1970 or an ISO 8601 string (UTC where it names no zone).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pfl_mobile.data.usertext import Message, UserText
from pfl_mobile.errors import DataError
from pfl_mobile.reading import open_text, parse_json, whole_text

_MEND = 'write one object a line: {"user": "ann", "text": "see you there", "time": "2026-01-31T09:30:00"}'


def seconds(value: object) -> float | None:
    """Seconds since 1970 from a number or an ISO 8601 string; None for null.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"time is {value!r}")
    if isinstance(value, str):
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError(f"time is {value!r}")
    return float(value)


def read_lines(path: Path) -> Iterator[tuple[str, Message]]:
    """``(user, message)`` pairs of a JSONL file in file order.

    Raises:
        DataError: a line is not such an object; names the file and line.
    """
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _pair(line, f"{path}, line {number}")
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {path}: {error}", mend="give a readable UTF-8 JSONL file") from error


def _pair(line: str, where: str) -> tuple[str, Message]:
    try:
        entry = parse_json(line, finite=False)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}", mend=_MEND) from error
    if not isinstance(entry, dict) or "user" not in entry or not isinstance(entry.get("text"), str):
        raise DataError(f'{where} has no "user" or no "text"', mend=_MEND)
    user = entry["user"]
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise DataError(f"{where}: user is {user!r}", mend=_MEND)
    try:
        return whole_text(str(user)), Message(whole_text(entry["text"]), seconds(entry.get("time")))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: {error}", mend=_MEND) from error


def read(path: Path) -> UserText:
    """Read a JSONL file of messages.

    Raises:
        DataError: it cannot be read, a line is wrong, or there is no message in it.
    """
    result = UserText.collect(str(path), read_lines(path))
    if not result.users:
        raise DataError(f"{path} has no messages", mend=_MEND)
    return result

"""Messages in a JSONL file: one object a line, ``{"user": ..., "text": ..., "time": ...}``.

``time`` may be left out, and is either seconds since 1970 or an ISO 8601 string (UTC where it names no zone).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pfl_mobile.data.usertext import Left, Message, UserText
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


def read_lines(path: Path, blank: list[int] | None = None) -> Iterator[tuple[str, Message]]:
    """``(user, message)`` pairs of a JSONL file in file order; numbers of blank lines are added to ``blank``.

    Raises:
        DataError: a line is not such an object; names the file and line.
    """
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _pair(line, f"{path}, line {number}")
                elif blank is not None:
                    blank.append(number)
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


def read(path: Path, *, unique: bool = False) -> UserText:
    """Read a JSONL file of messages.

    Args:
        path: of the file.
        unique: leave out a user's repeated messages. People repeat themselves, and a device learns from that.

    Raises:
        DataError: it cannot be read, a line is wrong, or there is no message in it.
    """
    blank: list[int] = []
    result = UserText.collect(str(path), read_lines(path, blank), unique=unique)
    result = result.leaving_out({Left("blank_line", None): len(blank)})
    if not result.users:
        words = result.words_left_out()
        raise DataError(f"{path} has no messages{words and f'; {words}'}", mend=_MEND)
    return result

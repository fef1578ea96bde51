"""Reading files and JSON that may be damaged, hostile or simply something else.

Work is bounded before anything is understood: a file is a regular file of at most so many bytes, and JSON has at most
so many values, so deep. Text may begin with a byte order mark, as Windows' programs write it. What is wrong raises
``OSError`` or ``ValueError``, which every reader turns into an error of its own that names the file and the mend.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

#: Bytes of a file of settings, notes or JSON, unless the reader says more.
MOST_BYTES = 64 << 20
#: Bytes of a file of tensors: no phone holds a model with more.
MOST_TENSOR_BYTES = 4 << 30
#: Values in one piece of JSON; each costs some 60 bytes of memory at least.
MOST_VALUES = 2_000_000
#: Lists and objects inside each other. Every parser that may read the same JSON takes as many.
MOST_DEPTH = 100

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[{]+|[\]}]+")


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: links are followed.
        most: bytes; a larger file is not read.

    Raises:
        OSError: it is not there, not a regular file (opening a pipe would wait for ever), too large, or the system
            refuses to read it.
    """
    with open_bytes(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
        return file.read()


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """The text of a file, without a byte order mark; line ends as they are.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is neither UTF-8 nor UTF-16 that says so.
    """
    return decoded(read_bytes(path, most))


def open_bytes(path: str | os.PathLike[str]) -> io.BufferedReader:
    """An open regular file, for a library that reads it.

    Raises:
        OSError: it is not there, not a regular file (opening a pipe would wait for ever), or the system refuses.
    """
    return open(path, "rb", opener=_open_regular)


def open_text(path: str | os.PathLike[str]) -> TextIO:
    """The same file, however large, to be read line by line.

    Raises:
        OSError: as `read_bytes`. What is not text raises ``UnicodeError`` where it is read.
    """
    file = open_bytes(path)
    try:
        encoding = _encoding(file.peek(4)[:4])
    except BaseException:
        file.close()
        raise
    return io.TextIOWrapper(file, encoding)


def read_json(path: str | os.PathLike[str], most: int = MOST_BYTES, *, finite: bool = True) -> Any:
    """The value in a JSON file; see `parse_json`.

    Raises:
        OSError: as `read_bytes`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path, most), most=most, finite=finite)


def decoded(data: bytes) -> str:
    """Bytes as text: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
        ValueError: they are none of these.
    """
    return data.decode(_encoding(data[:4]))


def parse_json(
    text: str | bytes | bytearray,
    *,
    most: int = MOST_BYTES,
    values: int = MOST_VALUES,
    depth: int = MOST_DEPTH,
    finite: bool = True,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value of JSON text. Two equal keys in one object are no JSON here, nor are NaN and infinity.

    Args:
        text: UTF-8, or as `decoded`.
        most: bytes, or characters.
        values: numbers, strings, lists and so on in it.
        depth: lists and objects inside each other.
        finite: refuse NaN and infinity, which Python writes and JSON does not have.
        pairs: makes the value of an object from its entries; by default a dict, in which no key stands twice.

    Raises:
        ValueError: it is no such JSON, or larger or deeper than allowed.
    """
    if len(text) > most:
        raise ValueError(f"it is longer than {most} bytes")
    if not isinstance(text, str):
        text = decoded(bytes(text))
    # An upper bound, as strings hold commas and brackets too; cheap, and before anything is built.
    if text.count(",") + text.count("[") + text.count("{") + text.count(":") > values:
        raise ValueError(f"it has more than {values} values")
    if text.count("[") + text.count("{") > depth and _deepest(text) > depth:
        raise ValueError(f"it is nested deeper than {depth}")
    try:
        return json.loads(
            text,
            object_pairs_hook=pairs or _no_duplicate_keys,
            parse_constant=_no_constant if finite else float,
            parse_float=_finite if finite else float,
            parse_int=_whole,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def whole_text(text: str) -> str:
    """The text as every system can hold it: halves of surrogate pairs joined, those without the other U+FFFD."""
    if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _deepest(text: str) -> int:
    now = most = 0
    for found in _BRACKETS.findall(_STRINGS.sub("", text)):
        now += len(found) if found[0] in "[{" else -len(found)
        most = max(most, now)
    return most


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal keys they take, so another reader might not see what is checked here.
    found = dict(pairs)
    if len(found) < len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r} stands {count} times in one object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _whole(text: str) -> int:
    if len(text) > 40:  # no field needs more, and what is larger than a float can hold fails far from here
        raise ValueError(f"the number {text[:40]}... is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _open_regular(path: str, flags: int) -> int:
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return fd

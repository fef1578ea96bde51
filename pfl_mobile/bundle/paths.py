"""Which names a file in a bundle may have, and the names of the files every bundle has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pfl_mobile.errors import UnsafePathError

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"

#: Relative, ``/`` between parts, each part of plain ASCII letters, digits and ``_ . + -`` beginning with none
#: of ``. + -``: the same file on every system, and nothing that leads out of the folder or hides in it.
PATH_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}){0,7}$"
_PATH = re.compile(PATH_PATTERN.replace("$", r"\Z"))
# Windows opens a device, not a file, under these names, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def check_path(path: str) -> str:
    """Give ``path`` back when it is a safe relative path inside a bundle.

    Raises:
        UnsafePathError: it is absolute, climbs with ``..``, has a backslash, or a character that some system
            treats specially.
    """
    parts = path.split("/")
    if not _PATH.match(path) or any(part.endswith(".") or _DEVICES.fullmatch(part) for part in parts):
        raise UnsafePathError(
            f"unsafe path {path!r} in a bundle",
            mend="use a relative path of ASCII letters, digits and _ . + - with / between the parts; "
            "if you did not make this bundle, do not use it",
        )
    return path


def check_distinct(paths: Iterable[str]) -> None:
    """Refuse paths that are one file on a system that ignores case, or a file and a folder at once.

    Raises:
        UnsafePathError: naming both.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = path.lower()
        if key in seen:
            raise UnsafePathError(
                f"{path!r} and {seen[key]!r} are the same file on a phone", mend="rename one of the two"
            )
        seen[key] = path
        parts = key.split("/")
        for end in range(1, len(parts)):
            folders.setdefault("/".join(parts[:end]), path)
    for key, path in seen.items():
        if key in folders:
            raise UnsafePathError(
                f"{path!r} is a file, and {folders[key]!r} needs a folder of that name",
                mend="rename one of the two",
            )

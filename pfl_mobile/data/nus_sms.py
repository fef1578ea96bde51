"""NUS SMS corpus, English part: text messages with their writers.

Tao Chen and Min-Yen Kan, "Creating a live, public short message service corpus: the NUS SMS corpus",
Language Resources and Evaluation 47(2), 2013. Free to use with citation; not redistributed here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pfl_mobile.data.registry import Dataset, Progress, register
from pfl_mobile.data.usertext import Message
from pfl_mobile.errors import DataError

#: Writer of the messages that nobody is named for.
UNATTRIBUTED = "0"

_FORMATS = ("%Y.%m.%d %H:%M:%S", "%Y.%m.%d %H:%M", "%m/%d/%Y %I:%M:%S %p")


def message_time(stamp: str) -> float | None:
    """Seconds since 1970 of a time as the corpus writes it (taken as UTC), None for "unknown"."""
    for form in _FORMATS:
        try:
            return datetime.strptime(stamp.strip(), form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None


def parse(path: Path, progress: Progress) -> Iterator[tuple[str | None, Message]]:
    """Read the zip, or the XML file inside it; messages that nobody is named for have the user None."""
    try:
        with ExitStack() as stack:
            size, source = _open(path, stack)
            for count, (_, element) in enumerate(ET.iterparse(source)):
                if element.tag != "message":
                    continue
                user = element.findtext("source/userProfile/userID") or UNATTRIBUTED
                profile = element.find("messageProfile")
                stamp = "" if profile is None else profile.get("time", "")
                writer = None if user == UNATTRIBUTED else user
                yield writer, Message(element.findtext("text") or "", message_time(stamp))
                element.clear()
                if count % 1000 < 20:
                    progress("nus-sms: reading", source.tell() / size)
    except (OSError, zipfile.BadZipFile, ET.ParseError) as error:
        raise DataError(f"cannot read {path}: {error}", mend=WHERE) from error


def _open(path: Path, stack: ExitStack) -> tuple[int, IO[bytes]]:
    if not zipfile.is_zipfile(path):
        return path.stat().st_size, stack.enter_context(path.open("rb"))
    archive = stack.enter_context(zipfile.ZipFile(path))
    entry = next((e for e in archive.infolist() if e.filename.endswith(".xml")), None)
    if entry is None:
        raise DataError(f"{path} has no XML file in it", mend=WHERE)
    return entry.file_size, stack.enter_context(archive.open(entry))


WHERE = (
    "get smsCorpus_en_xml_2015.03.09_all.zip from the public repository kite1988/nus-sms-corpus, then run "
    "`pfl data get nus-sms --from smsCorpus_en_xml_2015.03.09_all.zip`"
)

DATASET = register(
    Dataset(
        name="nus-sms",
        summary="text messages of some 340 people, mostly Singapore English",
        licence="none stated; free to use with citation, do not pass on",
        files={
            "bf73d77fce35c703dab21826cd2c1698205358c2c25b2d43da1f08671b825bdc": "the zip of 2015-03-09",
            "5211bbee421a8959dd27977191234361ccad4513ad18e837d4e4eac2c2a26aed": "the XML file of 2015-03-09",
        },
        parse=parse,
        unique=True,  # the corpus holds messages twice, handed in again
        where=WHERE,
    )
)

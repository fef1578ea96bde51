"""The NUS SMS corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_mobile import data
from pfl_mobile.data import nus_sms
from pfl_mobile.errors import DataError
from tests.data.conftest import Pin


def test_sms_users_times_and_duplicates(sms_zip: Path, pin: Pin) -> None:
    pin("nus-sms", sms_zip)
    found = data.get("nus-sms", sms_zip)
    assert {u: found.texts(u) for u in found.users} == {"7": ["first one", "see u there"], "8": ["ok <#>"]}
    assert found.users["7"][0].time == nus_sms.message_time("2010.11.09 06:54") == 1289285640.0
    assert found.users["8"][0].time is None


def test_sms_in_plain_xml_reads_the_same(sms_zip: Path, tmp_path: Path, pin: Pin) -> None:
    import zipfile

    with zipfile.ZipFile(sms_zip) as archive:
        archive.extractall(tmp_path / "x")
    pairs = [list(nus_sms.parse(p, lambda *_: None)) for p in (sms_zip, tmp_path / "x" / "sms.xml")]
    assert pairs[0] == pairs[1]


def test_damaged_sms_files_are_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.xml"
    bad.write_text("<smsCorpus><message>")
    with pytest.raises(DataError, match=r"bad\.xml"):
        list(nus_sms.parse(bad, lambda *_: None))

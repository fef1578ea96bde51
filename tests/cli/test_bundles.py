"""``pfl inspect``, ``pfl verify``, ``pfl keys``."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pfl_mobile.bundle import Bundle, copy_bundle, sign
from pfl_mobile.cli import bundles
from pfl_mobile.engines import arm64
from tests import tiny

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_inspect_says_what_is_in_a_bundle(pfl: Run, tiny_bundle: Path) -> None:
    ran = pfl("inspect", tiny_bundle)
    assert ran.code == 0
    for part in (
        "tiny version 1",
        "not signed",
        "onnxruntime",
        "gradients",
        "personal",
        "slots.active",
        "plan",
    ):
        assert part in ran.out
    assert "adopt the result only if loss falls" in ran.out


def test_inspect_shows_a_name_as_it_is(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Bundle.open(tiny_bundle) as bundle:
        found = bundles.describe(bundle, pinned=False)
    bundles._show({**found, "name": "a[/b][red]c", "version": "[/]"})
    assert "a[/b][red]c version [/]" in capsys.readouterr().out


def test_inspect_json(pfl: Run, tiny_bundle: Path) -> None:
    found = pfl("inspect", tiny_bundle, "--json").json
    assert found["roles"]["personal"]["tensors"] == len(found["tensors"]) == 10
    assert sum(t["bytes"] for t in found["tensors"]) == found["roles"]["personal"]["bytes"]
    assert set(found["engines"]) == {"onnxruntime", "torch"}
    assert found["signature"] == {"signed_by": None, "pinned": False}


def test_help_and_inspect_do_not_import_torch(tiny_bundle: Path) -> None:
    code = (
        "import sys; from pfl_mobile.cli import main; from pfl_exporters.cli import main as export\n"
        f"assert main(['--help']) == 0 and main(['inspect', {str(tiny_bundle)!r}]) == 0 and export(['--help']) == 0\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'executorch', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"], ["verify"], ["personalize"], ["peft"], ["data"], ["data", "list"], ["data", "get"],
        ["data", "users"], ["state"], ["state", "show"], ["state", "revert"], ["state", "reset"], ["keys"],
        ["keys", "new"], ["demo"], ["demo", "keyboard"],
    ],
)  # fmt: skip
def test_every_command_has_help_with_an_example(pfl: Run, command: list[str]) -> None:
    ran = pfl(*command, "--help")
    assert ran.code == 0
    if command[0] in ("inspect", "verify", "personalize", "peft") or len(command) == 2:
        assert "Example:" in ran.out
        assert "--json" in ran.out
        assert "Exit codes" in ran.out


def test_verify_runs_every_engine_but_torch_which_has_to_be_named(
    pfl: Run, tiny_bundle: Path, tiny_arrays: Path
) -> None:
    """Its files can hold code: looking at a bundle of unknown origin must not run any."""
    found = pfl("verify", tiny_bundle, "--json")
    assert found.code == 0
    assert found.json["engine"] == "onnxruntime"
    assert pfl("verify", tiny_bundle, "--engine", "torch", "--json").json["ok"]
    refused = pfl("verify", tiny_arrays, "--json")
    assert refused.error["type"] == "EngineUnavailableError"
    assert "'torch'" in refused.error["mend"]


def test_verify_one_engine_gives_one_object(pfl: Run, tiny_bundle: Path) -> None:
    found = pfl("verify", tiny_bundle, "--engine", "onnxruntime", "--json").json
    assert {"engine", "loss_rel_err", "grad_max_rel_err", "ok"} <= set(found)
    assert found["ok"]


def test_verify_fails_when_the_golden_batch_differs(pfl: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    from pfl_mobile.bundle import load_tensors, save_tensors, write_bundle

    with Bundle.open(tiny_bundle) as bundle:
        golden = load_tensors(bundle.path("golden.safetensors"))
        golden["out.gradients.grad.head.slot_rows"] *= 1.5
        save_tensors(tmp_path / "golden.safetensors", golden)
        files: dict[str, Path] = {name: bundle.path(name) for name in bundle.manifest.files}
        parts = bundle.manifest.model_dump(mode="json", exclude={"schema_version", "kind", "files"})
        parts["measured"].pop("total_bytes")
        write_bundle(tmp_path / "off", parts, files | {"golden.safetensors": tmp_path / "golden.safetensors"})
    ran = pfl("verify", tmp_path / "off", "--engine", "onnxruntime", "--json")
    assert ran.code == 1
    assert not ran.json["ok"]
    assert ran.json["grad_max_rel_err"] > 0.1
    plain = pfl("verify", tmp_path / "off", "--engine", "onnxruntime")
    assert "WRONG" in plain.out
    assert "head.slot_rows" in plain.out
    assert pfl("personalize", tmp_path / "off", "--data", _file(tmp_path), "--user", "ann").code == 1


def _file(folder: Path) -> Path:
    path = folder / "m.jsonl"
    path.write_text(
        "\n".join(json.dumps({"user": "ann", "text": f"{t} {i}"}) for i, t in enumerate(tiny.texts("ann")))
    )
    return path


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_path_that_is_no_bundle(pfl: Run, command: str, tmp_path: Path) -> None:
    ran = pfl(command, tmp_path / "nothing", "--json")
    assert ran.code == 2
    assert ran.error["type"] == "MissingFileError"
    assert "mend:" in ran.err
    assert "Traceback" not in ran.err


def test_a_tampered_bundle_is_refused(pfl: Run, copy: Path) -> None:
    plan = copy / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b"0.02", b"0.92"))
    ran = pfl("verify", copy, "--json")
    assert (ran.code, ran.error["type"]) == (2, "TamperedBundleError")


def test_an_engine_that_the_bundle_does_not_have(pfl: Run, tiny_bundle: Path) -> None:
    ran = pfl("verify", tiny_bundle, "--engine", "onnxruntim", "--json")
    assert ran.code == 2
    assert "did you mean 'onnxruntime'" in ran.error["mend"]


def test_keys_sign_and_pin(pfl: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    made = pfl("keys", "new", tmp_path / "key.pem", "--json").json
    data = (tiny_bundle / "manifest.json").read_bytes()
    shutil.copytree(tiny_bundle, tmp_path / "folder")
    (tmp_path / "folder" / "manifest.json.sig").write_bytes(sign(data, str(tmp_path / "key.pem")))
    with Bundle.open(tmp_path / "folder") as bundle:
        copy_bundle(bundle, tmp_path / "signed.pflb")
    signed = tmp_path / "signed.pflb"
    found = pfl("inspect", signed, "--public-key", tmp_path / "key.pem.pub", "--json").json
    assert found["signature"] == {"signed_by": made["public_key"], "pinned": True}
    ran = pfl("inspect", tiny_bundle, "--public-key", made["public_key"], "--json")
    assert (ran.code, ran.error["type"]) == (2, "SignatureError")
    again = pfl("keys", "new", tmp_path / "key.pem", "--json")
    assert (again.code, again.error["type"]) == (2, "KeyFileError")
    lost = pfl("keys", "new", tmp_path / "no" / "folder" / "key.pem", "--json")
    assert (lost.code, lost.error["type"]) == (2, "UnwritableError")


def test_a_torch_program_that_would_run_code_is_refused(pfl: Run, copy: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "it ran",)

    path = copy / "torch" / "predict.pt2"
    table = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["predict/data/constants/model_constants_config.json"] = json.dumps(
        {"config": {"x": table}}
    ).encode()
    members["predict/data/constants/opaque_obj_0"] = pickle.dumps(Code())
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    manifest = json.loads((copy / "manifest.json").read_text())
    before = manifest["files"]["torch/predict.pt2"]["bytes"]
    data = path.read_bytes()
    manifest["files"]["torch/predict.pt2"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["measured"]["total_bytes"] += len(data) - before
    (copy / "manifest.json").write_text(json.dumps(manifest))
    ran = pfl("verify", copy, "--engine", "torch", "--json")
    assert (ran.code, ran.error["type"]) == (2, "EngineError")
    assert "could run code" in ran.error["message"]
    assert not (tmp_path / "it ran").exists()


def test_wrong_usage_is_an_error_in_json_too(pfl: Run) -> None:
    ran = pfl("verify", "--json")
    assert (ran.code, ran.error["type"]) == (2, "UsageError")
    assert "BUNDLE" in ran.error["message"]


@pytest.mark.slow
def test_verify_on_arm64_runs_both_engines(
    pfl: Run, tiny_bundle_android: Path, on_arm64: bool, arm64_cache: Path, cache: Path
) -> None:
    if not on_arm64:
        pytest.skip(f"install {' '.join(arm64.missing_tools())}")
    cache.mkdir()
    (cache / "arm64").symlink_to(arm64_cache)
    found = pfl("verify", tiny_bundle_android, "--arch", "arm64", "--json").json
    assert [result["engine"] for result in found["engines"]] == arm64.engines()
    for result in found["engines"]:
        assert result["arch"] == "arm64"
        assert result["ok"]
        assert 0 <= result["loss_rel_err"] < 1e-5
        assert 0 < result["grad_max_rel_err"] < 1e-5  # another order of sums: not this machine's own kernels


def test_verify_names_the_architectures(pfl: Run, tiny_bundle: Path) -> None:
    ran = pfl("verify", tiny_bundle, "--arch", "arm", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "UnknownNameError"
    assert "arm64" in ran.json["error"]["mend"]

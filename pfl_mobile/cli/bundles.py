"""``pfl inspect`` and ``pfl verify``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pfl_mobile.bundle.consistency import tensor_bytes
from pfl_mobile.cli.common import EXIT_CODES, FAILED, OK, Json, Reporter, console, print_json, size, table
from pfl_mobile.errors import PflError

if TYPE_CHECKING:
    from pfl_mobile.bundle.manifest import Manifest, ProgramSpec, TensorSpec
    from pfl_mobile.bundle.read import Bundle

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or its .pflb file.")]
Key = Annotated[
    str | None,
    typer.Option("--public-key", metavar="KEY", help="Refuse a bundle not signed by this key (file or hex)."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="E",
        help="One of those of the bundle, for instance executorch; a wrong name lists them.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="A",
        help="arm64: run the programs on a phone's instruction set, emulated where this machine has another.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("inspect", epilog="Example:  pfl inspect keyboard-bundle  " + EXIT_CODES)(inspect)
    app.command(
        "verify", epilog="Example:  pfl verify keyboard-bundle --engine executorch --json  " + EXIT_CODES
    )(verify)


def open_bundle(path: Path, key: str | None) -> Bundle:
    """Open and check a bundle."""
    from pfl_mobile.bundle.read import Bundle

    return Bundle.open(path, public_key=key)


def inspect(bundle: BundlePath, public_key: Key = None, as_json: Json = False) -> None:
    """Show what is in a bundle: engines, programs, tensors by role, the plan in words, sizes, signature.

    Every file is checked against its checksum first; no program is run.
    """
    with open_bundle(bundle, public_key) as opened:
        found = describe(opened, pinned=public_key is not None)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _form(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape)}"


def _program(spec: ProgramSpec, manifest: Manifest) -> dict[str, Any]:
    device = {t.name for t in manifest.tensors}
    return {
        "name": spec.name,
        "inputs": [_form(s) for s in spec.inputs if s.name not in device],
        "device_tensors": sum(s.name in device for s in spec.inputs),
        "outputs": [_form(s) for s in spec.outputs if not s.name.startswith("grad.")],
        "gradients": sum(s.name.startswith("grad.") for s in spec.outputs),
    }


def describe(bundle: Bundle, *, pinned: bool) -> dict[str, Any]:
    """What ``pfl inspect --json`` prints."""
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.plan.words import plan_words

    manifest = bundle.manifest
    roles: dict[str, dict[str, int]] = {}
    for tensor in manifest.tensors:
        entry = roles.setdefault(tensor.role, {"tensors": 0, "values": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["values"] += math.prod(tensor.shape)
        entry["bytes"] += tensor_bytes(tensor)
    engines = {}
    for name, entry_of in manifest.engines.items():
        files = {path: manifest.files[path].bytes for path in sorted(set(entry_of.files.values()))}
        engines[name] = {"files": files, "bytes": sum(files.values()), "measured": dict(entry_of.measured)}
    plan = Plan.load(bundle.plan_json())
    return {
        "name": manifest.name,
        "version": manifest.version,
        "schema_version": manifest.schema_version,
        "task": manifest.task.model_dump(mode="json"),
        "encoder": None if manifest.encoder is None else manifest.encoder.model_dump(mode="json"),
        "engines": engines,
        "programs": [_program(p, manifest) for p in manifest.programs],
        "roles": roles,
        "tensors": [{**t.model_dump(mode="json"), "bytes": tensor_bytes(t)} for t in manifest.tensors],
        "modules": [m.model_dump(mode="json") for m in manifest.modules],
        "plan": plan.model_dump(mode="json"),
        "plan_in_words": plan_words(plan),
        "vocabulary": _vocabulary(bundle),
        "strategy": None if manifest.strategy is None else manifest.strategy.model_dump(mode="json"),
        "limits": manifest.limits.model_dump(mode="json"),
        "weights": None if manifest.weights is None else manifest.weights.model_dump(mode="json"),
        "measured": manifest.measured.model_dump(mode="json"),
        "signature": {"signed_by": bundle.signed_by, "pinned": pinned},
    }


def _vocabulary(bundle: Bundle) -> dict[str, Any] | None:
    """The rule by which the words were chosen from users' text; None where the bundle does not say."""
    from pfl_mobile.files.reading import read_bytes
    from pfl_mobile.text.vocabulary import RECORD, rule_of

    return rule_of(read_bytes(bundle.path(RECORD))) if RECORD in bundle.manifest.files else None


def _show(found: dict[str, Any]) -> None:
    out = console()
    task, measured = found["task"], found["measured"]
    out.print(f"[bold]{escape(found['name'])}[/] version {escape(found['version'])}, task {task['kind']}")
    if found["encoder"]:
        told = {k: v for k, v in found["encoder"].items() if v is not None}
        out.print("takes " + ", ".join(f"{k} {v}" for k, v in told.items()))
    if found["vocabulary"]:
        out.print("words chosen by " + ", ".join(f"{k} {v}" for k, v in found["vocabulary"].items()))
    signer = found["signature"]["signed_by"]
    if signer is None:
        out.print("not signed")
    else:
        who = (
            "the pinned key"
            if found["signature"]["pinned"]
            else "a key that was not checked (--public-key pins one)"
        )
        out.print(f"signed by {signer}: {who}")
    out.print(
        f"{size(measured['total_bytes'])} in all, planned memory {size(measured['planned_memory_bytes'])}, "
        f"frozen weights {size(measured['frozen_bytes'])}"
    )
    if (weights := found["weights"]) is not None:
        group = "" if weights["group"] is None else f" in groups of {weights['group']}"
        out.print(
            f"{len(weights['tensors'])} weights stored as {weights['kind']}{group}: loss on the example batch "
            f"{weights['loss']:.4g}, with the model's own {weights['loss_float32']:.4g}"
        )
    out.print("")
    rows: list[tuple[object, ...]] = [
        (
            name,
            size(e["bytes"]),
            ", ".join(e["files"]),
            ", ".join(f"{k} {size(v)}" for k, v in e["measured"].items()),
        )
        for name, e in found["engines"].items()
    ]
    out.print(table(["engine", "size", "files", "measured"], rows, right=[1]), "")
    rows = [
        (
            p["name"],
            ", ".join([*p["inputs"], f"+ {p['device_tensors']} device tensors"]),
            ", ".join([*p["outputs"], *([f"+ {p['gradients']} gradients"] if p["gradients"] else [])]),
        )
        for p in found["programs"]
    ]
    out.print(table(["program", "takes", "gives"], rows), "")
    rows = [(r, e["tensors"], e["values"], size(e["bytes"])) for r, e in found["roles"].items()]
    out.print(table(["role", "tensors", "values", "size"], rows, right=[1, 2, 3]), "")
    rows = [
        (t["name"], t["role"], t["update"], t["module"], f"{t['dtype']}{t['shape']}", size(t["bytes"]))
        for t in found["tensors"]
    ]
    out.print(table(["device tensor", "role", "written by", "module", "form", "size"], rows, right=[5]), "")
    rows = [
        (m["name"], m["kind"], ", ".join(f"{k}={v}" for k, v in m["config"].items()))
        for m in found["modules"]
    ]
    out.print(table(["module", "kind", "settings"], rows), "")
    out.print("[bold]plan[/]")
    for line in found["plan_in_words"]:
        out.print(f"  {line}", markup=False)
    if found["strategy"] is not None:
        said = ", ".join(f"{k} {v}" for k, v in found["strategy"]["parameters"].items())
        out.print(f"\n[bold]rounds[/] of {escape(found['strategy']['name'])} {escape(said)}")


def verify(
    bundle: BundlePath,
    engine: Engine = None,
    arch: Architecture = None,
    public_key: Key = None,
    as_json: Json = False,
) -> int:
    """Run the golden batch of a bundle and compare every output with what PyTorch gave at the export.

    Without --engine every engine of the bundle is run, except torch: its files can hold code, so it has to be named.
    Core ML's programs are interpreted (coreml-reference); on a Mac, --engine coreml runs Core ML itself.
    Each runs in a process of its own: a damaged program that ends it is an error here. With --arch arm64 that is the
    official ARM64 build of the runtime, of the version that is installed here; what has to be installed is said.
    The JSON is one object with engine, loss_rel_err,
    grad_max_rel_err, ok when one engine was run, else {"ok": ..., "engines": [one such object each]}. There,
    an engine that cannot be run is not ok and has an "error".
    """
    from pfl_mobile.engines import arm64, open_isolated
    from pfl_mobile.engines.registry import comparing

    if arch is not None:
        arm64.check_architecture(arch)
    with open_bundle(bundle, public_key) as opened, Reporter() as report:
        names = [engine] if engine is not None else comparing(opened.manifest.engines)
        if arch is not None and engine is None:
            names = [name for name in names if name in arm64.engines()] or names
        if not names:  # says which engine to name
            open_isolated(opened)
        results = []
        for name in names:
            report(f"run the golden batch on {name}{' on ARM64' if arch else ''}")
            try:
                results.append(_verify(opened, name, arch, report))
            except PflError as error:
                if len(names) == 1:
                    raise
                about = {"type": error.code, "message": error.message, "mend": error.mend}
                nothing = dict.fromkeys(("loss_rel_err", "grad_max_rel_err"))
                results.append({"engine": name, **nothing, "ok": False, "error": about})
    ok = all(r["ok"] for r in results)
    if as_json:
        print_json(results[0] if len(results) == 1 else {"ok": ok, "engines": results})
        return OK if ok else FAILED
    rows = [
        (
            r["engine"],
            "ok" if r["ok"] else "WRONG",
            _error(r["loss_rel_err"]),
            _error(r["grad_max_rel_err"]),
            _note(r),
        )
        for r in results
    ]
    console().print(table(["engine", "", "loss error", "gradient error", ""], rows, right=[2, 3]))
    return OK if ok else FAILED


def _verify(bundle: Bundle, engine: str, arch: str | None, report: Reporter) -> dict[str, Any]:
    from pfl_mobile.engines import open_isolated
    from pfl_mobile.engines.compare import golden_check

    with open_isolated(bundle, engine, arch=arch, report=report) as session:
        found = golden_check(bundle, session).to_json()
    return found if arch is None else {**found, "arch": arch}


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _note(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['error']['message']}; mend: {result['error']['mend']}"
    if result["ok"]:
        return ""
    return f"{result['worst']} is off by {_error(result['worst_rel_err'])} (allowed {result['tolerance']:g})"

"""The ``pfl-export`` command."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pfl_exporters.lowering.collecting import never
from pfl_exporters.targets import TARGETS, Target, check_weights, resolve, with_engines
from pfl_mobile.cli.common import (
    EXIT_CODES,
    FAILED,
    OK,
    Json,
    Reporter,
    bytes_of,
    console,
    print_json,
    run,
    size,
    table,
)
from pfl_mobile.errors import ConfigError, MissingDependencyError, UnwritableError, missing_package

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pfl_exporters.check import CheckReport
    from pfl_exporters.export import ExportReport
    from pfl_mobile.bundle.manifest import Manifest
    from pfl_mobile.cli.user_code import UserFunction
    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.programs.blocks import Recompute
    from pfl_mobile.programs.deployment import Deployment
    from pfl_mobile.programs.weights import WeightFormat
    from pfl_mobile.text.vocabulary import VocabularyRule

#: How a model says that it is one of transformers.
_TRANSFORMERS = "hf:"

app = typer.Typer(name="pfl-export", add_completion=False, rich_markup_mode="markdown")


@app.command(
    epilog="Examples:  pfl-export keyboard --target android --out keyboard.pflb --sign release.pem;  "
    "pfl-export my_model.py:build --target android,ios --engine onnxruntime;  "
    "pfl-export hf:SmolLM2-135M --lora q_proj,v_proj --rank 8;  "
    "pfl-export --check my_model.py:build.  " + EXIT_CODES
)
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="file.py:function, package.module:function, a recipe, a run's folder, or hf:FOLDER, a model of "
            "transformers.",
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="T",
            help="For instance android, ios, or all; several with commas; a wrong name lists them; default: android.",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="E",
            help="Also the files of this engine, which runs on the target's systems too: for ios executorch or "
            "onnxruntime, for android onnxruntime.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|FILE.pflb", help="Folder or .pflb file; default: ./NAME-bundle."),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option("--sign", metavar="KEY", help="Sign with this private key (pfl keys new FILE)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SRC", help="Dataset name or file, handed to the function."),
    ] = None,
    min_users: Annotated[
        int | None,
        typer.Option(
            "--min-users",
            min=1,
            help="Users who must have written a word of the vocabulary that ships; default: 5. 1 ships words of "
            "single users; the bundle records it.",
        ),
    ] = None,
    vocabulary_epsilon: Annotated[
        float | None,
        typer.Option(
            "--vocabulary-epsilon",
            metavar="E",
            help="Choose the vocabulary with differential privacy for each user instead.",
        ),
    ] = None,
    vocabulary_delta: Annotated[
        float | None,
        typer.Option("--vocabulary-delta", metavar="D", help="With that; default: 1e-6."),
    ] = None,
    block: Annotated[
        Path | None,
        typer.Option(
            "--block", metavar="FILE", help="Words, one a line, that must not be in the vocabulary."
        ),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora",
            metavar="LAYERS",
            help="Of hf:FOLDER: the layers that get LoRA, by the end of their names or a pattern, with commas; "
            "default: all-linear.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of LoRA; default: 8.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Of LoRA, whose scale is alpha / rank; default: the rank.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="LAYERS", help="Of hf:FOLDER: layers that are trained as a whole."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="Of hf:FOLDER: an adapter of peft, which says what is personal in place of --lora; devices start from "
            "its weights where it has some.",
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            min=2,
            help="Of hf:FOLDER: tokens of an example (default: 64), or samples of a sound (16000).",
        ),
    ] = None,
    target_length: Annotated[
        int | None,
        typer.Option(
            "--target-length",
            min=2,
            help="Of hf:FOLDER with encoder and decoder: tokens that it writes; default: --length.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Of hf:FOLDER: examples in a batch; default: 8.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Most memory that a step may need on a device besides the mapped weights, for instance 200MB: blocks "
            "run one after another, and the backward pass computes again what would not fit.",
        ),
    ] = None,
    recompute: Annotated[
        str | None,
        typer.Option(
            "--recompute",
            metavar="WHAT",
            help="What the backward pass computes again in place of keeping it: nothing, cheap, attention, or all of a "
            "block; default: as little as --memory takes, and what is cheap without it.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W",
            help="How frozen weights are stored: float32, int8, or int4 (int4:128 for groups of 128; default: 32). "
            "Programs compute in float32 with what is stored; default: what the function says, else float32.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random batches for the comparison.")] = 0,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only say, in seconds, which targets will take the model and what stands in the way; nothing is "
            "lowered, written or verified. Without --target: all of them.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show what the toolchains print and log, too."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Export a personalizable model as a bundle of verified on-device training programs.

    The function takes no argument, or of `data`, `report` and `vocabulary` what it needs, and returns a
    pfl_mobile.programs.deployment.Deployment, or a pfl_mobile.Study, which is trained first. The folder of a run of
    `pfl train` gives what that run trained. hf:FOLDER is a model of transformers as it was saved, with LoRA on its
    layers: a language model with its tokenizer.json, a classifier of texts or of pictures.
    Loss and every gradient of each exported program are compared with PyTorch before anything is written; when
    they differ nothing is left behind and the exit code is 1.

    A vocabulary that is learned from the users of the data only holds words of several of them, none with a digit.

    Core ML's programs are compared by an interpreter of the saved package, as Core ML runs on Apple's systems only;
    target ios is for iOS 18, ios17 for older ones, which take a package for each program.

    JSON: bundle, name, version, engines, total_bytes, planned_memory_bytes, frozen_bytes, verified (by engine:
    loss_rel_err, grad_max_rel_err), vocabulary (rule, users, kept, left_out by each rule), seconds (by step).
    weights (kind, group, tensors by name with bits and rel_err, bytes, float32_bytes, left_bytes, loss, loss_float32,
    output_rel_err; null for float32).
    With --check: name, ok, verified (false), refused (why no target takes it, or null), targets (by name: takes,
    obstacles with operator, program, layer, file, line and why, note), parameters, trained (tensors, numbers),
    frozen_bytes, operators (by program), compared_with_pytorch, seconds; the exit code is 1 where a target will not
    take the model.
    """
    from pfl_exporters.lowering.quiet import terminal
    from pfl_exporters.lowering.quiet import verbose as everything
    from pfl_mobile.programs.blocks import Recompute
    from pfl_mobile.programs.weights import WeightFormat

    how = None if weights is None else WeightFormat.of(weights)
    again = None if recompute is None else Recompute.of(recompute)
    rule = _rule(min_users, vocabulary_epsilon, vocabulary_delta, block)
    own = {
        "lora": lora, "rank": rank, "alpha": alpha, "head": head, "adapter": adapter, "length": length,
        "target-length": target_length, "batch": batch,
    }  # fmt: skip
    function = partial(_function, model, {name: value for name, value in own.items() if value is not None})
    if check:
        if out is not None or sign is not None:
            raise ConfigError("--check writes nothing", mend="leave --out and --sign out, or --check")
        wanted = None if target is None and not engine else _targets(target or ["android"], engine or [])
        with everything(verbose), Reporter(terminal()) as report:
            found = _check(function, wanted, data, rule, how, seed, report)
        if as_json:
            print_json(found.to_json())
        else:
            _show_check(found)
        raise typer.Exit(OK if found.ok else FAILED)
    targets = _targets(target or ["android"], engine or [])
    most = None if memory is None else bytes_of(memory)
    with everything(verbose), Reporter(terminal()) as report:
        done = _export(function, targets, out, sign, data, rule, how, seed, report, most, again)
    if as_json:
        print_json(done.to_json())
    else:
        _show(done)


def _targets(given: Sequence[str], engines: Sequence[str]) -> list[str]:
    chosen = resolve(_names(given) or ["android"])
    return [target.name for target in with_engines(chosen, _names(engines))]


def _names(given: Sequence[str]) -> list[str]:
    return [name.strip() for entry in given for name in entry.split(",") if name.strip()]


def _rule(
    min_users: int | None, epsilon: float | None, delta: float | None, block: Path | None
) -> VocabularyRule | None:
    """The rule that the options make; None where none is given."""
    from pfl_mobile.text.vocabulary import VocabularyRule, blocked_words

    if min_users is not None and epsilon is not None:
        raise ConfigError(
            "--min-users and --vocabulary-epsilon are two rules",
            mend="give one: an exact count undoes the privacy",
        )
    if delta is not None and epsilon is None:
        raise ConfigError("--vocabulary-delta goes with --vocabulary-epsilon", mend="give both, or none")
    given: dict[str, Any] = {"min_users": min_users, "epsilon": epsilon, "delta": delta}
    given["blocked"] = None if block is None else blocked_words(block)
    given = {name: value for name, value in given.items() if value is not None}
    return VocabularyRule(**given) if given else None


def _function(model: str, given: dict[str, Any], report: Reporter) -> UserFunction:
    """What makes the deployment.

    Args:
        model: as it was given.
        given: options for a model of transformers.
        report: told what is loaded.
    """
    from pfl_mobile.cli.user_code import UserFunction, find_function

    report(f"load {model}")
    if not model.startswith(_TRANSFORMERS):
        if given:
            name = next(iter(given))
            raise ConfigError(
                f"--{name} is for a model of transformers, hf:FOLDER",
                mend=f"say in the function of {model} what is personal and how large a batch is",
            )
        return find_function(model)
    source = model.removeprefix(_TRANSFORMERS)

    heads = _names([given.get("head", "")])
    # a head alone is a wish, too, and an adapter says what is personal
    layers = _names([given.get("lora", "" if heads or "adapter" in given else "all-linear")])
    if "adapter" in given and {"lora", "rank", "alpha"} & set(given):
        raise ConfigError(
            "--lora, --rank and --alpha do not go with --adapter, whose settings say which layers have which rank",
            mend="give one: --adapter DIR, or --lora with --rank and --alpha",
        )
    if not layers and {"rank", "alpha"} & set(given):
        raise ConfigError(
            "--rank and --alpha go with --lora", mend="name the layers that get LoRA: --lora all-linear"
        )

    def build(report: Callable[[str], None]) -> Deployment:
        from pfl_exporters.hugging_face import Shape, by_leaf, deployment
        from pfl_mobile.modules.head import Head
        from pfl_mobile.modules.lora import LoRA

        modules: list[ModuleConfig] = []
        if layers:
            targets = "all-linear" if layers == ["all-linear"] else by_leaf(layers)
            modules.append(LoRA(targets, rank=given.get("rank", 8), alpha=given.get("alpha")))
        if heads:
            modules.append(Head(by_leaf(heads)))
        sizes = {"batch": "batch", "length": "length", "target-length": "target"}
        shape = Shape(**{name: given[option] for option, name in sizes.items() if option in given})
        return deployment(source, modules, adapter=given.get("adapter"), shape=shape, report=report)

    return UserFunction(Path(source).name, model, build, None)


def _export(
    make: Callable[[Reporter], UserFunction],
    targets: Sequence[str],
    out: Path | None,
    sign: str | None,
    data: str | None,
    rule: VocabularyRule | None,
    how: WeightFormat | None,
    seed: int,
    report: Reporter,
    memory: int | None,
    recompute: Recompute | None,
) -> ExportReport:
    """Find out early what would fail late: keys, targets and places are looked at before any model is built."""
    from pfl_mobile.bundle.sign import load_private_key

    key = None if sign is None else load_private_key(sign)
    if how is not None:
        check_weights(resolve(targets), how)
    if out is not None:
        _check_place(out)
    function = make(report)
    place = out if out is not None else Path(f"{function.name.replace('_', '-')}-bundle")
    _check_place(place)
    report(f"load the tools for {', '.join(targets)}")
    try:
        with never():
            from pfl_exporters.export import export_bundle
    except ModuleNotFoundError as error:
        raise missing_package(error, "pfl-export") or error from error
    for wanted in resolve(targets):
        wanted.load()
    report(f"build the model of {function.shown}")
    deployment = _with_weights(function.deployment(data, report, rule), how)
    return export_bundle(
        deployment, targets, place, sign_key=key, report=report, seed=seed, memory=memory, recompute=recompute
    )


def _check(
    make: Callable[[Reporter], UserFunction],
    wanted: Sequence[str] | None,
    data: str | None,
    rule: VocabularyRule | None,
    how: WeightFormat | None,
    seed: int,
    report: Reporter,
) -> CheckReport:
    function = make(report)
    chosen, missing = [], {}
    try:
        with never():
            from pfl_exporters.check import check
    except ModuleNotFoundError as error:
        raise missing_package(error, "pfl-export") or error from error
    for target in _phones() if wanted is None else resolve(wanted):
        report(f"load the tools for {target.name}")
        try:
            target.load()
        except MissingDependencyError as error:
            if wanted is not None:
                raise
            missing[target.name] = error.mend
        else:
            chosen.append(target)
    report(f"build the model of {function.shown}")
    deployment = _with_weights(function.deployment(data, report, rule, trained=False), how)
    return check(deployment, chosen, seed=seed, report=report, missing=missing)


def _with_weights(deployment: Deployment, how: WeightFormat | None) -> Deployment:
    return deployment if how is None else replace(deployment, weights=how)


def _phones() -> list[Target]:
    """A target of each engine of phones, the first of its name."""
    found: dict[str, Target] = {}
    for target in TARGETS.all().values():
        if target.on_phones:
            found.setdefault(target.engine, target)
    return list(found.values())


def _show_check(found: CheckReport) -> None:
    from pfl_exporters.check import NOT_VERIFIED

    out = console()
    words = {True: "nothing in the way", False: "will not take it", None: "not known"}
    if found.refused is not None:
        out.print(f"no target takes {found.name}: {found.refused.message}", markup=False)
        out.print(f"mend: {found.refused.mend}", markup=False)
        if not found.operators:
            out.print("the trace ended there; more may stand in the way behind it", markup=False)
    for name, answer in found.targets.items():
        if found.refused is not None and not answer.lines:
            continue
        note = f" ({answer.note})" if answer.note else ""
        out.print(f"{name}: {words[answer.takes]}{note}", markup=False)
        for line in answer.lines:
            out.print(f"  {line}", markup=False)
    operators = ", ".join(f"{name} {count}" for name, count in found.operators.items())
    out.print(
        f"{found.name}: {found.parameters:,} parameters, {len(found.trained)} trained tensors of "
        f"{found.trained_numbers:,} numbers, {size(found.frozen_bytes)} frozen"
        + (f"; operators: {operators}" if operators else ""),
        markup=False,
    )
    if not found.compared and found.refused is None:
        out.print("the traced graphs were not compared with PyTorch: the model is large", markup=False)
    out.print(NOT_VERIFIED, markup=False)


def _check_place(out: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent.

    Raises:
        UnwritableError: it holds something that is not a bundle, or may not be written.
    """
    folder = out.absolute().parent
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        why = "is not a folder" if not os.path.isdir(folder) else "may not be written"
        raise UnwritableError(f"cannot write {out}: {folder} {why}", mend="give another --out")
    if os.path.isfile(out) and out.suffix != ".pflb":
        raise UnwritableError(f"{out} is a file that is there already", mend="give a folder or a .pflb file")
    if os.path.isdir(out) and any(out.iterdir()) and not os.path.isfile(out / "manifest.json"):
        raise UnwritableError(
            f"{out} is a folder with other things in it, not a bundle",
            mend=f"give a new folder, for instance --out {out / 'bundle'}",
        )


def _show(done: ExportReport) -> None:
    out, manifest = console(), done.manifest
    rows = [
        (engine, f"{e['loss_rel_err']:.1e}", f"{e['grad_max_rel_err']:.1e}")
        for engine, e in done.errors.items()
    ]
    out.print(table(["engine", "loss error", "gradient error"], rows, right=[1, 2]), "")
    measured = manifest.measured
    out.print(
        f"{done.out}: {manifest.name} version {manifest.version}, {size(measured.total_bytes)}, "
        f"planned memory {size(measured.planned_memory_bytes)}, {sum(done.seconds.values()):.0f} s",
        markup=False,
    )
    if done.weights is not None:
        out.print(_of_weights(done.weights), markup=False)
    if done.vocabulary is not None:
        out.print(f"vocabulary: {done.vocabulary.sentence()}", markup=False)
    elif manifest.tokenizer is not None and not _of_subwords(manifest):
        out.print("vocabulary: nobody said how its words were chosen; make sure that none is a single user's")
    out.print(f"look into it: pfl inspect {done.out}", markup=False)


def _of_weights(found: dict[str, Any]) -> str:
    name, worst = max(found["tensors"].items(), key=lambda item: float(item[1]["rel_err"]))
    group = "" if found["group"] is None else f" in groups of {found['group']}"
    output = "" if found["output_rel_err"] is None else f", output off by {found['output_rel_err']:.2g}"
    return (
        f"weights: {len(found['tensors'])} stored as {found['kind']}{group}, {size(found['bytes'])} for "
        f"{size(found['float32_bytes'])} in float32; off by {worst['rel_err']:.2g} at most ({name}); on the example "
        f"batch loss {found['loss']:.4g}, was {found['loss_float32']:.4g}{output}"
    )


def _of_subwords(manifest: Manifest) -> bool:
    """Whether the vocabulary is that of a tokenizer of subwords, which comes with its model."""
    return getattr(manifest.encoder, "subwords", None) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``pfl-export`` and return its exit code.

    Args:
        arguments: by default those of the process.
    """
    return run(app, "pfl-export", arguments)


def command() -> NoReturn:
    """Run ``pfl-export`` and end the process as soon as its exit functions have run.

    To take apart all that the toolchains imported, as Python does at its end, takes as long as a small export.
    """
    code = main()
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # nobody reads any more, or they are closed: Python knows what to do
        sys.exit(code)
    os._exit(code)

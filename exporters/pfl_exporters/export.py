"""From a deployment to a verified bundle."""

from __future__ import annotations

import hashlib
import os
import time
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfl_mobile.bundle.manifest import Manifest, ProgramSpec, WeightsEntry
from pfl_mobile.bundle.sign import PrivateKey
from pfl_mobile.bundle.versions import plain
from pfl_mobile.bundle.write import scratch_beside, write_bundle
from pfl_mobile.engines import ENGINES
from pfl_mobile.errors import ConfigError, EngineError, ExportError, GradientMismatchError
from pfl_mobile.files.tensors import tensors_to_bytes
from pfl_mobile.modules.personalize import tensor_digest
from pfl_mobile.programs.blocks import Recompute
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.trace import TracedProgram, evaluate, model_output, plain_attention, trace_programs
from pfl_mobile.programs.weights import DEQUANTIZE, StoredModel, WeightFormat
from pfl_mobile.text.vocabulary import RECORD, VocabularyReport, record

from .lowering import collecting
from .lowering.files import Lowered, Report
from .lowering.graphs import hints_read_once
from .lowering.quiet import ALONE, aloud, quiet
from .refusals import Refuser
from .staging import PlanTooLargeError, StagedFiles, as_parts
from .targets import TARGETS, Target, check_weights, resolve
from .verify import Case, check_engine, compared_with_pytorch, open_lowered, program_specs


@dataclass(frozen=True)
class ExportReport:
    """What ``export_bundle`` did.

    Attributes:
        out: the bundle.
        manifest: its manifest.
        errors: largest relative difference from PyTorch by engine: ``loss_rel_err``, ``grad_max_rel_err``.
        frozen_bytes: bytes of the frozen tensors that the programs need.
        seconds: by step.
        vocabulary: how the words of the tokenizer were chosen; None where nobody says, or there are none.
        weights: how weights are stored, each with its distance from the model's own, and what that does to loss and
            output on the example batch; None for float32.
    """

    out: Path
    manifest: Manifest
    errors: dict[str, dict[str, float]]
    frozen_bytes: int
    seconds: dict[str, float]
    vocabulary: VocabularyReport | None = None
    weights: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "bundle": str(self.out),
            "name": self.manifest.name,
            "version": self.manifest.version,
            "engines": {name: dict(entry.measured) for name, entry in self.manifest.engines.items()},
            "total_bytes": self.manifest.measured.total_bytes,
            "planned_memory_bytes": self.manifest.measured.planned_memory_bytes,
            "frozen_bytes": self.frozen_bytes,
            "verified": self.errors,
            "weights": self.weights,
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_json(),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def frozen_bytes(programs: Mapping[str, TracedProgram]) -> int:
    """Bytes of the distinct constants that the programs read: what a file must hold at least."""
    contents: dict[str, int] = {}
    seen: set[Any] = set()
    for program in programs.values():
        for node in program.graph.graph.nodes:
            if node.op != "get_attr":
                continue
            tensor = getattr(program.graph, node.target)
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if place in seen:  # the programs share their constants, which may be large
                continue
            seen.add(place)
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()  # also bfloat16
            bits = min((user.args[2] for user in node.users if user.target is DEQUANTIZE), default=8)
            packed = data.nbytes * bits // 8 if tensor.dtype == torch.int8 else data.nbytes
            contents[hashlib.sha256(data).hexdigest()] = packed
    return sum(contents.values())


def _distance(deployment: Deployment, stored: StoredModel) -> dict[str, Any]:
    """What stored weights do to loss and output on the example batch: fields of `WeightsEntry`."""
    model, task, batch = deployment.model, deployment.task, dict(deployment.batch)
    found = []
    with torch.no_grad(), plain_attention():
        for own in ({}, stored.originals):
            values = {**model.values(), **own}
            sums = evaluate(model, task, batch, values)
            # a batch of padding alone has no loss
            loss_of_batch = float(sums["loss_sum"]) / (float(sums["weight_sum"]) or 1.0)
            found.append((loss_of_batch, model_output(model, task, batch, values)))
    (loss, output), (before, wanted) = found
    apart = None
    if isinstance(output, torch.Tensor):
        apart = float((output - wanted).double().norm()) / (float(wanted.double().norm()) or 1.0)
    return {"loss": loss, "loss_float32": before, "output_rel_err": apart}


def _golden(reference: Sequence[Case], specs: Sequence[ProgramSpec]) -> dict[str, np.ndarray]:
    """The first reference case of each program: complete inputs, and what PyTorch gave for them."""
    found: dict[str, np.ndarray] = {}
    for spec in specs:
        case = next(c for c in reference if c.program == spec.name)
        found |= {f"in.{spec.name}.{i.name}": case.inputs[i.name].numpy() for i in spec.inputs}
        found |= {f"out.{spec.name}.{o.name}": case.outputs[o.name].numpy() for o in spec.outputs}
    return found


def export_bundle(
    deployment: Deployment,
    targets: Sequence[str],
    out: str | os.PathLike[str],
    *,
    sign_key: PrivateKey | None = None,
    report: Report = lambda _: None,
    seed: int = 0,
    blocks: bool | None = None,
    memory: int | None = None,
    recompute: Recompute | None = None,
) -> ExportReport:
    """Trace, lower, compare with PyTorch, and only then write a bundle.

    Args:
        deployment: the model and what goes with it.
        targets: target names, or ``all``.
        out: folder of the bundle, or a ``.pflb`` file.
        sign_key: Ed25519 private key (PEM file, hex, or key object).
        report: told about every step.
        seed: of the random batches of the comparison.
        blocks: whether blocks that repeat are lowered and stored once, and run one after another, on targets that can;
            None for where that pays: large models, and where ``memory`` or ``recompute`` is given.
        memory: bytes that a program may need at once on a device, besides the frozen weights, which are mapped from
            their file; for targets that run blocks one after another.
        recompute: what the backward pass computes again in place of keeping it; None for as little as ``memory``
            takes, and what is cheap where there is no bound. For the same targets.

    Raises:
        ExportError: the model cannot be exported; GradientMismatchError when numbers differ. Nothing is written.
        BundleError: the bundle cannot be written.
    """
    with ALONE, collecting.when_told():
        chosen = resolve(targets)
        check_weights(chosen, WeightFormat.of(deployment.weights))
        with deployment.stored() as stored:
            return _export(
                deployment, chosen, out, sign_key, aloud(report), seed, stored, blocks, memory, recompute
            )


def _export(
    deployment: Deployment,
    chosen: Sequence[Target],
    out: str | os.PathLike[str],
    sign_key: PrivateKey | None,
    report: Report,
    seed: int,
    stored: StoredModel | None,
    blocks: bool | None,
    memory: int | None,
    recompute: Recompute | None,
) -> ExportReport:
    if not chosen:
        raise ExportError("no target was named", mend=f"give at least one of {', '.join(TARGETS.names())}")
    for target in chosen:
        target.load()
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step] = seconds.get(step, 0.0) + now - clock
        clock = now

    whole = [target.name for target in chosen if not target.parts]
    if whole and (memory is not None or recompute is not None):
        able = ", ".join(target.name for target in TARGETS.all().values() if target.parts)
        raise ConfigError(
            f"target {whole[0]} runs each program as a whole, whatever memory that takes",
            mend=f"{able} keep bounds of memory and compute again, and the SDK for iOS runs their files too, on "
            "ExecuTorch or ONNX Runtime; export for the others in a call of their own",
        )
    model, task = deployment.model, deployment.task
    batch, little = dict(deployment.batch), dict(deployment.inputs_of_predict())
    held = sum(tensor.nbytes for tensor in model.frozen_tensors().values())
    digest = model.backbone_digest()
    report("trace")
    programs = trace_programs(model, task, batch, little, say=report)
    specs = program_specs(programs)
    lap("trace")
    report("compare the traced graphs with PyTorch")
    reference = compared_with_pytorch(deployment, programs, seed)
    weights = None if stored is None else {**stored.to_json(), **_distance(deployment, stored)}
    lap("compare")
    refuser = Refuser(deployment, programs, reference, report)
    report("look up the operators")
    refuser.look_up(chosen)
    lap("look up")
    with scratch_beside(out) as scratch:
        frozen = frozen_bytes(programs)

        def lowered_on(target: Target, parts: StagedFiles | None) -> Lowered:
            try:
                if parts is not None and target.parts:
                    return parts.lower(target, scratch, report)
                return target.lower(programs, scratch, report)
            except (ExportError, EngineError) as error:
                raise refuser.of_lowering(target, error) from error
            finally:
                lap(target.name)

        def lowered_on_all(parts: StagedFiles | None, first: str) -> dict[str, Lowered]:
            """By name of the target; nothing is compared before all are known to fit."""
            order = sorted(chosen, key=lambda target: target.name != first)
            return {target.name: lowered_on(target, parts) for target in order}

        def checked(target: Target, lowered: Lowered) -> dict[str, float]:
            """Its errors."""
            report(f"compare {target.compared_by} with PyTorch: loss and every gradient")
            try:
                with quiet(), hints_read_once(typing), open_lowered(target, lowered, specs) as session:
                    return check_engine(session, reference, lowered.tolerance)
            except GradientMismatchError as error:
                raise refuser.of_numbers(target, error, lowered.tolerance) from error
            except (ExportError, EngineError) as error:
                raise refuser.of_lowering(target, error) from error
            finally:
                collecting.among_new(held)
                lap("compare")

        beyond: Recompute | None = None
        hardest = ""
        while True:
            parts = None
            if any(target.parts for target in chosen):
                parts = as_parts(
                    programs, frozen, scratch, wanted=blocks, most=memory, beyond=beyond, chosen=recompute
                )
                lap("cut")
            try:
                lowered = lowered_on_all(parts, hardest)
                break
            except PlanTooLargeError as error:
                if parts is None or recompute is not None or parts.again is Recompute.ALL:
                    raise
                # the target that refused is asked first, before others are lowered for nothing
                beyond, hardest = parts.again, error.target
                report(f"{error.message}: compute more again in the backward pass")
        errors: dict[str, dict[str, float]] = {}
        engines: dict[str, Any] = {}
        files: dict[str, Path] = {}
        for target in chosen:
            its = lowered[target.name]
            errors[target.compared_by] = checked(target, its)
            engines[target.engine] = {
                "files": its.files,
                "measured": its.measured,
                "runtime": _runtime(target.engine, its.at_least),
                "precision": its.precision,
            }
            files.update(its.paths)
        if model.backbone_digest() != digest:
            raise ExportError(
                "the backbone's weights changed during the export",
                mend="its forward writes to its own parameters or buffers; remove that",
            )
        report("write the bundle")
        manifest = write_bundle(
            out,
            {**_parts(deployment, specs, engines, frozen), "weights": _weights(weights)},
            {**files, **_data_files(deployment, reference, specs)},
            sign_key=sign_key,
            take_from=scratch,
        )
        lap("write")
    return ExportReport(Path(out), manifest, errors, frozen, seconds, deployment.vocabulary, weights)


def _weights(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The manifest's entry of what is reported."""
    if found is None:
        return None
    kept = {name: found[name] for name in WeightsEntry.model_fields}
    return kept | {"tensors": {name: tensor["rel_err"] for name, tensor in found["tensors"].items()}}


def _runtime(engine: str, at_least: str | None) -> dict[str, str] | None:
    """Which versions of the runtime load the files, of which one has just met PyTorch's numbers."""
    verified = plain(ENGINES.find(engine).version or "")
    return None if at_least is None or verified is None else {"at_least": at_least, "verified": verified}


def _data_files(
    deployment: Deployment, reference: Sequence[Case], specs: Sequence[ProgramSpec]
) -> dict[str, bytes | os.PathLike[str]]:
    values = {name: value.numpy() for name, value in deployment.model.values().items()}
    found: dict[str, bytes | os.PathLike[str]] = {
        "plan.json": deployment.plan.dump().encode(),
        "tensors.safetensors": tensors_to_bytes(values, finite=True),
        "golden.safetensors": tensors_to_bytes(_golden(reference, specs), finite=True),
    }
    if deployment.tokenizer is not None:
        found["tokenizer.json"] = deployment.tokenizer
        found[RECORD] = record(deployment.vocabulary)
    return found


def _parts(
    deployment: Deployment, specs: Sequence[ProgramSpec], engines: Mapping[str, Any], frozen: int
) -> dict[str, Any]:
    """The manifest's fields, except those that the writer computes."""
    tensors = [
        {
            "name": info.name,
            "role": info.role,
            "group": info.group,
            "shape": info.shape,
            "dtype": info.dtype,
            "update": info.update,
            "module": info.module,
        }
        for info in deployment.model.device_tensors()
    ]
    encoder = deployment.encoder or {"kind": "arrays", "batch": int(deployment.batch["weight"].shape[0])}
    planned = [v for e in engines.values() for k, v in e["measured"].items() if k.startswith("planned_")]
    return {
        "name": deployment.name,
        "version": deployment.version,
        "programs": specs,
        "engines": dict(engines),
        "tensors": tensors,
        "frozen_sha256": tensor_digest(deployment.model.frozen_tensors()),
        "modules": deployment.model.modules_table,
        "task": deployment.task.manifest(),
        "encoder": encoder,
        "tokenizer": "tokenizer.json" if deployment.tokenizer is not None else None,
        "strategy": deployment.strategy,
        "limits": deployment.limits,
        "measured": {"frozen_bytes": frozen, "planned_memory_bytes": max(planned, default=None)},
    }

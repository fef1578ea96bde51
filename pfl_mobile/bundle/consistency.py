"""The rules between the fields of a manifest, which its JSON Schema cannot say."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from pfl_mobile.bundle.paths import MANIFEST, SIGNATURE, check_distinct
from pfl_mobile.errors import near

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pfl_mobile.bundle.manifest import DeviceTensor, Manifest, TensorSpec

#: NumPy has no more.
_MOST_DIMENSIONS = 32
_MOST_TENSOR_BYTES = 4 << 30
_WIDTHS = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


def check(manifest: Manifest) -> None:
    """Check that the fields agree.

    Raises:
        ValueError: naming the first two things that do not.
        UnsafePathError: two of its paths are one file on some system.
    """
    _check_sizes(manifest)
    unique("program", (p.name for p in manifest.programs))
    unique("tensor", (t.name for t in manifest.tensors))
    unique("module", (m.name for m in manifest.modules))
    _check_modules(manifest)
    _check_programs(manifest)
    _check_files(manifest)
    _check_encoder(manifest)


def _check_sizes(manifest: Manifest) -> None:
    """No tensor is larger than any bundle: said before room is made for one."""
    for program in manifest.programs:
        for spec in (*program.inputs, *program.outputs):
            check_size(f"program {program.name!r}", spec)
    for tensor in manifest.tensors:
        check_size("the bundle", tensor)


def check_size(where: str, spec: TensorSpec | DeviceTensor) -> None:
    """Raise ValueError when no device can hold a tensor, or no runtime has as many dimensions."""
    if len(spec.shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{where} has {spec.name!r} of {len(spec.shape)} dimensions")
    if tensor_bytes(spec) > _MOST_TENSOR_BYTES:
        raise ValueError(f"{where} has {spec.name!r} of {_form(spec)}, which no device can hold")


def tensor_bytes(spec: TensorSpec | DeviceTensor) -> int:
    """Bytes of a tensor of this shape."""
    return math.prod(spec.shape) * _WIDTHS[spec.dtype]


def unique(what: str, names: Iterable[str]) -> None:
    """Raise ValueError when a name stands twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{what} {name!r} is listed {count} times")


def _check_modules(manifest: Manifest) -> None:
    known = {m.name for m in manifest.modules}
    for tensor in manifest.tensors:
        if tensor.module is not None and tensor.module not in known:
            raise ValueError(
                f"tensor {tensor.name!r} belongs to module {tensor.module!r}, which is not listed; "
                + near(tensor.module, known)
            )


def _check_programs(manifest: Manifest) -> None:
    tensors = {t.name: t for t in manifest.tensors}
    for program in manifest.programs:
        for spec in program.inputs:
            tensor = tensors.get(spec.name)
            if tensor is not None and (tensor.shape, tensor.dtype) != (spec.shape, spec.dtype):
                raise ValueError(
                    f"program {program.name!r} takes {spec.name!r} as {_form(spec)}, "
                    f"but the device tensor is {_form(tensor)}"
                )
        for spec in program.outputs:
            if not spec.name.startswith("grad."):
                continue
            tensor = tensors.get(spec.name.removeprefix("grad."))
            if tensor is None or tensor.update != "gradient":
                raise ValueError(f"output {spec.name!r} is not the gradient of a tensor trained by gradients")
            if tensor.shape != spec.shape:
                raise ValueError(f"output {spec.name!r} is {_form(spec)}, but the tensor is {_form(tensor)}")


def _check_files(manifest: Manifest) -> None:
    check_distinct([*manifest.files, MANIFEST, SIGNATURE])
    named = {"plan": manifest.plan, "values": manifest.values, "golden": manifest.golden}
    if manifest.tokenizer is not None:
        named["tokenizer"] = manifest.tokenizer
    for engine, entry in manifest.engines.items():
        named |= {f"engine {engine!r} as {purpose!r}": path for purpose, path in entry.files.items()}
    for use, path in named.items():
        if path not in manifest.files:
            raise ValueError(f"file {path!r} (for {use}) is not in files; {near(path, manifest.files)}")
    total = sum(entry.bytes for entry in manifest.files.values())
    if total != manifest.measured.total_bytes:
        raise ValueError(
            f"total_bytes is {manifest.measured.total_bytes}, but the files have {total} together"
        )


def _check_encoder(manifest: Manifest) -> None:
    encoder = manifest.encoder
    if encoder is None or encoder.kind != "text":
        return
    if manifest.tokenizer is None:
        raise ValueError("the encoder is for text, but no tokenizer is named")
    if encoder.subwords is not None and encoder.slots:
        raise ValueError("the encoder has vocabulary slots over subwords")
    total = encoder.vocabulary + encoder.slots
    if manifest.task.vocabulary not in (None, total):
        raise ValueError(f"task.vocabulary is {manifest.task.vocabulary}, but words and slots are {total}")
    for program in manifest.programs:
        if program.name not in ("gradients", "evaluate"):
            continue
        for spec in program.inputs:
            if spec.name == "tokens" and spec.shape != (encoder.batch, encoder.length):
                raise ValueError(
                    f"program {program.name!r} takes tokens of shape {list(spec.shape)}, "
                    f"but the encoder gives {[encoder.batch, encoder.length]}"
                )


def _form(spec: TensorSpec | DeviceTensor) -> str:
    return f"{spec.dtype} {list(spec.shape)}"

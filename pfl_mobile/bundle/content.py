"""What the tensor files of a bundle must hold: the manifest says which tensors, these functions check it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pfl_mobile.errors import TensorMismatchError, near

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from pfl_mobile.bundle.manifest import DeviceTensor, Manifest, ProgramSpec, TensorSpec


class GoldenCase(NamedTuple):
    """One call of a program: complete inputs, and the outputs that PyTorch gave for them."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def check_values(manifest: Manifest, values: Mapping[str, np.ndarray]) -> None:
    """Check that ``values`` are exactly the device tensors of ``manifest``.

    Raises:
        TensorMismatchError: one is missing, unknown, or of another shape or dtype.
    """
    _same_names(manifest.values, (t.name for t in manifest.tensors), values)
    for tensor in manifest.tensors:
        _same_form(manifest.values, tensor, values[tensor.name])


def golden_cases(
    manifest: Manifest, golden: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, GoldenCase]:
    """The calls in a golden file, by program.

    Args:
        manifest: of the same bundle.
        golden: tensors named ``in.<program>.<input>`` and ``out.<program>.<output>``.
        values: initial values, for the device tensors that a call takes but the file does not hold.

    Raises:
        TensorMismatchError: a tensor is missing, unknown, or of another shape or dtype than the program's; or
            the file holds no call at all.
    """
    cases: dict[str, GoldenCase] = {}
    for program in manifest.programs:
        given = _with_prefix(golden, f"in.{program.name}.")
        outputs = _with_prefix(golden, f"out.{program.name}.")
        if given or outputs:
            cases[program.name] = _case(manifest, program, given, outputs, values)
    taken = {
        f"{way}.{name}.{tensor}"
        for name, case in cases.items()
        for way, tensors in (("in", case.inputs), ("out", case.outputs))
        for tensor in tensors
    }
    unknown = sorted(set(golden) - taken)
    if unknown or not cases:
        what = f"tensor {unknown[0]!r}, which belongs to no program" if unknown else "no call of any program"
        raise TensorMismatchError(f"{manifest.golden} has {what}", mend="export the bundle again")
    return cases


def _case(
    manifest: Manifest,
    program: ProgramSpec,
    given: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    values: Mapping[str, np.ndarray],
) -> GoldenCase:
    where = f"program {program.name!r} in {manifest.golden}"
    names = [spec.name for spec in program.inputs]
    state = {name: values[name] for name in names if name in values and name not in given}
    inputs = {**given, **state}
    _same_names(f"the inputs of {where}", names, inputs)
    _same_names(f"the outputs of {where}", (spec.name for spec in program.outputs), outputs)
    for spec in program.inputs:
        _same_form(f"input of {where}", spec, inputs[spec.name])
    for spec in program.outputs:
        _same_form(f"output of {where}", spec, outputs[spec.name])
    return GoldenCase(
        {name: inputs[name] for name in names}, {s.name: outputs[s.name] for s in program.outputs}
    )


def _with_prefix(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _same_names(where: str, expected: Iterable[str], found: Iterable[str]) -> None:
    expected, found = list(expected), set(found)
    for name in expected:
        if name not in found:
            raise TensorMismatchError(f"{where}: tensor {name!r} is missing", mend="export the bundle again")
    for name in sorted(found - set(expected)):
        raise TensorMismatchError(f"{where}: unknown tensor {name!r}", mend=near(name, expected))


def _same_form(where: str, spec: TensorSpec | DeviceTensor, array: np.ndarray) -> None:
    if (tuple(array.shape), array.dtype.name) != (spec.shape, spec.dtype):
        raise TensorMismatchError(
            f"{where}: {spec.name!r} is {array.dtype.name} {list(array.shape)}, "
            f"but the manifest says {spec.dtype} {list(spec.shape)}",
            mend="export the bundle again",
        )

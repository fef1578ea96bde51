"""Compare programs with PyTorch: every output, every gradient, on random and on padded batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pfl_mobile.bundle.manifest import ProgramSpec, TensorSpec
from pfl_mobile.engines import EngineSession, load_engine
from pfl_mobile.engines.compare import GRADIENT, TOLERANCE, output_errors, relative_error
from pfl_mobile.errors import ExportError, GradientMismatchError, PflError
from pfl_mobile.modules.personalize import PersonalizedModel
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.forms.recurrences import AtLeastOneStep
from pfl_mobile.programs.mixing import where_rows_mix
from pfl_mobile.programs.refusals import explained
from pfl_mobile.programs.simplify import copied
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.trace import (
    TracedProgram,
    evaluate,
    gradients,
    model_output,
    plain_attention,
    predict,
    trained_names,
)
from pfl_mobile.programs.weights import one_for_each_use, rows_first

from .lowering.files import Lowered
from .lowering.stored import has_stored
from .targets import Target

__all__ = [
    "TOLERANCE",
    "Case",
    "cases",
    "check_engine",
    "check_traced",
    "compare",
    "compared_with_pytorch",
    "open_lowered",
    "program_specs",
    "relative_error",
]


@dataclass(frozen=True)
class Case:
    """Inputs of a program and what PyTorch gives for them."""

    program: str
    what: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _like(example: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of the kind of ``example``: its own entries drawn again, floats with noise added.

    Noise keeps within the range of the example, and whole numbers (flags, counts) get none: a logarithm or a
    probability in the user's loss has values that it must not meet.
    """
    flat = example.flatten()
    drawn = flat[torch.randint(0, len(flat), (len(flat),), generator=generator)].reshape(example.shape)
    if not example.is_floating_point() or not len(flat):
        return drawn
    least, most = float(flat.min()), float(flat.max())
    noise = torch.randn(example.shape, generator=generator)
    if least == most:
        return drawn + 0.1 * noise
    if bool((flat == flat.round()).all()):
        return drawn
    return (drawn + 0.5 * float(flat.std()) * noise).clamp(least, most)


def random_values(model: PersonalizedModel, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Random device tensors. Gradient-trained ones move away from their start, where many gradients vanish; integer
    ones (an n-gram memory) are filled from the batch's own ids, so that they match something."""
    ids = torch.cat(
        [v.flatten() for v in batch.values() if v.dtype == torch.int64] or [torch.zeros(1).long()]
    )
    values = {}
    for name, value in model.values().items():
        update = next(info.update for info in model.device_tensors() if info.name == name)
        if value.dtype == torch.int64:
            picks = torch.randint(0, len(ids), (value.numel(),), generator=generator)
            values[name] = ids[picks].reshape(value.shape)
        elif update == "assign":
            values[name] = torch.randint(0, 2, value.shape, generator=generator).to(value.dtype)
        else:
            values[name] = value + 0.05 * torch.randn(value.shape, generator=generator)
    return values


@plain_attention()
def cases(
    model: PersonalizedModel,
    task: Task,
    batch: Batch,
    predict_batch: Batch,
    *,
    rounds: int = 2,
    seed: int = 0,
) -> list[Case]:
    """Reference cases of all programs: the example batch, then random ones with random and zero weights.

    Raises:
        ExportError: PyTorch itself gives values that are not finite, or padding moves the sums.
    """
    with AtLeastOneStep():
        return _cases(model, task, batch, predict_batch, rounds, seed)


def _cases(
    model: PersonalizedModel, task: Task, batch: Batch, predict_batch: Batch, rounds: int, seed: int
) -> list[Case]:
    generator = torch.Generator().manual_seed(seed)
    trained = trained_names(model)
    labelled = {k: batch[k] for k in (*task.inputs, *task.labels, "weight")}
    short = {k: predict_batch[k] for k in (*task.inputs, *task.predict_extra)}
    found = []
    for index in range(rounds + 1):
        values = random_values(model, batch, generator)
        full, little, what = dict(labelled), dict(short), "the example batch"
        if index:
            what = f"random batch {index}"
            full = {k: _like(v, generator) for k, v in labelled.items() if k != "weight"}
            weight = torch.rand(batch["weight"].shape, generator=generator)
            # rows of zero weight are padding: a partial batch must not move anything
            weight[index % 2 :: 2] = 0.0
            full["weight"] = weight
            full = {k: full[k] for k in labelled}
            little = {k: v if k in task.predict_extra else _like(v, generator) for k, v in short.items()}
        drawn, least = full, math.inf
        for _ in range(_HALVINGS + 1):
            full = garbage = drawn
            if index:
                garbage = _some_right(model, task, drawn, values)
                full = {k: _padded(v, index % 2) for k, v in garbage.items()}
            trained_on = gradients(model, task, full, values, trained)
            finite = _not_finite(trained_on) is None  # else it is said below, with what it comes from
            noise = max(
                (
                    _noise(trained_on, gradients(model, task, full, beside, trained))
                    for beside in (_neighbours(values, trained) if finite else ())
                ),
                default=0.0,
            )
            if noise < least or math.isinf(least):
                least, taken = noise, (values, full, garbage, trained_on)
            if noise <= _STEADY * TOLERANCE:
                break
            values = _halfway(model, values, trained)
        values, full, garbage, trained_on = taken
        if index:
            _check_padding(
                gradients(model, task, garbage, values, trained),
                trained_on,
                partial(where_rows_mix, model, task, garbage, full),
            )
        with torch.no_grad():
            evaluated, predicted = evaluate(model, task, full, values), predict(model, task, little, values)
        cases_of_round = [
            Case("gradients", what, {**full, **values}, trained_on),
            Case("evaluate", what, {**full, **values}, evaluated),
            Case("predict", what, {**little, **values}, predicted),
        ]
        for case in cases_of_round:
            _check_finite(case)
        found += cases_of_round
    return found


#: Gradients with neighbours of the values in float32 may differ by this part of the tolerance.
_STEADY = 0.1
#: So often the values go half the way back to the shipped ones, until they do; else those that differ least are taken.
_HALVINGS = 6


def _neighbours(values: Mapping[str, Tensor], trained: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Each trained number a little larger or smaller, as a draw says, and then the other way.

    By 2 to 4 spacings of float32, as fewer are often lost in the next sum. Where two numbers are so near each other
    that rounding says which is the larger, as for a maximum, one of the two ways changes places.
    """
    generator = torch.Generator().manual_seed(0)
    ups = {name: torch.rand(values[name].shape, generator=generator) < 0.5 for name in trained}
    for step in (2.0**-21, -(2.0**-21)):
        yield {
            name: value * torch.where(ups[name], 1.0 + step, 1.0 - step) if name in ups else value
            for name, value in values.items()
        }


def _noise(gradients: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """By how much rounding moves the gradients: what is much below the tolerance tells a right engine from a wrong one.

    In a deep model that random values have thrown off, the order of float32 sums alone decides what the gradients
    are: PyTorch itself is further from the same model in float64 than an engine may be from PyTorch.
    """
    want = {name: value.numpy() for name, value in gradients.items()}
    errors = output_errors({name: value.numpy() for name, value in others.items()}, want)
    return max((error for _, error, kind in errors if kind == "gradient"), default=0.0)


def _halfway(
    model: PersonalizedModel, values: Mapping[str, Tensor], trained: Sequence[str]
) -> dict[str, Tensor]:
    shipped = model.values()
    return {name: (value + shipped[name]) / 2 if name in trained else value for name, value in values.items()}


def _some_right(
    model: PersonalizedModel, task: Task, batch: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The batch with the model's own best class as every second label, so that hits are there to be counted."""
    if task.kind not in ("tokens", "classification"):
        return dict(batch)
    with torch.no_grad():
        output = model_output(model, task, batch, values)
    best = output[..., getattr(task, "specials", 0) :].argmax(-1) + getattr(task, "specials", 0)
    every_second = torch.arange(best.numel()).reshape(best.shape) % 2 == 0
    return {**batch, "labels": torch.where(every_second, best, batch["labels"])}


def _padded(entry: Tensor, start: int) -> Tensor:
    """The entry with every second row, from ``start``, as devices pad: zero everywhere."""
    entry = entry.clone()
    entry[start::2] = 0
    return entry


def _check_padding(
    garbage: Mapping[str, Tensor], zeros: Mapping[str, Tensor], where: Callable[[], str]
) -> None:
    """Rows of weight 0 must not count, whatever is in them."""
    want = {name: value.numpy() for name, value in garbage.items()}
    for name, error, _ in output_errors({k: v.numpy() for k, v in zeros.items()}, want):
        if error > TOLERANCE:
            raise ExportError(
                f"examples of weight 0 change {name!r} by {error:.2g} of its largest entry{where()}",
                mend="devices fill a last batch with zeros of weight 0: no example's loss may depend on the other "
                "examples (no mean over the batch: x.mean(-1) in place of x.mean(0) or x.mean()), and it must be "
                "finite for an example that is zero everywhere: x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)",
            )


def _not_finite(outputs: Mapping[str, Tensor]) -> str | None:
    """The name of the first output that has a value that is none."""
    return next(
        (n for n, v in outputs.items() if v.is_floating_point() and not bool(v.isfinite().all())), None
    )


def _check_finite(case: Case) -> None:
    name = _not_finite(case.outputs)
    if name is not None:
        raise ExportError(
            f"PyTorch itself gives values that are not finite: output {name!r} of program {case.program!r} "
            f"on {case.what}",
            mend="check the example batch and the model for NaN, and the loss for a logarithm or a division "
            "that some values of the batch's range break",
        )


Runner = Callable[[str, Mapping[str, Tensor]], Mapping[str, np.ndarray]]


def compare(who: str, run: Runner, reference: list[Case], tolerance: float = TOLERANCE) -> dict[str, float]:
    """Check every output of every case.

    Returns:
        ``loss_rel_err`` and ``grad_max_rel_err``, the largest that were seen.

    Raises:
        GradientMismatchError: an output differs; the message names program, output and batch.
    """
    keys = {"loss": "loss_rel_err", "gradient": "grad_max_rel_err"}
    worst = dict.fromkeys(keys.values(), 0.0)
    for case in reference:
        got = run(case.program, case.inputs)
        weight = case.inputs["weight"].numpy() if "weight" in case.inputs else None
        want = {name: value.numpy() for name, value in case.outputs.items()}
        for name, error, kind in output_errors(got, want, weight, tolerance):
            if kind in keys:
                worst[keys[kind]] = max(worst[keys[kind]], error)
            if error > tolerance:
                wrong = GradientMismatchError(
                    f"{who}: output {name!r} of program {case.program!r} differs from PyTorch by {error:.2g} "
                    f"relative to its largest entry on {case.what} (allowed {tolerance:g})",
                    mend="the export was stopped and nothing was written; the operator behind this tensor is "
                    "lowered wrongly: rewrite it in plainer PyTorch, or try another target",
                )
                wrong.program, wrong.output, wrong.batch = case.program, name, case.what
                raise wrong
    return worst


def check_traced(programs: Mapping[str, TracedProgram], reference: list[Case]) -> dict[str, float]:
    """Compare the traced graphs, before any lowering (:func:`compare`)."""
    lean = {name: _reading_anew(program) for name, program in programs.items()}

    def run(program: str, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in lean[program].run(inputs).items()}

    try:
        return compare("the traced graph", run, reference)
    except GradientMismatchError as wrong:
        wrong.mend = (
            "nothing was written; while it is traced the model goes another way than in plain PyTorch: it asks "
            "torch.is_grad_enabled(), x.requires_grad or torch.compiler.is_exporting(), catches what .item() raises, "
            "reads a clock or random numbers of Python's, or what is outside the model; take that out of forward and "
            "loss"
        )
        raise


def _reading_anew(program: TracedProgram) -> TracedProgram:
    """The program in which a weight of few bits is float32 while it is read only, so that not all are so at once."""
    if not has_stored(program.graph):
        return program
    graph = copied(program.graph)
    rows_first(graph)
    one_for_each_use(graph)
    return replace(program, graph=graph)


def check_engine(
    session: EngineSession, reference: list[Case], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Compare what an engine computes from the files that will be shipped."""

    def run(program: str, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return session.run(program, {k: v.numpy() for k, v in inputs.items()})

    return compare(f"engine {session.name!r}", run, reference, tolerance)


def program_specs(programs: Mapping[str, TracedProgram]) -> tuple[ProgramSpec, ...]:
    """Signatures for the manifest, from the traced graphs."""

    def spec(name: str, tensor: torch.Tensor) -> TensorSpec:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorSpec.model_validate({"name": name, "shape": tuple(tensor.shape), "dtype": dtype})

    def results(program: TracedProgram) -> list[Tensor]:
        output = next(node for node in program.graph.graph.nodes if node.op == "output")
        return [node.meta["val"] for node in output.args[0]]

    return tuple(
        ProgramSpec(
            name=name,
            inputs=tuple(spec(k, v) for k, v in program.inputs.items()),
            outputs=tuple(spec(k, v) for k, v in zip(program.outputs, results(program), strict=True)),
        )
        for name, program in programs.items()
    )


def open_lowered(target: Target, lowered: Lowered, programs: Sequence[ProgramSpec]) -> EngineSession:
    """The files just written, in the target's engine, as a device would load them, or in what stands for it here."""
    files = {purpose: str(lowered.paths[inner]) for purpose, inner in lowered.files.items()}
    return load_engine(target.compared_by)(files, programs, None)


def compared_with_pytorch(
    deployment: Deployment, programs: Mapping[str, TracedProgram], seed: int = 0, *, rounds: int = 2
) -> list[Case]:
    """What PyTorch gives on the example batch and on others, with which the traced graphs agree.

    Args:
        deployment: the model.
        programs: as they were traced.
        seed: of the other batches.
        rounds: how many others.

    Raises:
        ExportError: the model fails on another batch, or its gradients are all zero; GradientMismatchError when
            numbers differ.
    """
    model, task = deployment.model, deployment.task
    try:
        little = dict(deployment.inputs_of_predict())
        reference = cases(model, task, dict(deployment.batch), little, rounds=rounds, seed=seed)
    except PflError:
        raise
    except Exception as error:  # the user's own layers and loss raise what they like
        subject = (
            "the model fails on another batch of the example's shape, which it has to take, also with padding"
        )
        raise explained(error, model, subject=subject) from error
    _check_moving(reference)
    check_traced(programs, reference)
    return reference


def _check_moving(reference: Sequence[Case]) -> None:
    """Raises ExportError where no gradient is other than zero: programs that give zeros would pass as right."""
    gradient = [v for case in reference for k, v in case.outputs.items() if k.startswith(GRADIENT)]
    if all(float(v.abs().max()) < torch.finfo(v.dtype).tiny for v in gradient if v.numel()):
        raise ExportError(
            "every gradient is zero on every batch: training would change nothing, and there is nothing to compare",
            mend="let the loss depend on what is trained, through operators that have a derivative, and give a "
            "backbone whose outputs are not all the same: with its trained weights",
        )

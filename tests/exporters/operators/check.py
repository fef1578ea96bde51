"""One case as a program: loss and every gradient, beside what PyTorch's autograd gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_exporters.verify import open_lowered, program_specs
from pfl_mobile.programs.trace import TracedProgram, trace_function
from tests.exporters.operators.cases import Case

#: Largest error, as `Checked.error_of` gives it, of an operator that is right.
TOLERANCE = 1e-4
PROGRAM = "gradients"


@dataclass(frozen=True)
class Checked:
    """Cases in one program, and what PyTorch's autograd makes of them.

    Attributes:
        program: the losses of all cases and the gradients of all their inputs.
        wanted: the same by autograd.
        scales: what an error of each output is compared with: the sum of a loss's absolute terms, a gradient's largest.
    """

    program: TracedProgram
    wanted: dict[str, Tensor]
    scales: dict[str, float]

    def error_of(self, got: Mapping[str, Any]) -> float:
        """The largest error of all outputs."""
        errors = [
            float((torch.as_tensor(np.asarray(got[name])).reshape(value.shape) - value).abs().max())
            / self.scales[name]
            for name, value in self.wanted.items()
        ]
        return float("nan") if any(e != e for e in errors) else max(errors)

    def run(self, target: Any, folder: Path) -> float:
        """The error of a target's engine."""
        lowered = target.lower({PROGRAM: self.program}, folder, lambda _: None)
        with open_lowered(target, lowered, program_specs({PROGRAM: self.program})) as session:
            inputs = {k: v.numpy() for k, v in self.program.inputs.items()}
            return self.error_of(session.run(PROGRAM, inputs))


def _floats(result: Any) -> list[Tensor]:
    return [t for t in (result if isinstance(result, list | tuple) else (result,)) if t.is_floating_point()]


def _term(output: Tensor, weight: Tensor) -> Tensor:
    """What an output adds to the loss; not linear, as constant gradients would be folded away."""
    return output * weight * (1.0 + 0.25 * output)


def _loss(case: Case, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    terms = [_term(y, w).sum() for y, w in zip(_floats(case.function(*inputs)), weights, strict=True)]
    return torch.stack(terms).sum()


def checked(*cases: Case) -> Checked:
    """Cases in one program.

    Raises:
        ExportError: one cannot be traced.
    """
    values: dict[str, Tensor] = {}
    weights: dict[int, list[Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for number, case in enumerate(cases):
        leaves = [x.requires_grad_() for x in case.inputs()]
        outputs = _floats(case.function(*leaves))
        drawn = [torch.randn(y.shape, generator=torch.Generator().manual_seed(7)) for y in outputs]
        weights[number] = drawn
        loss = _loss(case, leaves, drawn)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        wanted[f"loss{number}"] = loss.detach().reshape(1)
        terms = sum(float(_term(y, w).detach().abs().sum()) for y, w in zip(outputs, drawn, strict=True))
        scales[f"loss{number}"] = max(terms, 1e-3)
        for place, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
            values[f"x{number}.{place}"] = leaf.detach()
            wanted[f"g{number}.{place}"] = grad
            scales[f"g{number}.{place}"] = max(float(grad.abs().max()), 1e-3)

    def function(_batch: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for number, case in enumerate(cases):
            names = [name for name in given if name.startswith(f"x{number}.")]
            leaves = [given[name].detach().requires_grad_() for name in names]
            loss = _loss(case, leaves, weights[number])
            grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            out[f"loss{number}"] = loss.detach().reshape(1)
            out |= {
                f"g{number}.{place}": grad + 0 * leaf
                for place, (grad, leaf) in enumerate(zip(grads, leaves, strict=True))
            }
        return out

    return Checked(trace_function(PROGRAM, function, {}, values, ()), wanted, scales)

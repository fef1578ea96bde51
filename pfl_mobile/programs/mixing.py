"""Where a model or a loss mixes the rows of a batch, so that rows that only fill it up change the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from typing_extensions import override

from pfl_mobile.modules.personalize import PersonalizedModel
from pfl_mobile.programs.origin import of_node, recording
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.trace import gradients, trace_function, trained_names

#: Relative difference up to which two values are the same.
_SAME = 1e-4


class _Values(fx.Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[fx.Node, Any] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _differ(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return not torch.equal(one, other)
    size = float(torch.nan_to_num(one).abs().max()) if one.numel() else 0.0
    return not torch.allclose(one, other, rtol=0.0, atol=_SAME * size + 1e-9, equal_nan=True)


def where_rows_mix(model: PersonalizedModel, task: Task, one: Batch, other: Batch) -> str:
    """Words for the first operator that lets a row depend on others, and its place; empty where none is found.

    Args:
        model: personalized.
        task: its loss.
        one: a batch.
        other: the same batch with other contents in the rows of weight 0.
    """
    values, trained = model.values(), trained_names(model)
    try:
        with recording(model):
            program = trace_function(
                "gradients",
                lambda b, v: gradients(model, task, b, v, trained),
                one,
                values,
                tuple(one),
                model=model,
            )
        runs = []
        for batch in (one, other):
            run = _Values(program.graph)
            with torch.no_grad():
                run.run(*({**batch, **values}[name] for name in program.inputs))
            runs.append(run.values)
    except Exception:  # the refusal stands without its place
        return ""
    weight = one["weight"]
    counted = (weight.reshape(len(weight), -1) != 0).any(1)
    wide: list[fx.Node] = []  # without an axis of rows, and not the same in both batches
    for node in program.graph.graph.nodes:
        first, second = runs[0][node], runs[1][node]
        if node.op != "call_function" or not isinstance(first, Tensor):
            continue
        rowwise = first.shape[:1] == counted.shape
        padding = ~counted
        if rowwise and first.is_floating_point() and bool(_broken(first, padding) ^ _broken(second, padding)):
            return f": {node.target} gives no finite number for such an example, {of_node(node)}"
        if not _differ(first[counted], second[counted]) if rowwise else not _differ(first, second):
            continue
        if rowwise:
            cause = _first(node, wide)
            return f": {cause.target} computes over the rows of the batch, {of_node(cause)}"
        wide.append(node)
    return f": {wide[-1].target} computes over the rows of the batch, {of_node(wide[-1])}" if wide else ""


def _broken(value: Tensor, rows: Tensor) -> bool:
    return not bool(value[rows].isfinite().all())


def _first(node: fx.Node, wide: list[fx.Node]) -> fx.Node:
    """The earliest of the nodes without rows that the rows of ``node`` are computed from."""
    found, nodes = {node}, [node]
    while nodes:
        for source in nodes.pop().all_input_nodes:
            if source in wide and source not in found:
                found.add(source)
                nodes.append(source)
    return next((n for n in wide if n in found), node)

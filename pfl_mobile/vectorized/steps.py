"""The compiled steps of one model, for each number of lanes and each set of trained tensors that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.trace import check_batch, trained_names
from pfl_mobile.vectorized.compiled import Graph, stacked, trace_evaluate, trace_step
from pfl_mobile.vectorized.deferred import Deferral, deferred
from pfl_mobile.vectorized.emit import emit
from pfl_mobile.vectorized.layout import Layout
from pfl_mobile.vectorized.reuse import key_of, reused, with_own_constants

#: Arguments of a compiled function: batch entries and device tensors by name.
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class DeferredStep:
    """A step of SGD that leaves the weights of wide first layers for later.

    Attributes:
        function: returns the loss and the gradient at the product of each deferral.
        inputs: its inputs in order.
        deferrals: the weights that are left.
    """

    function: Callable[..., Any]
    inputs: list[str]
    deferrals: list[Deferral]


class Steps:
    """Compiles on first use.

    Args:
        model: the model, all clients'.
        task: loss and metrics.
        batch: one batch of examples.
        device: where steps run.
    """

    def __init__(self, model: PersonalizedModel, task: Task, batch: Batch, device: torch.device) -> None:
        check_batch(task, batch, labels=True)
        self.model, self.task, self.device = model, task, device
        self.batch = {k: batch[k] for k in (*task.inputs, *task.labels, "weight")}
        self.size = len(self.batch["weight"])
        self.table = model.device_tensors()
        self.names = trained_names(model)
        shapes = {info.name: tuple(info.shape) for info in self.table}
        self.layout = Layout({name: shapes[name] for name in self.names})
        self._graphs: dict[tuple[str, int, bool], Graph] = {}
        self._keys: dict[tuple[str, int], Hashable | None] = {}
        self._deferred: dict[tuple[Any, ...], DeferredStep | None] = {}
        self._functions: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def graph(self, kind: str, lanes: int = 1, *, common: bool = False) -> Graph:
        """The graph of ``step`` or ``evaluate`` for so many lanes; ``common`` device tensors have no lanes."""
        key = (kind, lanes, common)
        if key not in self._graphs:
            with torch.inference_mode(False):  # the trace differentiates
                if lanes == 1:
                    trace = trace_step if kind == "step" else trace_evaluate
                    self._graphs[key] = trace(self.model, self.task, self.batch)
                else:
                    shared = [info.name for info in self.table] if common else []
                    one = self.graph(kind)
                    self._graphs[key] = reused(
                        self._key(kind, lanes, ("stacked", *shared)),
                        lambda: with_own_constants(stacked(one, lanes, shared)),
                    )
        return self._graphs[key]

    def inputs(self, kind: str, lanes: int = 1, *, common: bool = False) -> list[str]:
        """Names that a function of this kind takes, in order."""
        return list(self.graph(kind, lanes, common=common).inputs)

    def function(
        self,
        kind: str,
        lanes: int,
        *,
        names: Sequence[str] | None = None,
        sgd: bool = False,
        common: bool = False,
    ) -> Callable[..., Any]:
        """The compiled function; arguments in the order of ``inputs``."""
        key = (kind, lanes, None if names is None else tuple(names), sgd, common)
        if key not in self._functions:
            self._functions[key] = reused(
                self._key(kind, lanes, key[2:]),
                lambda: emit(
                    self.graph(kind, lanes, common=common), device=self.device, names=names, sgd=sgd
                ),
            )
        return self._functions[key]

    def _key(self, kind: str, lanes: int, more: Hashable) -> Hashable | None:
        """Of what is made of a graph, for this device and what ``more`` says."""
        if (kind, lanes) not in self._keys:
            self._keys[kind, lanes] = key_of(self.graph(kind), lanes)
        key = self._keys[kind, lanes]
        return None if key is None else (key, lanes, str(self.device), more)

    @property
    def wide(self) -> list[str]:
        """The weights that plain SGD on all tensors leaves for later."""
        found = self.deferred(1, self.names)
        return [] if found is None else [deferral.weight for deferral in found.deferrals]

    def deferred(self, lanes: int, names: Sequence[str]) -> DeferredStep | None:
        """A step of SGD that leaves the weights of wide first layers to ``LateWeight``; None where there is none."""
        key = (lanes, tuple(names))
        if key not in self._deferred:
            self._deferred[key] = reused(
                self._key("step", lanes, ("deferred", *names)), lambda: self._make_deferred(lanes, names)
            )
        return self._deferred[key]

    def _make_deferred(self, lanes: int, names: Sequence[str]) -> DeferredStep | None:
        # a GPU has the memory bandwidth, and would rather have one product for all lanes
        found = deferred(self.graph("step", lanes), names) if self.device.type == "cpu" else None
        if found is None:
            return None
        graph, deferrals = found
        kept = [n for n in graph.outputs[1:] if n in names or n.startswith("at.")]
        function = emit(graph, device=self.device, names=kept, sgd=True)
        return DeferredStep(function, list(graph.inputs), deferrals)

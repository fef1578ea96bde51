"""Training steps of one or many clients as straight Python code over tensors.

``trace_step`` records forward, loss and backward once, as :mod:`pfl_mobile.programs.trace` does for phones, but for
PyTorch's own kernels. ``stacked`` turns the graph of one client into the graph of several: functorch runs while
tracing only, frozen layers come out as one large product, trained ones as batched products. ``emit`` then writes
the graph as a Python function, so that at run time there is neither autograd nor functorch nor an interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from typing_extensions import override

from pfl_mobile.errors import ConfigError, ExportError
from pfl_mobile.files.sealed import digest
from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.programs.closed_forms import ClosedForms
from pfl_mobile.programs.forms import recurrences
from pfl_mobile.programs.refusals import explained
from pfl_mobile.programs.simplify import simplify
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.trace import (
    described_on_meta,
    evaluate,
    exporting,
    model_output,
    plain_kernels,
    trained_names,
    without_mutations,
)

#: PyTorch's own kernels are the fast ones here.
_NATIVE = {F.gelu, F.max_pool2d, torch.max_pool2d, F.avg_pool2d, *recurrences.FORMS}
#: The input that multiplies the gradient of the summed loss.
SCALE = "scale"
#: Classes up to which an operator's overhead outweighs an exponential for each of them.
_FEW = 256


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows [R, V] that computes one exponential for each logit, forward and backward together.

    log-sum-exp is max(z) - log(max(p)), as in :mod:`pfl_mobile.programs.closed_forms`. The gradient
    (p - onehot) * g has its row factor outermost, so that it can move behind the next matrix product. Of few classes
    two exponentials cost less than the operators that save one.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
        valid = labels != ignore
        index = torch.where(valid, labels, 0).unsqueeze(1)
        if logits.shape[1] <= _FEW:
            logs = torch.log_softmax(logits, -1)
            loss = -torch.gather(logs, 1, index).squeeze(1)
            probs = torch.exp(logs)
        else:
            probs = torch.softmax(logits, -1)
            top = torch.log(probs.amax(-1, keepdim=True))
            loss = (logits.amax(-1, keepdim=True) - top - torch.gather(logits, 1, index)).squeeze(1)
        ctx.save_for_backward(probs, index, valid)
        return loss * valid

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        probs, index, valid = ctx.saved_tensors
        ones = torch.full_like(index, -1.0, dtype=probs.dtype)
        return torch.scatter_add(probs, 1, index, ones) * (grads[0] * valid).unsqueeze(1), None, None


class _Forms(ClosedForms):
    """The closed forms that pay on a computer; the rest stays PyTorch's."""

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _NATIVE:
            return func(*args, **(kwargs or {}))
        if func is F.cross_entropy and len(args) == 2 and args[0].dim() == 2 and args[1].dim() == 1:
            options = {"ignore_index": -100, **(kwargs or {})}
            ignore = options.pop("ignore_index")
            if {k: v for k, v in options.items() if v is not None and v != 0} == {"reduction": "none"}:
                return _CrossEntropy.apply(*args, ignore)
        return super().__torch_function__(func, types, args, kwargs)


@dataclass(frozen=True)
class Graph:
    """A traced function of named tensors.

    Attributes:
        module: ATen graph; placeholders in the order of ``inputs``.
        inputs: names and example values.
        outputs: names of the outputs.
    """

    module: fx.GraphModule
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def text(self, known: Container[int]) -> Iterator[str]:
        """The function as text, the same for the same operators on the same inputs.

        Args:
            known: addresses of tensors whose values do not count, the model's own.
        """
        for name, value in self.inputs.items():
            yield f"{name} {value.dtype} {list(value.shape)}"
        for node in self.module.graph.nodes:
            yield (
                f"{node.name} = {node.target} {node.args} {node.kwargs}"
                if node.op != "get_attr"
                else node.name
            )
            if node.op == "get_attr":
                value = getattr(self.module, node.target).detach()
                yield f"{value.dtype} {list(value.shape)} {value.stride()}"
                if value.data_ptr() not in known:
                    yield digest({"": value.cpu().numpy()})
        yield " ".join(self.outputs)


def trace_step(model: PersonalizedModel, task: Task, batch: Batch) -> Graph:
    """``loss`` and the gradients of ``scale * loss``, for one client and one batch.

    Inputs: ``scale`` float32 [], the batch's entries, the device tensors. Outputs: ``loss``, the weighted sum of
    the losses [], and one gradient for each name in ``trained_names``, called like the tensor.

    Raises:
        ExportError: the model cannot be traced, or a tensor has no influence on the loss.
    """
    names = trained_names(model)

    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        entries = {name: inputs[name] for name in batch}
        leaves = {name: inputs[name].detach().requires_grad_() for name in names}
        values = {name: leaves.get(name, inputs[name]) for name in model.values()}
        output = model_output(model, task, entries, values, for_gradients=True)
        losses = task.losses(output, entries)
        if losses.shape != entries["weight"].shape:
            raise ConfigError(
                f"the loss has shape {list(losses.shape)}, the weights have {list(entries['weight'].shape)}",
                mend="return one loss per weighted element",
            )
        loss = (losses * entries["weight"]).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), inputs[SCALE], allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            if grad is None:
                raise ExportError(
                    f"tensor {name!r} has no influence on the loss, so it cannot be trained",
                    mend="remove the module, or check that the model's forward uses its layer",
                )
        return {"loss": loss.detach(), **dict(zip(names, grads, strict=True))}

    return _trace(step, {SCALE: torch.tensor(1.0), **batch, **model.values()})


def trace_evaluate(model: PersonalizedModel, task: Task, batch: Batch) -> Graph:
    """The sums that ``evaluate`` of :mod:`pfl_mobile.programs.trace` gives, each [1], for one client and one batch."""

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {name: inputs[name] for name in model.values()}
        return evaluate(model, task, {name: inputs[name] for name in batch}, values)

    return _trace(run, {**batch, **model.values()})


def _trace(function: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], inputs: dict[str, Tensor]) -> Graph:
    from torch.fx.experimental.proxy_tensor import make_fx

    outputs: list[str] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        with _Forms():
            out = function(dict(zip(inputs, tensors, strict=True)))
        outputs[:] = out
        return tuple(out.values())

    examples = [t.detach().clone() for t in inputs.values()]
    try:
        with plain_kernels(), described_on_meta(), exporting():
            module = make_fx(flat)(*examples)
            if any(n.op == "call_function" and n.target._schema.is_mutable for n in _overloads(module)):
                module = without_mutations(module, examples)
    except (ExportError, ConfigError):
        raise
    except Exception as error:
        raise explained(error, None, subject="the training step cannot be traced") from error
    return _simplified(module, dict(zip(inputs, examples, strict=True)), tuple(outputs))


def _overloads(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


def stacked(graph: Graph, lanes: int, shared: Sequence[str] = ()) -> Graph:
    """The same function for ``lanes`` clients: every input and output gets a first axis, but for ``shared``.

    Raises:
        ExportError: an operator cannot be batched.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    dims = tuple(None if name in shared else 0 for name in graph.inputs)
    examples = [
        t if dim is None else t.unsqueeze(0).expand(lanes, *t.shape).contiguous()
        for t, dim in zip(graph.inputs.values(), dims, strict=True)
    ]
    try:
        with described_on_meta():
            module = make_fx(torch.func.vmap(graph.module, dims))(*examples)
    except Exception as error:
        raise ExportError(
            f"the step cannot be run for {lanes} clients at once: {type(error).__name__}: {error}",
            mend="set lanes=1",
        ) from error
    return _simplified(module, dict(zip(graph.inputs, examples, strict=True)), graph.outputs)


def _simplified(module: fx.GraphModule, inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> Graph:
    simplify(module, list(inputs.values()))
    used = {}
    places = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, (name, value) in zip(places, inputs.items(), strict=True):
        if node.users:
            used[name] = value
        else:
            module.graph.erase_node(node)
    if len(used) < len(inputs):
        module.recompile()
    return Graph(module, used, outputs)

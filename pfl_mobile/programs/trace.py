"""Training as ordinary programs: ``predict``, ``evaluate`` and ``gradients`` as pure traced functions.

``gradients`` holds forward, loss and backward in one graph, so any inference runtime can train with it. Frozen
weights are constants of the graph; the tensors that live on the device are inputs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import is_fake
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from pfl_mobile.engines.compare import GRADIENT
from pfl_mobile.errors import ConfigError, ExportError
from pfl_mobile.modules.personalize import PersonalizedModel
from pfl_mobile.programs.closed_forms import ClosedForms, decompositions, of_values
from pfl_mobile.programs.forms.complexes import AsPairs, has_complex
from pfl_mobile.programs.forms.indexing import OF_VALUES
from pfl_mobile.programs.one_row import pick_early
from pfl_mobile.programs.origin import Origin, Replay, noting, of_call, origins, recorder, recording
from pfl_mobile.programs.outputs import check_rows, checked_output, one_tensor, shapes_noted
from pfl_mobile.programs.refusals import (
    RefusedNode,
    behind_the_model,
    check_operators,
    check_values,
    explained,
)
from pfl_mobile.programs.simplify import fake_mode, form, simplify
from pfl_mobile.programs.states import check_stateless, refuse_chance
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.weights import place_stored
from pfl_mobile.rows import outside_classes

#: Bytes of frozen tensors from which on a model is traced without computing values.
LARGE_BYTES = 64 << 20


@dataclass(frozen=True)
class TracedProgram:
    """One traced program.

    Attributes:
        name: ``predict``, ``evaluate`` or ``gradients``.
        graph: ATen graph; placeholders in the order of ``inputs``, frozen weights as ``get_attr``.
        inputs: names and example values of the inputs: batch entries, then device tensors.
        outputs: names of the outputs.
        batch: which of the inputs are batch entries.
    """

    name: str
    graph: fx.GraphModule
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    batch: tuple[str, ...]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph in PyTorch."""
        with torch.no_grad():
            values = self.graph(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, values, strict=True))


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Say that a model is being exported, as ``torch.export`` does.

    Libraries ask ``torch.compiler`` before they branch on values, transformers on those of an attention mask, and take
    the branch that is right for all values. Distributions do not look at the values of their arguments, and what
    ``torch.compile`` was put around runs as it was written.
    """
    compiler: Any = torch.compiler
    compiling, found = compiler._is_compiling_flag, compiler._is_exporting_flag
    checks = Distribution._validate_args
    # without its machinery loaded nothing is compiled
    plain = compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    compiler._is_compiling_flag = compiler._is_exporting_flag = True
    Distribution.set_default_validate_args(False)
    try:
        with plain:
            yield
    finally:
        Distribution.set_default_validate_args(checks)
        compiler._is_compiling_flag, compiler._is_exporting_flag = compiling, found


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Keep PyTorch from fused attention and from the encoder's fast path.

    Both give NaN, on some processors, for an example whose keys are all masked, as in the rows that pad a last batch;
    the plain kernel gives zeros. Called from inside another PyTorch function, where it escapes :class:`ClosedForms`,
    fused attention has a decomposed forward that its backward does not fit; the fast path has no decomposition.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Keep PyTorch from fused kernels that have no decomposition, or a wrong one: those of recurrent layers too."""
    with plain_attention(), torch.backends.mkldnn.flags(enabled=False):
        yield


class _OnMeta(TorchFunctionMode):
    """Makes tensors without storage; a tracer makes one for each value, in what it takes for a mode of fake tensors."""

    shape_env = None
    in_kernel_invocation = False

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        more = {"device": "meta"} if func is torch.empty_strided else {}
        return func(*args, **{**(kwargs or {}), **more})


@contextlib.contextmanager
def described_on_meta() -> Iterator[None]:
    """Describe the values of a trace of real tensors by meta tensors, which `pfl_mobile.programs.simplify` does anew.

    Else PyTorch makes a mode of fake tensors for each value, and each mode notes the whole stack of calls that it was
    made in, which takes longer than the rest of a trace. In one mode for all, they still take 40 % of it.
    """
    from torch._guards import TracingContext, tracing

    mode: Any = _OnMeta()
    with tracing(TracingContext(mode)):
        yield


def described(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Descriptions of tensors, with which a model is traced without computing: fake tensors of one mode.

    Tensors of the model's own become such where they are computed with, and stay constants of the graph.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)
    return [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]


def _made(
    function: Callable[..., Any], examples: Sequence[Tensor], table: Mapping[Any, Any]
) -> fx.GraphModule:
    """Trace a function with example tensors or descriptions of them, and note the form of each value.

    Raises:
        ExportError: a value that a description stands for became a constant.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    if fake_mode(examples) is None:
        return make_fx(function, decomposition_table=dict(table), tracing_mode="real")(*examples)
    graph = make_fx(
        function, decomposition_table=dict(table), tracing_mode="fake", _allow_non_fake_inputs=True
    )(*examples)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and is_fake(getattr(graph, node.target)):
            raise ExportError(
                f"the value of constant {node.target!r} is not known",
                mend="trace with values in place of descriptions",
            )
        if "val" in node.meta:
            node.meta["val"] = form(node.meta["val"])
    return graph


def _sums(task: Task, output: Tensor, batch: Batch, metrics: bool) -> tuple[dict[str, Tensor], Tensor]:
    weight = batch["weight"]

    def weighted(what: str, value: Tensor) -> Tensor:
        if value.shape != weight.shape:  # [B] * [B, 1] would be all pairs
            raise ConfigError(
                f"the {what} has shape {list(value.shape)}, the weights have {list(weight.shape)}",
                mend=f"return one {what} per weighted element (no mean, no sum), and give one weight for each",
            )
        return (value * weight).sum()

    loss = weighted("loss", task.losses(output, batch))
    sums = {"loss_sum": loss.reshape(1), "weight_sum": weight.sum().reshape(1)}
    if metrics:
        for name, value in task.metrics(output, batch).items():
            sums[f"{name}_sum"] = weighted(name, value).reshape(1)
    return sums, loss


def model_output(
    model: PersonalizedModel,
    task: Task,
    batch: Batch,
    values: Mapping[str, Tensor],
    *,
    for_gradients: bool = False,
) -> Tensor:
    """The model's output; only a loss of the user's own takes something else than one tensor."""
    output = model.call(values, *(batch[name] for name in task.inputs), for_gradients=for_gradients)
    return output if task.kind == "custom" else checked_output(output, model, batch)


def evaluate(
    model: PersonalizedModel, task: Task, batch: Batch, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weighted sums of loss and metrics, each float32 [1]; the full model, memory included."""
    return _sums(task, model_output(model, task, batch, values), batch, metrics=True)[0]


def predict(
    model: PersonalizedModel, task: Task, batch: Batch, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the task predicts for ``batch``."""
    predicted = task.predict(model_output(model, task, batch, values), batch)
    return {name: one_tensor(value, model) for name, value in predicted.items()}


def gradients(
    model: PersonalizedModel, task: Task, batch: Batch, values: Mapping[str, Tensor], trained: tuple[str, ...]
) -> dict[str, Tensor]:
    """Loss sum, weight sum and ``grad.<name>`` = d loss_sum / d tensor for each name in ``trained``.

    Raises:
        ExportError: a tensor has no influence on the loss.
    """
    leaves = {name: values[name].detach().requires_grad_() for name in trained}
    output = model_output(model, task, batch, {**values, **leaves}, for_gradients=True)
    sums, loss = _sums(task, output, batch, metrics=False)
    if not loss.requires_grad:
        raise ExportError(
            f"no trainable tensor has any influence on the loss, not even {trained[0]!r}"
            f"{_gradient_ends(model, task, batch, values, trained)}",
            mend=f"check that the model's forward uses the layers that the modules were put into, {_LET_THROUGH}",
        )
    if (record := recorder()) is not None:
        record.follow(loss)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    result = {name: value.detach() for name, value in sums.items()}
    for name, grad in zip(trained, grads, strict=True):
        if grad is None:
            raise ExportError(
                f"tensor {name!r} has no influence on the loss, so it cannot be trained"
                f"{_gradient_ends(model, task, batch, values, (name,))}",
                mend="remove the module, or check that the model's forward uses the layer it was put into, "
                f"{_LET_THROUGH}",
            )
        result[f"{GRADIENT}{name}"] = grad
    return result


#: What stops gradients.
_LET_THROUGH = (
    "and that no .detach(), .data, torch.no_grad(), argmax or rounding is between the layer and the loss"
)


def _gradient_ends(
    model: PersonalizedModel, task: Task, batch: Batch, values: Mapping[str, Tensor], names: Sequence[str]
) -> str:
    """Words for the line behind which nothing depends on the named tensors for autograd; empty where none is seen."""
    leaves = {name: values[name].detach().requires_grad_() for name in names}

    def run() -> None:
        _sums(
            task,
            model_output(model, task, batch, {**values, **leaves}, for_gradients=True),
            batch,
            metrics=False,
        )

    def ends(func: Any, args: Sequence[Any], result: Any) -> bool:
        name = getattr(func, "__name__", "")
        if not isinstance(result, Tensor) or result.requires_grad:
            return False
        if not result.is_floating_point() and name not in ("argmax", "argmin", "long", "int", "to", "type"):
            return False  # masks and indices are made of what has a gradient without ending it
        if name.endswith("_like") or name.startswith("new_"):  # its shape is read, and no value
            return False
        return any(isinstance(a, Tensor) and a.requires_grad for a in args)

    place = of_call(model, run, ends, last=True, differentiated=True)
    return f": its gradient ends {place}" if place.known else ""


def check_batch(task: Task, batch: Batch, *, labels: bool) -> None:
    """The batch has what the task reads.

    Raises:
        ConfigError: an entry is missing, has a dtype that programs do not take, another number of examples than
            the weights, or a label that is no class.
    """
    wanted = (
        *task.inputs,
        *(task.labels if labels else task.predict_extra),
        *(("weight",) if labels else ()),
    )
    for name in wanted:
        if name not in batch:
            raise ConfigError(
                f"the example batch has no {name!r}; it has {sorted(batch)}",
                mend=f"a {task.kind} task needs {list(wanted)}",
            )
        if not isinstance(batch[name], Tensor):
            kind = type(batch[name]).__name__
            raise ConfigError(f"batch entry {name!r} is a {kind}", mend="give tensors: torch.as_tensor(...)")
        if batch[name].dtype not in (torch.float32, torch.int64):
            whole = not batch[name].is_floating_point() and batch[name].dtype != torch.bool
            raise ConfigError(
                f"batch entry {name!r} is {batch[name].dtype}; programs take float32 and int64",
                mend="use float32 for values and masks, x.float(), and int64 for ids, x.long(); forward makes of it "
                f"what it computes with{', x / 255.0 for instance' if whole else ', mask > 0.5 for instance'}",
            )
    if not labels:
        return
    if batch["weight"].dtype != torch.float32:
        raise ConfigError("the weights are not float32", mend="give one float32 weight per label")
    for name in wanted:
        if batch[name].shape[:1] != batch["weight"].shape[:1] or batch[name].dim() == 0:
            raise ConfigError(
                f"batch entry {name!r} is {list(batch[name].shape)}, the weights are "
                f"{list(batch['weight'].shape)}",
                mend="give every entry the same first axis, the examples",
            )
    check_classes(task, batch)


def check_classes(task: Task, batch: Batch) -> None:
    """The labels are classes of the task, where it has classes (ConfigError)."""
    classes, own = task.manifest().get("vocabulary"), batch.get("labels")
    if isinstance(classes, int) and own is not None and own.dtype == torch.int64 and own.numel():
        least, most = int(own.min()), int(own.max())
        if least < 0 or most >= classes:
            raise ConfigError(
                f"the label {least if least < 0 else most} is not in 0..{classes - 1}",
                mend=outside_classes(least, most, classes),
            )


def trained_names(model: PersonalizedModel) -> tuple[str, ...]:
    """Names of the tensors that the update rule trains, sorted."""
    return tuple(info.name for info in model.device_tensors() if info.update == "gradient")


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def without_mutations(
    graph: fx.GraphModule, examples: Sequence[Tensor], table: Mapping[Any, Callable[..., Any]] | None = None
) -> fx.GraphModule:
    """The same function in which writing to a tensor makes a new one; what writes to an input remains.

    Args:
        graph: traced with these examples.
        examples: its inputs.
        table: decompositions.
    """
    # constants become inputs, as a constant that is written to has to be wrapped like everything else
    lifted = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    constants: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            known[node] = lifted.placeholder(node.name)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target not in constants:
            constants[node.target] = lifted.placeholder(f"constant_{len(constants)}")
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = constants[node.target]
        elif node.op != "placeholder":
            known[node] = lifted.node_copy(node, known.__getitem__)
    values = [getattr(graph, name) for name in constants]
    module = fx.GraphModule({}, lifted)
    rerun: Any = module if recorder() is None else Replay(module).run
    pure = torch.func.functionalize(rerun, remove="mutations")
    mode = fake_mode(examples)
    # a write to one is not a write to the model's own
    copies = [v.detach().clone() if mode is None else mode.from_tensor(v.detach()) for v in values]
    made = _made(noting(pure), [*examples, *copies], table or {})
    places = [n for n in made.graph.nodes if n.op == "placeholder"][len(examples) :]
    for place, name, value in zip(places, constants, values, strict=True):
        if isinstance(value, nn.Parameter):
            made.register_parameter(f"_kept_{name}", value)
        else:
            made.register_buffer(f"_kept_{name}", value)
        with made.graph.inserting_before(place):
            place.replace_all_uses_with(made.graph.get_attr(f"_kept_{name}"))
        made.graph.erase_node(place)
    made.graph.lint()
    made.recompile()
    return made


def trace_function(
    name: str,
    function: Callable[[Batch, Mapping[str, Tensor]], dict[str, Tensor]],
    batch: Batch,
    values: Mapping[str, Tensor],
    keep: tuple[str, ...],
    *,
    model: nn.Module | None = None,
    example: int = 0,
    light: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> TracedProgram:
    """Trace a function of a batch and of tensors by name.

    Args:
        name: of the program.
        function: gives named outputs; takes no branches on values.
        batch: example entries; their shapes are the program's.
        values: example tensors.
        keep: inputs that stay inputs where nothing reads them.
        model: whose layers a refusal names.
        example: rows of a batch that the same model was traced with before; 0 for none.
        light: whether to compute no values where none is asked for, which takes less memory, and for small models
            more time.
        say: told where ``light`` cannot be had, and why.

    Raises:
        ExportError: it cannot be traced, draws random numbers, or writes to an input; names layer and line.
    """

    def traced() -> TracedProgram:
        return _traced(name, function, batch, values, keep)

    asked = ""
    if light:
        try:
            return _traced(name, function, batch, values, keep, light=True)
        except Exception as error:
            # what asks for values is traced with them; so is what cannot be traced, which then is explained
            asked = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"

    def plain() -> None:
        entries = {key: value.clone() for key, value in batch.items()}
        function(entries, {key: value.clone() for key, value in values.items()})

    subject = "the model cannot be exported"
    try:
        found = traced()
    except RefusedNode as refused:
        node = refused if refused.origin is not None else _again(traced, model)[0]
        raise refused.in_words(subject, getattr(node, "origin", None) or Origin()) from None
    except Exception as error:
        origin = _again(traced, model)[1] if behind_the_model(error) else None
        rows = next((len(value) for value in batch.values() if value.dim()), 0)
        made = explained(
            error, model, subject=subject, origin=origin, example=example, rows=rows, plain=plain
        )
        if made is error:
            raise
        raise made from error
    if asked:
        say(f"{name} asks for values while it is traced, and so takes the memory of a step here ({asked})")
    return found


def _again(traced: Callable[[], Any], model: nn.Module | None) -> tuple[BaseException | None, Origin | None]:
    """What a trace that failed raises the second time, and where it has come to."""
    with recording(model if model is not None else nn.Module()) as record:
        try:
            traced()
        except Exception as error:
            return error, record.last
    return None, None


def _traced(
    name: str,
    function: Callable[[Batch, Mapping[str, Tensor]], dict[str, Tensor]],
    batch: Batch,
    values: Mapping[str, Tensor],
    keep: tuple[str, ...],
    *,
    light: bool = False,
) -> TracedProgram:
    names: list[str] = []
    if (found := recorder()) is not None:
        found.begin()

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        split = len(batch)
        entries = dict(zip(batch, tensors[:split], strict=True))
        with ClosedForms():
            out = function(entries, dict(zip(values, tensors[split:], strict=True)))
        names[:] = out
        return tuple(out.values())

    # row by row, as devices give them
    examples = [
        t.detach().clone(memory_format=torch.contiguous_format) for t in (*batch.values(), *values.values())
    ]
    given = described(examples) if light else examples
    with plain_kernels(), contextlib.nullcontext() if light else described_on_meta(), exporting():
        graph = _made(noting(flat), given, decompositions())
        check_operators(graph)
        if any(_mutates(node) or node.target in OF_VALUES for node in graph.graph.nodes):
            # x[...] = y writes through a view; simplification reads every node as a value
            graph = without_mutations(graph, given, of_values())
        if has_complex(graph):
            pairs: Any = AsPairs(graph)
            graph = _made(noting(lambda *values: pairs.run(*values)), given, of_values())
    place_stored(graph)
    simplify(graph, given)
    if pick_early(graph):
        simplify(graph, given)
    check_values(graph)
    inputs = dict(zip((*batch, *values), examples, strict=True))
    used: dict[str, Tensor] = {}
    for node, (key, example) in zip(
        [n for n in graph.graph.nodes if n.op == "placeholder"], inputs.items(), strict=True
    ):
        if node.users or key in keep:
            used[key] = example
        else:
            graph.graph.erase_node(node)
    graph.recompile()
    if (found := recorder()) is not None:
        found.fill(graph.graph)
    return TracedProgram(name, graph, used, tuple(names), tuple(k for k in batch if k in used))


def trace_programs(
    model: PersonalizedModel,
    task: Task,
    batch: Batch,
    predict_batch: Batch,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, TracedProgram]:
    """Trace ``gradients``, ``evaluate`` and ``predict`` with the shapes of the example batches.

    Args:
        model: backbone with modules.
        task: loss, metrics, predictions.
        batch: example batch with labels and weights; its shapes are the programs' shapes.
        predict_batch: example inputs of ``predict``.
        say: told of what a large model needs more memory for than its graphs do.

    Raises:
        ConfigError: the batches do not fit the task, or nothing is trainable.
        ExportError: the model cannot be traced, or a tensor gets no gradient.
    """
    check_batch(task, batch, labels=True)
    check_batch(task, predict_batch, labels=False)
    full = {k: batch[k] for k in (*task.inputs, *task.labels, "weight")}
    short = {k: predict_batch[k] for k in (*task.inputs, *task.predict_extra)}
    given = [batch[name] for name in task.inputs]
    steady = check_stateless(model, given)
    values = model.values()
    trained = trained_names(model)
    if not trained:
        raise ConfigError("the model has nothing to train", mend="add a module with gradient-trained tensors")
    light = sum(tensor.nbytes for tensor in model.frozen_tensors().values()) >= LARGE_BYTES
    rows, others = len(batch["weight"]), next((len(v) for v in short.values() if v.dim()), 0)
    with shapes_noted(model) as shapes:
        programs = {
            "gradients": trace_function(
                "gradients",
                lambda b, v: gradients(model, task, b, v, trained),
                full,
                values,
                (*full, *trained),
                model=model,
                light=light,
                say=say,
            ),
            "evaluate": trace_function(
                "evaluate",
                lambda b, v: evaluate(model, task, b, v),
                full,
                values,
                tuple(full),
                model=model,
                light=light,
                say=say,
            ),
        }
        whole = shapes[-1]
        programs["predict"] = trace_function(
            "predict",
            lambda b, v: predict(model, task, b, v),
            short,
            values,
            tuple(short),
            model=model,
            example=rows,
            light=light,
            say=say,
        )
    if not steady:  # the trace names random operators itself
        refuse_chance(model, given)
    check_rows((rows, whole), (others, shapes[-1]), model, lambda: predict(model, task, short, values))
    return programs


def trace_origins(
    model: PersonalizedModel, task: Task, batch: Batch, predict_batch: Batch
) -> dict[str, Mapping[str, Origin]]:
    """Of the programs of :func:`trace_programs`, where each node comes from, by program and name of the node.

    It traces again, as the first trace notes nothing: for refusals, where a node has to be explained.
    """
    with recording(model):
        programs = trace_programs(model, task, batch, predict_batch)
    return {name: origins(program.graph) for name, program in programs.items()}

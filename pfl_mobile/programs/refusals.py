"""Why a model cannot become a program, in the words of the model: what, in which layer, at which line, what works.

While a model is called, traced and differentiated, PyTorch raises what it likes, and some of what cannot be exported
raises nothing at all and is only seen in the graph. Here is the one table of both: :data:`RAISED` and :data:`SEEN`.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import linecache
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from pfl_mobile.errors import ExportError, PflError
from pfl_mobile.programs.origin import KEY, Origin, is_tool, of_exception, of_node
from pfl_mobile.programs.outputs import SQUEEZE_MEND, squeezed

#: How to leave a part out of a program: PyTorch's own question, which is answered with yes while programs are traced.
_GUARD = "if not torch.compiler.is_exporting():"


@dataclass
class Failure:
    """What was raised, and what is known of it.

    Attributes:
        error: as PyTorch or the user's code raised it.
        origin: where in the model.
        example: rows of the example batch, with which the model ran; 0 where it did not yet.
        rows: of the batch that it fails with.
        plain: calls the same without a trace, so that what is wrong with the model itself is known from what only an
            export refuses.
        model: whose layers are named.
    """

    error: BaseException
    origin: Origin
    example: int = 0
    rows: int = 0
    plain: Callable[[], Any] | None = field(default=None, repr=False)
    model: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def text(self) -> str:
        """What it says, without advice for others."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", f"{self.error}")
        for tail in (
            " Hint: ",
            " Please ",
            "It may be possible to trace",
            "Consider ",
            "\nException raised from",
            "\nFor example",
        ):
            text = text.split(tail)[0]
        return " ".join(text.split())[:400].rstrip(". ")

    @cached_property
    def said(self) -> str:
        """Kind of the exception and what it says."""
        kind = type(self.error).__name__
        return f"{kind}: {self.text}" if self.text else kind

    @cached_property
    def through(self) -> tuple[str, ...]:
        """Files of PyTorch and ours behind the innermost line of another's, with ``/``, the innermost first."""
        files = []
        for trace in self._frames:
            file = trace.tb_frame.f_code.co_filename
            if not is_tool(file):
                break
            files.append(file.replace(os.sep, "/"))
        return tuple(files)

    @cached_property
    def _frames(self) -> list[TracebackType]:
        frames, trace = [], self.error.__traceback__
        while trace is not None:
            frames.append(trace)
            trace = trace.tb_next
        return frames[::-1]

    @property
    def packed(self) -> bool:
        """Whether a layer was called with packed sequences."""
        inner = self._frames[: len(self.through) + 1]
        return any(isinstance(v, PackedSequence) for trace in inner for v in trace.tb_frame.f_locals.values())

    @cached_property
    def step(self) -> tuple[str, str]:
        """The instruction of Python that the user's line was at, and the expression: ``("CALL", "int(y.max())")``."""
        for trace in self._frames:
            code = trace.tb_frame.f_code
            if is_tool(code.co_filename):
                continue
            for at in dis.get_instructions(code):
                if at.offset == trace.tb_lasti:
                    return at.opname, _source(code.co_filename, at.positions)
        return "", ""

    @cached_property
    def squeezed(self) -> Origin:
        """Where ``squeeze`` takes the axis of a single row away."""
        if self.plain is None or self.model is None or self.rows != 1:
            return Origin()
        return squeezed(self.model, self.plain)

    @cached_property
    def fails_plainly(self) -> bool:
        """Whether the model fails by itself too, outside of a trace."""
        if self.plain is None:
            return False
        try:
            self.plain()
        except Exception:
            return True
        return False


def _source(file: str, at: Any) -> str:
    if at is None or at.lineno is None or at.end_lineno is None:
        return ""
    lines = [linecache.getline(file, n).encode() for n in range(at.lineno, at.end_lineno + 1)]
    if not lines:
        return ""
    lines[-1] = lines[-1][: at.end_col_offset]
    lines[0] = lines[0][at.col_offset :]
    text = " ".join(b"".join(lines).decode(errors="replace").split())
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True)
class Kind:
    """A kind of what cannot be exported.

    Attributes:
        name: of the kind.
        known: whether a failure is of the kind.
        what: words for it, a clause without its place.
        mend: what works instead.
    """

    name: str
    known: Callable[[Failure], bool]
    what: Callable[[Failure], str]
    mend: Callable[[Failure], str]


def _says(*patterns: str) -> Callable[[Failure], bool]:
    found = re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)
    return lambda failure: bool(found.search(f"{failure.error}"))


def _always(words: str) -> Callable[[Failure], str]:
    return lambda _: words


# -- what takes values out of tensors


def _reads(failure: Failure) -> bool:
    return _says(
        "get value out of a tracing tensor",
        "data.?dependent",
        "on Tensor that requires grad",
        r"\.numpy\(\) is not",
    )(failure)


@dataclass(frozen=True)
class _Reading:
    """A way in which values leave tensors."""

    known: Callable[[Failure], bool]
    what: str
    mend: str


def _calls(*names: str) -> Callable[[Failure], bool]:
    """The step is a call of one of these functions or methods."""
    found = re.compile(r"(^|[.\s(])(" + "|".join(names) + r")\(")
    return lambda f: "CALL" in f.step[0] and bool(found.search(f.step[1] or f.origin.code))


def _step(*names: str) -> Callable[[Failure], bool]:
    return lambda f: any(name in f.step[0] for name in names)


def _code(pattern: str) -> Callable[[Failure], bool]:
    found = re.compile(pattern)
    return lambda f: bool(found.search(f.origin.code))


def _file(part: str) -> Callable[[Failure], bool]:
    return lambda f: any(part in path for path in f.through)


_PACKED = _Reading(
    lambda f: (
        f.packed or _file("torch/nn/utils/rnn.py")(f) or "pack_padded_sequence" in f.text + f.origin.code
    ),
    "padded sequences are packed by lengths that leave their tensor",
    "give pack_padded_sequence the lengths as the tensor that they are in the batch, int64, without .tolist(), and "
    "total_length=x.shape[1] to pad_packed_sequence; or run the recurrent layer over the padded rows and take each "
    "row's output at its own length, out.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.shape[2]))",
)

_READINGS = (
    _Reading(
        _file("torch/distributions/"),
        "a distribution looks at the values of its arguments",
        "build it with validate_args=False",
    ),
    _PACKED,
    _Reading(
        lambda f: _file("torch/_tensor_str.py")(f) or _code(r"^print\(|logg?e?r?\.(info|debug|warning)\(")(f),
        "values of a tensor are printed",
        f"take it out of forward, or put it under {_GUARD}",
    ),
    _Reading(
        lambda f: _code(r"^assert\b|_assert\(")(f) or "ASSERT" in f.step[0],
        "an assertion depends on values of a tensor",
        f"assert on shapes only, or put it under {_GUARD}",
    ),
    _Reading(
        lambda f: (
            _calls("numpy", "asarray", "array", "from_numpy")(f)
            or "numpy" in f.text
            or "__array__" in f.text
            or _code(r"\bnp\.")(f)
        ),
        "NumPy computes with values of a tensor",
        "write it in PyTorch's operators: what NumPy computes would be the same for every batch, without a gradient",
    ),
    _Reading(
        lambda f: _code(r"\bone_hot\(")(f),
        "one_hot without num_classes looks for the largest value of its input",
        "give it: F.one_hot(x, num_classes=...)",
    ),
    _Reading(
        _code(r"^while\b"),
        "a loop goes on for as long as values of a tensor say",
        "a program does the same steps for every batch: loop a fixed number of times and keep what is done with "
        "torch.where(done, old, new)",
    ),
    _Reading(
        _step("JUMP", "UNARY_NOT"),
        "a branch depends on values of a tensor",
        "compute both and choose by element: torch.where(condition, a, b)",
    ),
    _Reading(
        _calls("range", "int", "round", "len", "__index__"),
        "a whole number of Python is made of a value of a tensor",
        "a program does the same steps with the same shapes for every batch: count up to a fixed number and leave out "
        "what is too much with torch.where, or take the number from the shape",
    ),
    _Reading(
        _calls("item", "float", "tolist", "complex", "bool", r"math\.\w+"),
        "a number of Python is made of a value of a tensor",
        "compute with the tensor itself (no .item(), float() or tolist()): y * y.max() works, and has a gradient",
    ),
    _Reading(
        _calls("all", "any", "max", "min", "sum", "sorted", "allclose", "equal", "is_nonzero"),
        "Python compares values of a tensor",
        "use the tensor's own functions, and torch.where(condition, a, b) in place of a branch",
    ),
    _Reading(
        _step("SUBSCR", "SLICE"),
        "a value of a tensor is used as an index of Python",
        "index with tensors: x.gather(1, index) or torch.index_select(x, 1, index), and torch.where or a mask in place "
        "of a slice of varying length",
    ),
    _Reading(
        lambda _: True,
        "values of a tensor are taken into Python",
        "compute with tensors only: no branch on values, no .item(), int() or float(), no NumPy",
    ),
)


def _reading(failure: Failure) -> _Reading:
    return next(r for r in _READINGS if r.known(failure))


def _reading_words(failure: Failure) -> str:
    found, step = _reading(failure), failure.step[1]
    # the line is shown with the place: a part of it is worth saying where it has several
    return f"{found.what} ({step})" if step and len(step) < len(failure.origin.code) else found.what


# -- what else is raised


def _no_batch_of(failure: Failure) -> bool:
    return bool(failure.example and failure.rows and failure.example != failure.rows)


def _squeeze_words(failure: Failure) -> str:
    return (
        f": squeeze() takes the axis of a single row away {failure.squeezed}"
        if failure.squeezed.known
        else ""
    )


def _lost_argument(failure: Failure) -> bool:
    called = any(path.endswith("torch/nn/modules/module.py") for path in failure.through[:2])
    return (
        isinstance(failure.error, TypeError) and called and _says(r"forward\(\) (missing|takes|got)")(failure)
    )


def _signature(failure: Failure) -> str:
    try:
        root: Any = failure.model.backbone if failure.model is not None else None
        return str(inspect.signature(root.get_submodule(failure.origin.layer).forward))
    except (AttributeError, TypeError, ValueError):
        return ""


def _argument_words(failure: Failure) -> str:
    text = failure.text.split(".")[-1] if "forward()" in failure.text else failure.text
    where = (
        "the model's forward" if failure.origin.layer == "" else f"forward of layer {failure.origin.layer!r}"
    )
    return f"{where} takes {_signature(failure) or 'other inputs'} and is called with other inputs: {text}"


def _argument_mend(failure: Failure) -> str:
    if failure.origin.layer:
        return "the layer is called wrongly by the model itself: try model(*inputs) in PyTorch first"
    if "(*, " in _signature(failure):
        return "forward is given tensors by position: def forward(self, x, mask), without the *"
    return (
        "name the entries of the batch that forward takes, in its order: for instance "
        "ClassificationTask(classes, inputs=('x', 'mask')), with batch={'x': ..., 'mask': ..., ...}"
    )


_CONTROL_MEND = (
    "compute all branches and choose with torch.where; write a loop with a fixed number of steps in Python"
)
_SPARSE_MEND = (
    "use dense tensors: nn.Embedding(..., sparse=False), x.to_dense() before anything is computed with it"
)

RAISED: tuple[Kind, ...] = (
    Kind(
        "control flow as an operator",
        lambda f: any("torch/_higher_order_ops/" in path for path in f.through),
        lambda f: f"control flow is kept as an operator of PyTorch's (cond, while_loop, scan, map): {f.said}",
        _always(_CONTROL_MEND),
    ),
    Kind("values", _reads, _reading_words, lambda f: _reading(f).mend),
    Kind(
        "packed sequences",
        _says("pack_padded_sequence", "PackedSequence"),
        _always(_PACKED.what),
        _always(_PACKED.mend),
    ),
    Kind(
        "inputs",
        _lost_argument,
        _argument_words,
        _argument_mend,
    ),
    Kind(
        "no forward",
        _says('missing the required "forward" function'),
        lambda f: f"the class {f.origin.kind} has no forward",
        _always(
            "define forward(self, x), or personalize a module around it whose forward calls what it has instead"
        ),
    ),
    Kind(
        "a fixed batch",
        _no_batch_of,
        lambda f: (
            f"the model takes the example's {f.example} rows and fails with a batch of {f.rows}, which is what "
            f"predict takes{_squeeze_words(f) or f' ({f.said})'}"
        ),
        lambda f: (
            SQUEEZE_MEND
            if f.squeezed.known
            else "take the number of rows from the input: x.view(x.shape[0], ...) or x.flatten(1), "
            "torch.zeros(len(x), ...)"
        ),
    ),
    Kind(
        "an id that the table does not have",
        lambda f: (
            isinstance(f.error, IndexError) and _says("index out of range in self", "is out of bounds")(f)
        ),
        _always("an id of the batch has no row in the table that it is looked up in"),
        _always(
            "give the example batch ids from 0 to the number of rows less one (the number of an nn.Embedding is "
            "num_embeddings); devices also look up id 0, which padding has"
        ),
    ),
    Kind(
        "devices",
        _says(
            "on the same device",
            "compiled with (CUDA|XPU)",
            "no NVIDIA driver",
            "CUDA (GPUs|error|driver)",
            "out of meta tensor",
            "is on meta",
            "not (currently )?available|MPS",
            "Could not run .* with arguments from the '(CUDA|Meta|MPS|XLA)",
            "Tensor on device .* is not on the expected device",
        ),
        lambda f: f"tensors are on another device than the CPU ({f.said})",
        _always(
            "export on the CPU: model.cpu(), a batch on the CPU, and device=x.device in place of .cuda() or a fixed "
            "device in forward; a model on 'meta' has no weights yet: load them first"
        ),
    ),
    Kind(
        "quantized",
        lambda f: (
            any("/ao/nn/" in path or "/ao/quantization/" in path for path in f.through[:6])
            or _says(r"quantized::", "Quantized(CPU|Tensor|Engine)", "packed_params")(f)
        ),
        lambda f: f"the layer is quantized ({f.said})",
        _always("export the model as it was before it was quantized, with float32 weights"),
    ),
    Kind(
        "scripted",
        lambda f: type(f.error).__module__ == "torch.jit" or _says("TorchScript", "torch.jit.script")(f),
        lambda f: f"a part is compiled by TorchScript ({f.said})",
        _always("give the model as its Python module, without torch.jit.script or torch.jit.trace"),
    ),
    Kind(
        "tensors made for inference",
        _says("inference tensor", "inference.?mode"),
        _always("a tensor was made under torch.inference_mode(), and cannot take part in a gradient"),
        _always(
            "build and load the model outside of torch.inference_mode(), and do not use it in forward; a copy of a "
            "tensor made there takes part: x.clone()"
        ),
    ),
    Kind(
        "recomputed activations",
        _says("use_reentrant"),
        _always("activations are recomputed by torch.utils.checkpoint in its old form (use_reentrant=True)"),
        _always(
            "call checkpoint(..., use_reentrant=False), or leave it out: a program recomputes nothing by itself "
            "(model.gradient_checkpointing_disable() in transformers)"
        ),
    ),
    Kind(
        "flexible attention",
        _says("flex.?attention"),
        lambda f: f"flex_attention has no program ({f.said})",
        _always(
            "use F.scaled_dot_product_attention(q, k, v, attn_mask=mask) "
            "(attn_implementation='sdpa' or 'eager' in transformers)"
        ),
    ),
    Kind(
        "an entry that the batch does not have",
        lambda f: isinstance(f.error, KeyError) and f.origin.layer is None,
        lambda f: f"the loss or the prediction reads {f.error}, which it is not given",
        _always(
            "name the entries of the batch that a loss reads in the task, CustomTask(loss, labels=('labels', 'mask')), "
            "and give each in the batch; predict is given inputs only"
        ),
    ),
    Kind(
        "sparse",
        _says(r"sparse", "memory format option"),
        lambda f: f"a tensor is sparse ({f.said})",
        _always(_SPARSE_MEND),
    ),
    Kind(
        "nested",
        _says("nested.?tensor"),
        lambda f: f"a tensor is nested: its rows have lengths of their own ({f.said})",
        _always("pad the rows to one length and give a mask as an entry of the batch"),
    ),
    Kind(
        "overwritten before the backward pass",
        _says(
            "modified by an inplace operation",
            "leaf Variable that requires grad",
            "is a view .* modified inplace",
        ),
        lambda f: (
            "a tensor is overwritten in place that the backward pass needs as it was"
            if "modified by" in f.text
            else f"a tensor is written to in place that has a gradient ({f.text})"
        ),
        _always(
            "write to a copy, y = x.clone(), or make a new tensor: x = x + 1 in place of x += 1, torch.where or "
            "torch.cat in place of x[...] = y"
        ),
    ),
    Kind(
        "a graph that is used twice",
        _says("backward through the graph a second time", "support the deepcopy protocol"),
        _always("a tensor of an earlier forward pass, with its history of gradients, is kept and used again"),
        _always(
            "a program keeps nothing between two calls: make what is kept an input and an output of forward, or start "
            "from zeros in each call"
        ),
    ),
    Kind(
        "no derivative",
        _says(
            "derivative for .* is not implemented",
            "not differentiable",
            "does not support automatic diff",
            "backward .* not (yet )?implemented|no autograd formula|not implemented for.*backward",
        ),
        lambda f: f"PyTorch has no derivative of an operator ({f.text})",
        _always("use .detach() where no gradient is wanted through it, or write it in other operators"),
    ),
    Kind(
        "number formats",
        _says(
            "must have the same dtype",
            "same dtype",
            "expected scalar type",
            "should be the same",
            "one of the following scalar types",
            "found (Half|BFloat16|Double|Float)",
            "unsupported ScalarType",
            "not implemented for '(Half|BFloat16|Int|Long|Bool|Byte|Char|Short)'",
            "expected m1 and m2",
            "result type .* can't be cast",
        ),
        lambda f: f"number formats do not fit ({f.text})",
        _always(
            "use float32 everywhere: model.float(), no .half(), .bfloat16(), .double() or autocast in forward; ids of "
            "an nn.Embedding come as int64 entries of the batch"
        ),
    ),
    Kind(
        "compiled",
        lambda f: any("_dynamo/convert_frame" in path or "torch/_inductor/" in path for path in f.through),
        lambda f: f"a part is compiled by torch.compile ({f.said})",
        _always("call the plain function or module in forward, without torch.compile"),
    ),
    Kind(
        "without a decomposition",
        lambda f: isinstance(f.error, NotImplementedError),
        lambda f: f"an operator cannot be traced ({f.said})",
        _always("write it in PyTorch's own operators; an operator of one's own has to be made of such"),
    ),
)


def explained(
    error: BaseException,
    model: nn.Module | None,
    *,
    subject: str = "the model cannot be exported",
    origin: Origin | None = None,
    example: int = 0,
    rows: int = 0,
    plain: Callable[[], Any] | None = None,
) -> PflError:
    """What was raised while the model was called, traced or differentiated, in its own words.

    Args:
        error: what was raised; one of ours gets the place, where that is known.
        model: whose layers are named.
        subject: begins the message.
        origin: where it is, when known better than by the traceback.
        example: rows of a batch that the model ran with before; 0 for none.
        rows: of the batch that it failed with.
        plain: calls the same without a trace.
    """
    place = of_exception(error, model if model is not None else nn.Module())
    if origin is not None and place.layer is None and origin.known:
        # the user's own line in the backward pass, if there is one, in the layer that it is the derivative of
        place = replace(place, layer=origin.layer, kind=origin.kind) if place.file else origin
    if isinstance(error, PflError):
        return placed(error, place)
    failure = Failure(error, place, example, rows, plain, model)
    kind = next((kind for kind in RAISED if kind.known(failure)), None)
    at = f" {place}" if place.known and not failure.squeezed.known else ""
    if kind is not None:
        return ExportError(
            f"{subject}: {kind.what(failure)},{at}" if at else f"{subject}: {kind.what(failure)}",
            mend=kind.mend(failure),
        )
    if failure.fails_plainly:
        return ExportError(
            f"{subject}: {failure.said}{',' if at else ''}{at}; it fails in plain PyTorch too, on the same batch",
            mend="make the model and the loss run on the example batch first; forward is given tensors, "
            "one for each entry of the batch that the task names in inputs=, in that order",
        )
    runs = "it runs in plain PyTorch, but cannot be traced" if plain is not None else "it cannot be traced"
    return ExportError(
        f"{subject}: {runs}{at}: {failure.said}",
        mend="write this line in plain tensor operations: no branches on values, no .item(), no NumPy",
    )


def behind_the_model(error: BaseException) -> bool:
    """Whether it was raised where no layer is on the stack: in the backward pass, or when a graph was run again."""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename.replace(os.sep, "/")
        if file.endswith(
            ("torch/autograd/graph.py", "torch/autograd/__init__.py", "torch/fx/interpreter.py")
        ):
            return True
        if trace.tb_frame.f_code.co_name == "without_mutations":
            return True
        trace = trace.tb_next
    return False


def placed(error: PflError, place: Origin) -> PflError:
    """The error with its place, where that is a line of the user's and the message does not have it yet."""
    if not place.file or place.place in error.message:
        return error
    made = type(error)(f"{error.message}, {place}", mend=error.mend)
    made.__cause__ = error
    return made


# -- what is only seen in the graph


class RefusedNode(Exception):
    """A node of a graph that no program may have; never leaves this package."""

    def __init__(self, node: fx.Node, what: str, mend: str) -> None:
        super().__init__(what)
        self.node, self.what, self.mend = node, what, mend

    def in_words(self, subject: str, place: Origin) -> ExportError:
        """As the user sees it."""
        at = f", {place}" if place.known else ""
        return ExportError(f"{subject}: {self.what}{at}", mend=self.mend)

    @property
    def origin(self) -> Origin | None:
        """Where it comes from; None where the trace did not record it."""
        return of_node(self.node) if KEY in self.node.meta else None


_aten = torch.ops.aten
_SEEDED = torch.Tag.nondeterministic_seeded
_SHAPE_OF_VALUES = torch.Tag.dynamic_output_shape
_OWN_NAMESPACES = ("aten", "prims", "prim", "pfl_mobile")
_HALVES = (torch.float16, torch.bfloat16)
#: Operators that only move numbers or change their format: nothing is rounded twice.
_MOVES = (
    "embedding", "_to_copy", "view", "_unsafe_view", "reshape", "permute", "t", "transpose", "expand", "slice",
    "select", "gather", "index", "index_select", "cat", "stack", "clone", "alias", "detach", "copy", "lift_fresh_copy",
    "unsqueeze", "squeeze", "convert_element_type", "full", "full_like", "zeros_like", "ones_like", "where",
    "as_strided", "constant_pad_nd", "split", "unbind", "split_with_sizes", "empty_like",
)  # fmt: skip


def _name(node: fx.Node) -> str:
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else str(node.target)


def _from_inputs(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _with_val(node: fx.Node) -> Tensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def check_operators(graph: fx.GraphModule) -> None:
    """Refuse what no program can have, in a graph just traced.

    Raises:
        RefusedNode: a node draws random numbers, calls a function or an operator that is not PyTorch's own.
    """
    fed = _from_inputs(graph.graph.nodes)
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        target = node.target
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise RefusedNode(
                node,
                f"control flow that PyTorch keeps as an operator ({target.name()})",
                _CONTROL_MEND,
            )
        if not isinstance(target, torch._ops.OpOverload):
            if getattr(target, "__module__", "") in ("_operator", "math", "builtins", builtins.__name__):
                continue
            raise RefusedNode(
                node, f"a call that is no operator ({target})", "write it in PyTorch's own operators"
            )
        if _SEEDED in target.tags:
            raise RefusedNode(node, *_random_words(node))
        if target is _aten._pack_padded_sequence.default and node.args[1] in fed:
            raise RefusedNode(node, _PACKED.what, _PACKED.mend)
        if target._schema.is_mutable and _root(node).op == "placeholder":
            raise RefusedNode(node, f"an input is written to in place ({target})", _WRITING_MEND)
        if "sparse" in str(target):
            raise RefusedNode(node, f"a tensor or a gradient is sparse ({target})", _SPARSE_MEND)
        if target.namespace == "profiler":  # says where a part begins and ends, and computes nothing
            continue
        if target.namespace not in _OWN_NAMESPACES:
            raise RefusedNode(
                node,
                f"the operator {target} is not one of PyTorch's own, so no engine on a device has it",
                "write it in PyTorch's own operators; an operator that is made of such "
                "(CompositeImplicitAutograd) is taken apart by itself",
            )


_WRITING_MEND = (
    "write to a copy, x = x.clone(), or write the operation without its trailing underscore: x = x + 1 in place of "
    "x += 1"
)


def _root(node: fx.Node) -> fx.Node:
    """What a node is a view of."""
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        if not arguments or arguments[0].alias_info is None or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
    return node


def _random_words(node: fx.Node) -> tuple[str, str]:
    if "bernoulli" in str(node.target) or "dropout" in str(node.target):
        return (
            f"random numbers are drawn ({node.target}), as dropout does",
            "give F.dropout(x, p, training=self.training), or use nn.Dropout, which is off in a program; draw nothing "
            "else in forward and loss, or make the noise an entry of the batch",
        )
    return (
        f"random numbers are drawn ({node.target}), so the program could not be compared with PyTorch",
        "leave noise (rand_like, gumbel_softmax, rsample) out of forward and loss, or make it an entry of the batch "
        "that forward is given",
    )


def check_values(graph: fx.GraphModule) -> None:
    """Refuse what no program can have, in a graph that is simplified, so that only what counts is left.

    Raises:
        RefusedNode: a node writes to an input, has a shape that depends on values, or computes in half precision.
    """
    fed = _from_inputs(graph.graph.nodes)
    for node in graph.graph.nodes:
        target = node.target
        value = _with_val(node)
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if target._schema.is_mutable:
            raise RefusedNode(
                node,
                f"a tensor that comes from outside is written to in place ({target})",
                _WRITING_MEND,
            )
        if node in fed and _SHAPE_OF_VALUES in target.tags and _varies(node, fed):
            raise RefusedNode(
                node,
                f"a shape depends on values ({target})",
                "a program has the same shapes for every batch: keep all elements and use a mask, torch.where(mask, x, "
                "0.0) and sums that count the mask, in place of x[mask], nonzero, unique or masked_select; give "
                "bincount and one_hot their number of classes",
            )
        if value is not None and value.dtype in _HALVES and node in fed and _name(node) not in _MOVES:
            raise RefusedNode(
                node,
                f"{str(value.dtype).removeprefix('torch.')} is computed with ({target}), which every engine rounds in "
                "its own way",
                "compute in float32: no .half(), .bfloat16() or autocast in forward, and backbone.float()",
            )
    _check_weights(graph)


def _check_weights(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        value = _with_val(node)
        if node.op == "get_attr" and value is not None and value.dtype == torch.bfloat16 and node.users:
            user = next(iter(node.users))
            raise RefusedNode(
                user if user.op == "call_function" else node,
                "weights are bfloat16, which engines on devices do not take",
                "give the backbone float32 weights: backbone.float()",
            )


def _varies(node: fx.Node, fed: set[fx.Node]) -> bool:
    """Reading by an index has a shape that is known, but for an index of booleans."""
    if node.target is not _aten.index.Tensor:
        return True
    return any(
        index in fed and getattr(_with_val(index), "dtype", None) in (torch.bool, torch.uint8)
        for index in node.args[1]
    )

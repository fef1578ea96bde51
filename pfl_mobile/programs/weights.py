"""Frozen weights of 8 or 4 bits: what a bundle stores, while everything is computed in float32.

A weight is stored as whole numbers and scales, and read as their product. Only what is stored has few bits: activations
stay float32, as rounding them would round gradients too. So a model with such weights is one in float32 whose weights
have other values, and its programs are compared with PyTorch as all others are.

In a traced graph the operator ``DEQUANTIZE`` stands for a weight. It is the one place where targets see that a weight
is stored in fewer bits; what its inputs are (constants here) is nothing to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.modules.insertion import TransposedLinear

if TYPE_CHECKING:
    from pfl_mobile.modules.model import PersonalizedModel

#: Kinds of stored weights.
KINDS = ("float32", "int8", "int4")
#: Numbers in a row of a weight that share a scale, where nobody says.
GROUP = 32
#: Weights of fewer numbers stay as they are: little is saved, and some are read by what is no product.
SMALLEST = 1024

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_LAYERS = (nn.Linear, nn.Embedding, TransposedLinear, *_CONVOLUTIONS)
#: Scales of a group that are tried, as parts of that by which its largest number just fits.
_TRIED = (1.0, 0.95, 0.9, 0.85, 0.8)
#: By which a parameter says how it is stored.
_STORED = "pfl_stored"


@dataclass(frozen=True)
class WeightFormat:
    """How frozen weights are stored.

    Attributes:
        kind: ``float32``, ``int8`` (a scale for each output of a layer, or row of a table) or ``int4`` (a scale for
            each group of inputs; convolutions as ``int8``).
        group: of ``int4``, how many numbers share a scale; a multiple of 2, and of 16 at least.
    """

    kind: str = "float32"
    group: int = GROUP

    def __post_init__(self) -> None:
        """Check the values (ConfigError, UnknownNameError)."""
        if self.kind not in KINDS:
            raise UnknownNameError(
                f"weights of {str(self.kind)!r} are not known", mend=near(str(self.kind), KINDS)
            )
        if type(self.group) is not int or self.group < 16 or self.group % 2:
            raise ConfigError(
                f"groups of {self.group!r} weights",
                mend="give an even number of 16 or more that divides the inputs of every layer: 32, 64 or 128",
            )

    @classmethod
    def of(cls, given: str | WeightFormat) -> WeightFormat:
        """From words: ``float32``, ``int8``, ``int4``, or ``int4:128`` with the size of a group.

        Raises:
            UnknownNameError, ConfigError: there is no such format.
        """
        if isinstance(given, WeightFormat):
            return given
        if not isinstance(given, str):
            raise ConfigError(
                f"weights are {type(given).__name__}",
                mend=f"give one of {', '.join(KINDS)}, or a WeightFormat",
            )
        kind, colon, group = given.partition(":")
        if not colon:
            return cls(kind)
        if kind != "int4" or not group.isascii() or not group.isdigit():
            raise ConfigError(
                f"{given!r} is no format of weights", mend="give a group to int4 only, as in int4:128"
            )
        return cls(kind, int(group))


@dataclass(frozen=True)
class StoredWeight:
    """A weight as whole numbers and scales.

    Attributes:
        numbers: int8; of 4 bits, between -8 and 7. The first dimension is that of the outputs.
        scales: float32 [rows, groups]; a group is one of equal parts of a row.
        bits: 8 or 4.
        turned: whether the layer holds the weight as [in, out], so that the numbers are its transpose.
    """

    numbers: Tensor
    scales: Tensor
    bits: int
    turned: bool = False

    def weight(self) -> Tensor:
        """As the layer reads it: float32, row by row in memory."""
        found = dequantize(self.numbers, self.scales)
        return found.t().contiguous() if self.turned else found

    @property
    def stored_bytes(self) -> int:
        """Bytes of numbers and scales."""
        return int(self.numbers.numel() * self.bits // 8 + self.scales.numel() * 4)


def dequantize(numbers: Tensor, scales: Tensor) -> Tensor:
    """Numbers times scales, float32 of the shape of the numbers.

    Args:
        numbers: whole numbers [*rows, ...].
        scales: float32 [*rows, groups]: what follows the rows is cut into that many equal parts.
    """
    rows = scales.shape[:-1]
    parts = numbers.reshape(*rows, scales.shape[-1], -1).to(torch.float32)
    return (parts * scales.unsqueeze(-1)).reshape(numbers.shape)


def quantize(weight: Tensor, bits: int, group: int | None = None) -> StoredWeight:
    """Round to whole numbers, symmetric around zero.

    Of 8 bits the largest number of each group becomes 127 or -127. Of 4 bits that would waste the few numbers there
    are, so of some scales that cut the largest numbers off, the one with the smallest squared error is taken.

    Args:
        weight: float32 [rows, ...].
        bits: 8 or 4.
        group: numbers of a row that share a scale; None: the whole row.

    Raises:
        ConfigError: the weight is not finite, or groups do not divide its rows.
    """
    rows = weight.shape[0]
    size = weight.numel() // rows
    if group is not None and size % group:
        raise ConfigError(
            f"groups of {group} do not divide rows of {size} weights",
            mend=f"choose a group that divides {size}, or store the weights as int8",
        )
    flat = weight.detach().reshape(rows, -1, group or size).to(torch.float32)
    if not bool(flat.isfinite().all()):
        raise ConfigError(
            "the weight has values that are not finite", mend="look at the checkpoint: it is damaged"
        )
    most = 2 ** (bits - 1) - 1
    largest = flat.abs().amax(-1, keepdim=True)
    numbers, scales = _rounded(flat, largest / most, most)
    if bits < 8:
        error = (numbers * scales - flat).square().sum(-1, keepdim=True)
        for part in _TRIED[1:]:
            others, smaller = _rounded(flat, largest / most * part, most)
            its = (others * smaller - flat).square().sum(-1, keepdim=True)
            better = its < error
            numbers, scales = torch.where(better, others, numbers), torch.where(better, smaller, scales)
            error = torch.where(better, its, error)
    return StoredWeight(numbers.to(torch.int8).reshape(weight.shape), scales.squeeze(-1), bits)


def _rounded(flat: Tensor, scales: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Numbers, as floats, and the scales: none too small to divide by, and none with a product that is infinite."""
    limits = torch.finfo(torch.float32)
    scales = scales.clamp(limits.tiny, limits.max / most)
    scales = torch.where((scales * most).isinf(), scales * (1 - limits.eps), scales)
    return (flat / scales).round().clamp(-most - (most < 127), most), scales


_LIBRARY = torch.library.Library("pfl_mobile", "FRAGMENT")
_LIBRARY.define("dequantize(Tensor numbers, Tensor scales, int bits) -> Tensor")


def _kernel(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:  # noqa: ARG001  (for targets, which pack them)
    return dequantize(numbers, scales)


_LIBRARY.impl("dequantize", _kernel, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pfl_mobile::dequantize",
    lambda numbers, scales, bits: numbers.new_empty(numbers.shape, dtype=torch.float32),  # noqa: ARG005
    lib=_LIBRARY,
)
#: ``(numbers, scales, bits)``: the weight that is stored so.
DEQUANTIZE: Any = torch.ops.pfl_mobile.dequantize.default


def pack(numbers: Tensor) -> Tensor:
    """Two numbers of 4 bits in a byte: 16 times one of a row's second half, plus one of its first half, plus 8.

    Args:
        numbers: int8 [rows, columns], between -8 and 7; an even number of columns.

    Returns:
        int8 [rows, columns / 2].
    """
    low, high = numbers.chunk(2, 1)
    return (high * 16 + (low + 8)).to(torch.int8)


def _unpacked(packed: Tensor, scales: Tensor) -> Tensor:
    byte = packed.to(torch.int16)
    high = byte.div(16, rounding_mode="floor")
    return dequantize(torch.cat((byte - 16 * high - 8, high), -1), scales)


_LIBRARY.define("dequantize_packed(Tensor packed, Tensor scales) -> Tensor")
_LIBRARY.impl("dequantize_packed", _unpacked, "CompositeExplicitAutograd")
torch.library.register_fake(
    "pfl_mobile::dequantize_packed",
    lambda packed, scales: scales.new_empty((*packed.shape[:-1], 2 * packed.shape[-1])),
    lib=_LIBRARY,
)
#: ``(packed, scales)``: a weight of 4 bits whose packed numbers a program is given.
DEQUANTIZE_PACKED: Any = torch.ops.pfl_mobile.dequantize_packed.default


def one_for_each_use(graph: fx.GraphModule) -> None:
    """Read a weight anew just before each of its uses, in place: as float32 it is then needed for that time only, and
    not from the forward pass to the backward pass. Rows of a table (see `rows_first`) are read once."""
    for node in [n for n in graph.graph.nodes if n.target is DEQUANTIZE]:
        if node.args[0].target is torch.ops.aten.embedding.default:
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                own = graph.graph.node_copy(node)
            user.replace_input_with(node, own)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def rows_first(graph: fx.GraphModule) -> None:
    """Look rows up in the numbers and scales of a table, and not in the table, in place."""
    embedding = torch.ops.aten.embedding.default
    for node in list(graph.graph.nodes):
        if node.target is not embedding or node.args[0].target is not DEQUANTIZE:
            continue
        numbers, scales, bits = node.args[0].args
        with graph.graph.inserting_before(node):
            rows = graph.graph.call_function(embedding, (numbers, node.args[1]))
            sizes = graph.graph.call_function(embedding, (scales, node.args[1]))
            read = graph.graph.call_function(DEQUANTIZE, (rows, sizes, bits))
        read.meta = dict(node.meta)
        shape = tuple(node.meta["val"].shape)
        rows.meta["val"] = node.meta["val"].new_empty(shape, dtype=torch.int8)
        sizes.meta["val"] = node.meta["val"].new_empty((*shape[:-1], scales.meta["val"].shape[-1]))
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def for_parts(graph: fx.GraphModule) -> None:
    """Prepare weights of few bits for programs that are given them, in place.

    Numbers of 4 bits become packed constants, of a convolution float32 ones, which not every engine can compute.
    """
    rows_first(graph)
    one_for_each_use(graph)
    packed: list[tuple[Tensor, Tensor]] = []
    read = [node for node in graph.graph.nodes if node.target is DEQUANTIZE]
    # whole tables before some of their rows
    for node in sorted(read, key=lambda node: -getattr(graph, _table(node).target).numel()):
        numbers, scales, bits = node.args
        if any(user.target is torch.ops.aten.convolution.default for user in node.users):
            value = dequantize(getattr(graph, numbers.target), getattr(graph, scales.target))
            _constant(graph, node, f"{numbers.target}_float32", value)
        elif bits == 4:
            table = _table(node)
            value = _packed(getattr(graph, table.target), packed)
            if table is numbers:
                with graph.graph.inserting_before(node):
                    given = _placed(graph, f"{table.target}_packed", value)
            else:
                with graph.graph.inserting_before(numbers):
                    own = _placed(graph, f"{table.target}_packed", value)
                    given = graph.graph.call_function(
                        torch.ops.aten.embedding.default, (own, numbers.args[1])
                    )
                shape = tuple(numbers.meta["val"].shape)
                given.meta["val"] = torch.empty(
                    (*shape[:-1], value.shape[-1]), dtype=torch.int8, device="meta"
                )
            with graph.graph.inserting_before(node):
                read = graph.graph.call_function(DEQUANTIZE_PACKED, (given, scales))
            read.meta = dict(node.meta)
            node.replace_all_uses_with(read)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    for node in [n for n in graph.graph.nodes if n.op == "get_attr" and not n.users]:
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _table(node: fx.Node) -> Any:
    """The constant that a weight's numbers are in, or that rows of it are looked up in."""
    numbers: Any = node.args[0]
    return numbers if numbers.op == "get_attr" else numbers.args[0]


def _packed(numbers: Tensor, known: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The packed numbers; those of some rows of a table that was packed before lie in the packed table."""
    for whole, packed in known:
        start, rest = divmod(numbers.data_ptr() - whole.data_ptr(), whole.shape[1])
        if 0 <= start <= len(whole) - len(numbers) and not rest and whole.shape[1:] == numbers.shape[1:]:
            return packed[start : start + len(numbers)]
    known.append((numbers, pack(numbers)))
    return known[-1][1]


def _placed(graph: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    if not hasattr(graph, name):
        graph.register_buffer(name, value)
    node = graph.graph.get_attr(name)
    node.meta["val"] = torch.empty_like(value, device="meta")
    return node


def _constant(graph: fx.GraphModule, node: fx.Node, name: str, value: Tensor) -> None:
    """A constant in the place of a node."""
    with graph.graph.inserting_before(node):
        made = _placed(graph, name, value)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)


def place_stored(graph: fx.GraphModule) -> None:
    """Read each weight that says how it is stored from its numbers and scales, in place."""
    for node in list(graph.graph.nodes):
        stored = getattr(getattr(graph, node.target), _STORED, None) if node.op == "get_attr" else None
        if stored is None:
            continue
        for part, value in (("numbers", stored.numbers), ("scales", stored.scales)):
            graph.register_buffer(f"{node.target}_{part}", value)
        with graph.graph.inserting_after(node):
            parts = [graph.graph.get_attr(f"{node.target}_{part}") for part in ("numbers", "scales")]
        with graph.graph.inserting_after(parts[0]):
            read = graph.graph.call_function(DEQUANTIZE, (*parts, stored.bits))
        if stored.turned:
            with graph.graph.inserting_after(read):
                read = graph.graph.call_function(torch.ops.aten.permute.default, (read, [1, 0]))
        node.replace_all_uses_with(read)
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


@dataclass(frozen=True)
class StoredTensor:
    """How a weight is stored, and how far it is from what it was.

    Attributes:
        bits: 8 or 4.
        rel_err: length of the difference, relative to the length of the weight.
    """

    bits: int
    rel_err: float


@dataclass(frozen=True)
class StoredModel:
    """The weights of a model that are stored in fewer bits.

    Attributes:
        format: of them.
        tensors: by name; a tied one once, under its first name.
        bytes: of their numbers and scales.
        float32_bytes: of the same weights in float32.
        left_bytes: of the frozen parameters that stay in float32.
        originals: the weights as they were, by name.
    """

    format: WeightFormat
    tensors: dict[str, StoredTensor]
    bytes: int
    float32_bytes: int
    left_bytes: int
    originals: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.format.kind,
            "group": self.format.group if self.format.kind == "int4" else None,
            "tensors": {name: asdict(tensor) for name, tensor in self.tensors.items()},
            "bytes": self.bytes,
            "float32_bytes": self.float32_bytes,
            "left_bytes": self.left_bytes,
        }


@dataclass(frozen=True)
class _Place:
    """A frozen weight and the layers that hold it."""

    name: str
    weight: nn.Parameter
    layer: nn.Module
    holders: list[tuple[nn.Module, str]]


def _places(model: PersonalizedModel) -> Iterator[_Place]:
    device = {id(parameter) for parameter in model.train_parameters()}
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for layer in model.modules():
        for leaf, value in layer._parameters.items():
            if value is not None:
                holders.setdefault(id(value), []).append((layer, leaf))
    seen: set[int] = set()
    for path, layer in model.backbone.named_modules():
        weight = layer._parameters.get("weight") if isinstance(layer, _LAYERS) else None
        if weight is None or id(weight) in device or id(weight) in seen:
            continue
        seen.add(id(weight))
        if weight.dtype == torch.float32 and weight.numel() >= SMALLEST:
            yield _Place(f"{path}.weight".lstrip("."), weight, layer, holders[id(weight)])


def stored_weight(layer: nn.Module, weight: Tensor, how: WeightFormat) -> StoredWeight:
    """The weight of a layer as it is stored; of a convolution always in 8 bits.

    Raises:
        ConfigError: it is not finite, or groups do not divide the layer's inputs.
    """
    turned = isinstance(layer, TransposedLinear)
    value = weight.detach().t() if turned else weight.detach()
    if how.kind == "int8" or isinstance(layer, _CONVOLUTIONS):
        found = quantize(value, 8)
    else:
        found = quantize(value, 4, how.group)
    return StoredWeight(found.numbers, found.scales, found.bits, turned)


@contextmanager
def weights_stored(model: PersonalizedModel, how: WeightFormat) -> Iterator[StoredModel | None]:
    """Have the model compute with frozen weights as they are stored, and with its own again at the end.

    Weights of linear layers, convolutions and embeddings of ``SMALLEST`` numbers or more; what a device trains, biases,
    norms and everything else stays as it is. What is traced meanwhile reads the stored numbers.

    Args:
        model: its backbone, which the user gave, is not written to.
        how: ``float32`` changes nothing, and gives None.

    Raises:
        ConfigError: a weight cannot be stored so; it is named. Or there is none to be stored.
    """
    if how.kind == "float32":
        yield None
        return
    places = list(_places(model))
    if not places:
        raise ConfigError(
            f"the model has no frozen weight of {SMALLEST} numbers or more to store as {how.kind}",
            mend="export it with weights in float32",
        )
    chosen: list[tuple[_Place, StoredWeight]] = []
    for place in places:
        try:
            chosen.append((place, stored_weight(place.layer, place.weight, how)))
        except ConfigError as error:
            raise ConfigError(f"{place.name}: {error.message}", mend=error.mend) from error
    tensors = {}
    try:
        for place, stored in chosen:
            read = nn.Parameter(stored.weight(), requires_grad=False)
            setattr(read, _STORED, stored)
            for layer, leaf in place.holders:
                layer._parameters[leaf] = read
            # a weight of zeros is stored exactly
            length = float(place.weight.detach().double().norm()) or 1.0
            apart = float((read.double() - place.weight.detach().double()).norm())
            tensors[place.name] = StoredTensor(stored.bits, apart / length)
        yield StoredModel(
            how,
            tensors,
            sum(stored.stored_bytes for _, stored in chosen),
            sum(place.weight.numel() * 4 for place in places),
            sum(
                value.numel() * value.element_size()
                for value in {id(p): p for p in model.backbone.parameters()}.values()
                if not hasattr(value, _STORED) and not value.requires_grad
            ),
            {place.name: place.weight.detach() for place in places},
        )
    finally:
        for place, _ in chosen:
            for layer, leaf in place.holders:
                layer._parameters[leaf] = place.weight

"""Finding layers by pattern, and the place where module kinds add their tensors and hooks."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from typing_extensions import override

from pfl_mobile.errors import ConfigError, UnknownNameError, near

if TYPE_CHECKING:
    from collections.abc import Iterable


def matches(pattern: str, name: str) -> bool:
    """True when ``name`` fits the glob (``*`` also spans dots) or, after ``re:``, the whole regex.

    Raises:
        ConfigError: the regex is invalid.
    """
    if not pattern.startswith("re:"):
        return fnmatch.fnmatchcase(name, pattern)
    try:
        return re.fullmatch(pattern[3:], name) is not None
    except re.error as error:
        raise ConfigError(f"pattern {pattern!r} is no valid regex: {error}", mend="correct it") from error


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def near_pattern(pattern: str, known: Iterable[str]) -> str:
    """Words for a mend: names, or globs over them, that are near to a pattern that matched nothing."""
    names = sorted(set(known))
    globs = {re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names}
    tails = {"*." + name.rpartition(".")[2] for name in names}
    text = pattern.removeprefix("re:")
    for candidates in (tails if text.startswith("*") else globs if "*" in text else names, globs, names):
        words = near(text, candidates)
        if words.startswith("did you mean"):
            return words
    return words


@dataclass(frozen=True)
class Placed:
    """A device tensor as a kind declared it; the role is settled later."""

    name: str
    path: str
    update: str
    module: str
    private: bool


class _AsInTransformers(type):
    """Knows the class without importing its library."""

    @override
    def __instancecheck__(cls, instance: Any) -> bool:
        found = type(instance)
        return (found.__module__, found.__qualname__) == ("transformers.pytorch_utils", "Conv1D")


class TransposedLinear(nn.Module, metaclass=_AsInTransformers):
    """A linear layer whose weight is [in, out]: ``Conv1D`` of transformers, of which GPT-2 is made."""

    weight: Tensor


#: A pattern that is no path: every linear layer that the forward pass calls.
ALL_LINEAR = "all-linear"


def channels(path: str, layer: nn.Module) -> tuple[int, int] | None:
    """``(size, dimension)`` of the output features of a layer of a known type, else None."""
    if isinstance(layer, nn.Linear | nn.Bilinear):
        return layer.out_features, -1
    if isinstance(layer, TransposedLinear):
        return layer.weight.shape[1], -1
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, -1
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[-1], -1
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return layer.out_channels, 1
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return layer.num_features, 1
    if isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
        raise ConfigError(
            f"layer {path!r} ({type(layer).__name__}) gives a tuple, which no output module can follow",
            mend="target a layer with a plain tensor as output, for instance the one after it",
        )
    return None


@dataclass
class Insertion:
    """The copied backbone while one module is put into it.

    Attributes:
        root: the copied backbone, frozen, in eval mode; kinds add tensors and hooks to its layers.
        extras: home of the tensors that belong to no layer, one child for each module that needs it.
        name: name of the module being inserted.
        seed: base of the deterministic initial values.
        shapes: output shape of every layer that the example input reached, None without an example. A layer
            whose output is no plain tensor has the shape ``()``.
        tensors: all device tensors declared so far.
        outputs: names in ``extras`` of the modules applied to the model's output, in order.
        prefix: number of soft-prompt positions to strip from the output.
        untouched: the backbone over the same tensors, which nothing is put into; None unless a module reads it.
        wrapper: what paths began with in the wrapper that was taken off the backbone (``module.``); patterns may
            keep it.
    """

    root: nn.Module
    extras: nn.ModuleDict
    name: str = ""
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] | None = None
    tensors: dict[str, Placed] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    prefix: int = 0
    replaced: dict[str, Tensor] = field(default_factory=dict)
    untouched: nn.Module | None = None
    wrapper: str = ""

    def find(
        self,
        targets: Iterable[str],
        supported: tuple[type[nn.Module], ...] | None = None,
        *,
        hooked: bool = True,
    ) -> list[tuple[str, nn.Module]]:
        """The layers that the patterns match, each once, in model order.

        Args:
            targets: patterns over module paths, or ``all-linear``; each has to match something.
            supported: types a matched layer may have; None allows every type.
            hooked: True when the module works on the layer's call, so the layer has to be called.

        Raises:
            UnknownNameError: a pattern matches no layer.
            ConfigError: a matched layer has an unsupported type, is not float32, or is never called.
        """
        layers = [(p, m) for p, m in self.root.named_modules(remove_duplicate=False) if p]
        first = self.first_paths()
        wrapped = ("", self.wrapper) if self.wrapper else ("",)
        chosen: dict[str, nn.Module] = {}
        for pattern in targets:
            if pattern == ALL_LINEAR:
                hits = [(first[id(m)], m) for _, m in layers if self._linear(first[id(m)], m)]
            else:
                hits = [(first[id(m)], m) for p, m in layers if any(matches(pattern, w + p) for w in wrapped)]
            if not hits:
                raise UnknownNameError(
                    f"{self.name}: pattern {pattern!r} matches no layer of {type(self.root).__name__}",
                    mend=near_pattern(pattern, [p for p, _ in layers]),
                )
            chosen.update(hits)
        order = {path: i for i, (path, _) in enumerate(layers)}
        found = sorted(chosen.items(), key=lambda item: order[item[0]])
        if (
            supported is not None and nn.MultiheadAttention in supported
        ):  # which takes its output layer with it
            found = [
                (path, layer)
                for path, layer in found
                if not isinstance(chosen.get(_parent(path)), nn.MultiheadAttention)
            ]
        for path, layer in found:
            self._check(path, layer, supported, hooked)
        return found

    def first_paths(self) -> dict[int, str]:
        """The path of each layer by its ``id``: of a layer that is in several places, the first."""
        first: dict[int, str] = {}
        for path, layer in self.root.named_modules(remove_duplicate=False):
            first.setdefault(id(layer), path)
        return first

    def _linear(self, path: str, layer: nn.Module) -> bool:
        if isinstance(layer, NonDynamicallyQuantizableLinear):
            return False  # its weight is used without calling it
        return isinstance(layer, nn.Linear | TransposedLinear) and (
            self.shapes is None or path in self.shapes
        )

    def one(self, target: str, supported: tuple[type[nn.Module], ...] | None = None) -> tuple[str, nn.Module]:
        """The single layer that ``target`` matches.

        Raises:
            ConfigError: it matches several; otherwise as :meth:`find`.
        """
        found = self.find((target,), supported)
        if len(found) > 1:
            raise ConfigError(
                f"{self.name}: {target!r} matches {len(found)} layers ({', '.join(p for p, _ in found[:4])})",
                mend="name exactly one layer",
            )
        return found[0]

    def _check(
        self, path: str, layer: nn.Module, supported: tuple[type[nn.Module], ...] | None, hooked: bool
    ) -> None:
        if supported is not None and not isinstance(layer, supported):
            names = ["Conv1D of transformers" if t is TransposedLinear else t.__name__ for t in supported]
            kind = type(layer).__name__
            if kind in names:
                kind = f"{type(layer).__module__}.{kind}"
            raise ConfigError(
                f"{self.name}: layer {path!r} is a {kind}, which this kind of module does not support",
                mend=f"target layers of type {', '.join(names)}, or narrow the pattern; {ALL_LINEAR!r} is every linear "
                "layer",
            )
        if hooked and isinstance(layer, NonDynamicallyQuantizableLinear):
            whole = supported is not None and nn.MultiheadAttention in supported
            raise ConfigError(
                f"{self.name}: layer {path!r} belongs to a packed nn.MultiheadAttention, which uses its "
                "weight without calling it",
                mend=f"target the attention itself, {_parent(path)!r}"
                if whole
                else "use an attention with separate q, k, v and output layers",
            )
        if hooked and self.shapes is not None and path not in self.shapes:
            raise ConfigError(
                f"{self.name}: layer {path!r} is never called for the example input",
                mend="target a layer that the forward pass calls",
            )
        weights = dict(layer.named_parameters(recurse=isinstance(layer, nn.MultiheadAttention)))
        for name, value in {"weight": getattr(layer, "weight", None), **weights}.items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float32:
                raise ConfigError(
                    f"{self.name}: {name} of layer {path!r} is {value.dtype}, not float32",
                    mend="convert the backbone first: backbone.float()",
                )

    def features(self, path: str, layer: nn.Module, width: int | None = None) -> tuple[int, int]:
        """``(size, dimension)`` of a layer's output features: the known type, ``width``, or the example.

        For an unknown type they are the last dimension, or the second of four.

        Raises:
            ConfigError: nothing tells the size, or the output is no plain tensor.
        """
        known = channels(path, layer)
        if known is not None:
            if width is not None and width != known[0]:
                raise ConfigError(
                    f"{self.name}: width={width}, but layer {path!r} has {known[0]} output features",
                    mend="leave width out",
                )
            return known
        shape = (self.shapes or {}).get(path, ())
        dim = 1 if len(shape) == 4 else -1  # images keep their channels second
        if width is not None and (not shape or shape[dim] == width):
            return width, dim
        if not shape:
            raise ConfigError(
                f"{self.name}: the output size of layer {path!r} ({type(layer).__name__}) is not known",
                mend="give width=, or give personalize an example input that reaches it",
            )
        if width is not None:
            raise ConfigError(
                f"{self.name}: width={width}, but the output of layer {path!r} is {list(shape)}",
                mend="leave width out, or target another layer",
            )
        return shape[dim], dim

    def generator(self, tensor: str) -> torch.Generator:
        """A random generator that depends on the seed and the tensor's name only."""
        digest = hashlib.sha256(f"{self.seed}:{tensor}".encode()).digest()
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(digest[:7], "big"))
        return generator

    def add(
        self, path: str, tensor: str, value: Tensor, *, update: str = "gradient", private: bool = False
    ) -> None:
        """Declare the device tensor ``<path>.<tensor>`` and register it on the layer at ``path``.

        ``path`` is a layer of the backbone, or the module's own name when it has a part in ``extras``. With
        ``update="gradient"`` it becomes a Parameter, else a buffer. ``private`` tensors can have no other
        role than personal, because they hold the user's own words.

        Raises:
            ConfigError: the name is taken.
        """
        name = f"{path}.{tensor}"
        own = path == self.name and path in self.extras
        layer = self.extras[path] if own else self.root.get_submodule(path)
        taken = tensor in layer._parameters and name not in self.replaced
        if name in self.tensors or taken or tensor in layer._buffers:
            raise ConfigError(
                f"{self.name}: tensor {name!r} exists already", mend="let one module only target this layer"
            )
        device = next((p.device for p in self.root.parameters()), torch.device("cpu"))
        value = value.detach().clone().to(device)
        if update == "gradient":
            setattr(layer, tensor, nn.Parameter(value))  # setattr also keeps the flat list of an nn.RNNBase
        else:
            layer.register_buffer(tensor, value)
        self.tensors[name] = Placed(
            name, f"{'extras' if own else 'backbone'}.{name}", update, self.name, private
        )

    def replace(self, path: str, tensor: str, value: Tensor) -> None:
        """Make the layer's own parameter trainable: its frozen value gives way to a copy, ``value``.

        Raises:
            ConfigError: another module replaced it before.
        """
        name = f"{path}.{tensor}"
        if name in self.tensors:
            raise ConfigError(
                f"{self.name}: {name!r} is trainable already", mend="let one module only target this layer"
            )
        layer = self.root.get_submodule(path)
        self.replaced[name] = getattr(layer, tensor)
        self.add(path, tensor, value)

    def extra(self, module: nn.Module) -> None:
        """Give the module a part of its own, whose tensors are named ``<module name>.<tensor>``.

        Raises:
            ConfigError: the backbone has a layer of that name.
        """
        if self.name in dict(self.root.named_children()):
            raise ConfigError(
                f"the backbone has a layer called {self.name!r} too", mend="give the module another name="
            )
        self.extras[self.name] = module

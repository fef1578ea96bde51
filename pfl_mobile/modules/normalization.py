"""Layers that change themselves in a forward pass, BatchNorm above all, and what to do about them.

Devices train parameters; a traced program holds everything else as it is. So a layer whose forward pass updates
something of its own (running statistics, a moving average, a counter) would stop doing so without a word. Here such
layers are found by looking, not by their type, and there are two ways out for normalization:

    model = fit_batch_norm(model, data)     # statistics of the users' rows, kept fixed from then on
    model = replace_batch_norm(model)       # GroupNorm, which has no statistics
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.random import permutation

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.rows import Rows

__all__ = [
    "Normalization",
    "as_found",
    "check_trainable",
    "fit_batch_norm",
    "listed",
    "look",
    "replace_batch_norm",
    "rows_depend_on_each_other",
]

#: Rows in a batch that statistics are taken of.
_FIT_BATCH = 256
#: Users that statistics are taken of, at most.
_FIT_USERS = 256
#: Channels in a group of GroupNorm, at least, and groups, at most (Wu and He 2018, arXiv 1803.08494, use 32 groups).
_LEAST_CHANNELS, _MOST_GROUPS = 8, 32

_WAYS_OUT = (
    "fix the statistics at those of your users' rows first, model = fit_batch_norm(model, data), or train a "
    "normalization that has none, model = replace_batch_norm(model); both are in pfl_mobile"
)


@dataclass(frozen=True)
class Normalization:
    """What a forward pass of a model showed.

    Attributes:
        changed: layer to what of its own a pass changes: buffers, parameters, and attributes that the next output
            depends on.
        by_batch: layers that normalize with the statistics of the batch, so that its rows depend on each other.
        unfitted: layers whose running statistics are all 0 and 1, so that they normalize nothing.
        steady: whether the same input gave the same output twice, with the same numbers drawn by PyTorch.
    """

    changed: Mapping[str, tuple[str, ...]]
    by_batch: tuple[str, ...]
    unfitted: tuple[str, ...]
    steady: bool = True


class _Calls(TorchFunctionMode):
    """Notes in which layer batch and instance normalization is called, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = [""]
        self.by_batch: dict[str, None] = {}
        self.unfitted: dict[str, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIGNATURES:
            given = {**dict(zip(_SIGNATURES[func], args, strict=False)), **kwargs}
            mean, var = given.get("running_mean"), given.get("running_var")
            own = given.get(_OWN[func], func is F.instance_norm) or mean is None or var is None
            where = self.inside[-1]
            if own and func in _BATCH:
                self.by_batch[where] = None
            elif not own and _is_fresh(mean, var):
                self.unfitted[where] = None
        return func(*args, **kwargs)


def _is_fresh(mean: Tensor, var: Tensor) -> bool:
    return not bool(mean.any()) and torch.equal(var, torch.ones_like(var))


_NAMES = ("input", "running_mean", "running_var", "weight", "bias")
_RAW = ("input", "weight", "bias", "running_mean", "running_var")
_SIGNATURES: dict[Any, tuple[str, ...]] = {
    F.batch_norm: (*_NAMES, "training"),
    F.instance_norm: (*_NAMES, "use_input_stats"),
    torch.batch_norm: (*_RAW, "training"),
    torch.instance_norm: (*_RAW, "use_input_stats"),
}
_BATCH = {F.batch_norm, torch.batch_norm}
_OWN: dict[Any, str] = {func: names[-1] for func, names in _SIGNATURES.items()}


def look(model: nn.Module, inputs: Sequence[Tensor], *, training: bool = False) -> Normalization:
    """Run the model twice and see what it does to itself; nothing of it stays.

    Args:
        model: any; in training mode for the pass with ``training``, else in eval mode.
        inputs: of ``forward``.
        training: see above.

    Raises:
        Exception: whatever the model raises on these inputs.
    """
    calls, handles = _Calls(), []
    for path, layer in model.named_modules():

        def enter(_layer: nn.Module, _inputs: Any, path: str = path) -> None:
            calls.inside.append(path)

        def leave(_layer: nn.Module, _inputs: Any, _output: Any) -> None:
            calls.inside.pop()

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    try:
        with as_found(model), torch.no_grad(), _draws(model) as again:
            model.train(training)
            states, outputs = [_state(model)], []
            with calls:
                for _ in range(2):
                    again()
                    outputs.append(model(*inputs))
                    states.append(_state(model))
    finally:
        for handle in handles:
            handle.remove()
    same = _equal(*outputs)
    changed: dict[str, tuple[str, ...]] = {}
    for path, (buffers, values) in states[2].items():
        begin, between = states[0].get(path, ({}, {}))[0], states[1].get(path, ({}, {}))[1]
        names = [n for n, v in buffers.items() if n in begin and not _equal(v, begin[n])]
        if not same:  # else it is something noted for others, and nothing depends on it
            names += [n for n, v in values.items() if n in between and not _equal(v, between[n])]
        if names:
            changed[path] = tuple(names)
    return Normalization(changed, tuple(calls.by_batch), tuple(calls.unfitted), _near(*outputs))


@contextmanager
def _draws(model: nn.Module) -> Iterator[Callable[[], None]]:
    """A function after which dropout draws the same again; afterwards generators go on as if nothing had been drawn.

    Not ``torch.manual_seed``: that seeds every kind of accelerator as well, for good, and where none is in use notes
    for each kind the whole stack of calls, which takes longer than a small model's forward.
    """
    places = {p.device.index or 0 for p in (*model.parameters(), *model.buffers()) if p.is_cuda}

    def again() -> None:
        torch.default_generator.manual_seed(0)
        for place in places:
            torch.cuda.default_generators[place].manual_seed(0)

    with torch.random.fork_rng(devices=sorted(places)):
        yield again


def rows_depend_on_each_other(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Whether another last row changes the outputs of the rows before it."""
    count = len(inputs[0]) if inputs and inputs[0].dim() else 0
    if count < 2:
        return False
    others = []
    for value in inputs:
        other = value.clone()
        other[-1] = 0 if value.is_floating_point() else value[0]
        others.append(other)
    with as_found(model), torch.no_grad(), _draws(model) as again:
        model.eval()
        found = []
        for given in (inputs, others):
            again()
            found.append(model(*given))
    one, other = found
    if not isinstance(one, Tensor) or not one.dim() or len(one) != count or not one.is_floating_point():
        return False
    one, other = one[:-1], other[:-1]
    size = float(torch.nan_to_num(one).abs().max())
    return not torch.allclose(one, other, rtol=0, atol=1e-3 * size + 1e-6, equal_nan=True)


#: Elements of a parameter that is not trained up to which its values are looked at.
_SMALL = 1 << 20


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """Values that a layer has beside parameters, buffers and layers."""
    return {n: v for n, v in vars(layer).items() if not n.startswith("_") and n != "training"}


def _state(model: nn.Module) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of every layer the buffers and marks of the parameters, and the attributes that are numbers or tensors, or lists
    and dicts of them.
    """
    seen: dict[int, Tensor] = {}  # what several layers have is copied once

    def kept(value: Any) -> Any:
        if isinstance(value, Tensor):
            return seen.setdefault(id(value), value.detach().clone())
        if isinstance(value, list | tuple | deque):
            return tuple(kept(item) for item in value)
        if isinstance(value, dict):
            return tuple((repr(key), kept(item)) for key, item in value.items())
        return value if isinstance(value, int | float) else None

    def mark(parameter: Tensor) -> Any:
        """Differs where a forward pass writes to it."""
        values = parameter.detach()
        small = not parameter.requires_grad and parameter.numel() <= _SMALL
        version = 0 if parameter.is_inference() else parameter._version
        # as a number of Python's: a tensor kept behind each copy would keep the heap from taking the copy's place again
        return version, values.data_ptr(), float(values.double().sum()) if small else None

    return {
        path: (
            {n: kept(b) for n, b in layer._buffers.items() if b is not None and not is_lazy(b)}
            | {n: mark(p) for n, p in layer._parameters.items() if p is not None and not is_lazy(p)},
            {n: kept(v) for n, v in _attributes(layer).items()},
        )
        for path, layer in model.named_modules()
    }


@contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Put back what layers have, and their modes.

    A lazy layer keeps the shape that it finds. Parameters are not copied: a model that writes to one is refused.
    """
    modes = [(layer, layer.training) for layer in model.modules()]
    lazy = {
        id(m)
        for m in model.modules()
        if any(is_lazy(t) for t in (*m._parameters.values(), *m._buffers.values()))
    }
    held = [(m, dict(m._buffers), _attributes(m)) for m in model.modules() if id(m) not in lazy]
    tensors = {
        id(t): t
        for _, buffers, values in held
        for t in (*buffers.values(), *values.values())
        if isinstance(t, Tensor)
    }
    copies = {key: t.detach().clone() for key, t in tensors.items()}
    filled = [v for _, _, values in held for v in values.values() if isinstance(v, list | dict | deque)]
    contents = [copy.copy(value) for value in filled]
    try:
        yield
    finally:
        for value, content in zip(filled, contents, strict=True):
            value.clear()
            value.update(content) if isinstance(value, dict) else value.extend(content)
        with torch.no_grad():
            for key, tensor in tensors.items():
                if not _equal(tensor, copies[key]):
                    tensor.copy_(copies[key])
        for layer, buffers, values in held:
            layer._buffers.update(buffers)
            for name in _attributes(layer).keys() - values.keys():
                delattr(layer, name)
            for name, value in values.items():
                if vars(layer).get(name) is not value:
                    vars(layer)[name] = value
        for layer, mode in modes:
            layer.training = mode


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other or one != one)


def _near(one: Any, other: Any) -> bool:
    """Equal, or tensors that differ by no more than an order of summation does."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point():
        return one.shape == other.shape and bool(
            torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
        )
    return not isinstance(one, Tensor) or _equal(one, other)


def check_trainable(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse a model that training on devices would leave without what a plain PyTorch loop updates.

    Allowed are layers in eval mode whose statistics are fitted: they are kept as they are, as in PyTorch.

    Args:
        model: plain or personalized (which is always in eval mode).
        inputs: an example batch.

    Raises:
        ConfigError: names the layers and the ways out.
    """
    try:
        seen = look(model, inputs)
        coupled = not seen.by_batch and not seen.changed and rows_depend_on_each_other(model, inputs)
    except Exception:  # the trace says what is wrong with a model that does not run
        return
    layers = dict(model.named_modules())
    if coupled:
        raise ConfigError(
            f"the output of {type(model).__name__} for one row of a batch depends on the other rows, so the rows that "
            "fill up a batch would change the results",
            mend="compute over the features of each row, not over the first dimension",
        )
    if seen.changed:
        raise ConfigError(
            f"{listed(layers, seen.changed, 'changes', 'change')}"
            f" {_what(seen.changed)} in every forward pass, in eval mode too, "
            "which no device would do",
            mend=_WAYS_OUT if _any_norm(layers, seen.changed) else "take it out of forward",
        )
    if seen.by_batch:
        raise ConfigError(
            f"{listed(layers, seen.by_batch, 'normalizes', 'normalize')}"
            " with the statistics of each batch, so the rows that fill "
            "up a batch would change the results of the others",
            mend="train a normalization of single examples: model = replace_batch_norm(model), which is in pfl_mobile",
        )
    moving = _updated_in_training(model, inputs, layers)
    if moving:
        fresh = " (0 and 1 now, which would normalize nothing)" if moving.keys() & set(seen.unfitted) else ""
        raise ConfigError(
            f"{listed(layers, moving, 'is', 'are')}"
            f" in training mode, where a plain loop updates {_what(moving)} in every "
            f"forward pass; a study trains parameters alone, and would leave them as they are{fresh}",
            mend=(f"{_WAYS_OUT}; " if _any_norm(layers, moving) else "")
            + "where they are fitted already and to stay as they are, say so: .eval() of the layer, or model.eval()",
        )
    if seen.unfitted:
        raise ConfigError(
            f"{listed(layers, seen.unfitted, 'has', 'have')}"
            " running statistics of 0 and 1, which normalize nothing, and a "
            "study does not train them",
            mend=_WAYS_OUT,
        )


def _updated_in_training(
    model: nn.Module, inputs: Sequence[Tensor], layers: Mapping[str, nn.Module]
) -> dict[str, tuple[str, ...]]:
    """Layers in training mode that update something of their own there, and what."""
    # A layer of a known type need not be reached by the example to count.
    found = {
        path: ("running_mean", "running_var")
        for path, layer in layers.items()
        if isinstance(layer, _NormBase) and layer.running_mean is not None and layer.training
    }
    try:  # two rows at least, as BatchNorm in training mode refuses one
        twice = [torch.cat([t, t]) if t.dim() and len(t) == 1 else t for t in inputs]
        changed = look(model, twice, training=True).changed
    except Exception:  # devices never run it in training mode, so it need not be able to
        changed = {}
    return found | {
        path: names for path, names in changed.items() if layers[path].training and path not in found
    }


def listed(
    layers: Mapping[str, nn.Module], paths: Mapping[str, Any] | Sequence[str], one: str, several: str
) -> str:
    """The layers as the subject of a sentence, with its verb."""
    some = []
    for path in list(paths)[:3]:
        kind, name = type(layers[path]).__name__, path.removeprefix("backbone").removeprefix(".")
        some.append(f"layer {name!r} ({kind})" if name else f"the model ({kind})")
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{', '.join(some)}{more} {one if len(paths) == 1 else several}"


def _what(changed: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(dict.fromkeys(name for names in changed.values() for name in names))


def _any_norm(layers: Mapping[str, nn.Module], paths: Mapping[str, Any]) -> bool:
    return any(isinstance(layers[path], _NormBase) for path in paths)


# -- ways out


def replace_batch_norm(model: nn.Module, groups: int | None = None) -> nn.Module:
    """A copy of the model with GroupNorm (Wu and He 2018, arXiv 1803.08494) in place of every BatchNorm.

    GroupNorm normalizes each example by itself, the same in training and in use. Scale and shift are taken over; the
    outputs of a trained model change, so train it afterwards. InstanceNorm with running statistics loses them.

    Args:
        model: any.
        groups: of channels; by default as many as leave 8 channels or more in each, 32 at most.

    Raises:
        ConfigError: ``groups`` does not divide the channels of a layer, a layer has too few channels, or the
            model has no shape yet.
    """
    made = _copied(model)
    new: dict[int, nn.Module] = {}
    if _is_tracked(made):
        return _stateless(type(made).__name__, made, groups)
    for path, layer in list(made.named_modules()):
        for name, child in list(layer.named_children()):
            if _is_tracked(child):
                where = f"{path}.{name}" if path else name
                new.setdefault(id(child), _stateless(where, child, groups))
        for name, other in layer._modules.items():  # a layer may be there under several names
            if id(other) in new:
                layer._modules[name] = new[id(other)]
    return made


def _copied(model: nn.Module) -> nn.Module:
    lazy = next((n for n, t in (*model.named_parameters(), *model.named_buffers()) if is_lazy(t)), None)
    if lazy is not None:
        raise ConfigError(
            f"{lazy!r} has no shape yet", mend="run the model on an example first: model.eval()(x)"
        )
    return copy.deepcopy(model)


def _is_tracked(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)


def _stateless(path: str, layer: _NormBase, groups: int | None) -> nn.Module:
    count = layer.num_features
    made: nn.Module
    if isinstance(layer, _InstanceNorm):
        made = copy.copy(layer)
        made._buffers = dict.fromkeys(layer._buffers)
        made.track_running_stats = False
        return made
    number = _groups(count) if groups is None else groups
    if number < 1 or count % number:
        raise ConfigError(
            f"{number} groups do not divide the {count} channels of layer {path!r}",
            mend="give another number of groups, or leave it out",
        )
    if isinstance(layer, nn.BatchNorm1d) and count == number:
        raise ConfigError(
            f"layer {path!r} has {count} channels in {number} groups, and a single number normalized is 0",
            mend="give fewer groups" if count > 1 else "take the layer out",
        )
    made = nn.GroupNorm(number, count, eps=layer.eps, affine=layer.affine)
    if layer.affine:
        made = made.to(layer.weight.device, layer.weight.dtype)
        made.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return made.train(layer.training)


def _groups(channels: int) -> int:
    fit = (g for g in range(_MOST_GROUPS, 1, -1) if channels % g == 0 and channels // g >= _LEAST_CHANNELS)
    return next(fit, 1)


def fit_batch_norm(
    model: nn.Module,
    data: Population | Mapping[str, Any] | str,
    *,
    inputs: Sequence[str] | None = None,
    rows: int = 4096,
    seed: int = 0,
) -> nn.Module:
    """A copy of the model whose BatchNorm layers hold the statistics of data and are in eval mode, so that they stay.

    The statistics are means over shuffled batches of training rows of many users, each of whose batches is
    normalized by its own; test rows and rows of weight 0 are not used. They belong to the model from then on:
    studies, resumed runs and bundles have the same. In a study they stay as they are while the parameters before
    them are trained; that is not what a plain loop does with BatchNorm, but it is the same on every device.

    Args:
        model: any; not changed.
        data: what ``Study`` takes; or rows, arrays by name.
        inputs: names of the arrays that ``forward`` takes, in order; by default all but ``labels`` and ``weight``.
        rows: how many are looked at, at most.
        seed: of the order of the rows.

    Raises:
        ConfigError: the model has no such layer, no shape yet, or does not take the rows.
        DataError: there are fewer than two rows with a positive weight.
    """
    made = _copied(model)
    chosen = _training_rows(data, rows)
    names = [n for n in chosen if n not in ("labels", "weight")] if inputs is None else list(inputs)
    missing = [name for name in names if name not in chosen]
    if missing:
        raise ConfigError(f"the rows have no {missing[0]!r}", mend=f"they have {sorted(chosen)}")
    count = len(chosen[names[0]]) if names else 0
    if count < 2:
        raise DataError(
            f"there are {count} rows with a positive weight to take statistics of", mend="give two or more"
        )
    order = permutation(seed, count)
    batches = [
        [torch.from_numpy(np.ascontiguousarray(chosen[name][part])) for name in names]
        for part in np.array_split(order, -(-count // _FIT_BATCH))
    ]
    modes = [(layer, layer.training) for layer in made.modules()]
    made.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            layers = {
                path: layer
                for path, layer in made.named_modules()
                if isinstance(layer, _NormBase) and layer.running_mean is not None
            }
            if not layers:
                raise ConfigError(
                    "the model has no normalization with running statistics", mend="use it as it is"
                )
            _take_statistics(made, list(layers.values()), batches)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the model fails on rows of {names}: {type(error).__name__}: {error}",
            mend="give inputs=, the names of the arrays that forward takes, in order",
        ) from error
    fitted = set(map(id, layers.values()))
    for layer, mode in modes:
        layer.training = mode and id(layer) not in fitted
    return made


def _take_statistics(
    model: nn.Module, layers: Sequence[_NormBase], batches: Sequence[Sequence[Tensor]]
) -> None:
    """Set the running statistics to those of all batches together; the layers are left in eval mode."""
    momenta = [layer.momentum for layer in layers]
    seen = [0] * len(layers)
    sums: list[Any] = [None] * len(layers)
    before = [copy.deepcopy(layer._buffers) for layer in layers]
    for layer in layers:
        # Means over the calls since the last reset; InstanceNorm cannot, and has those of the last call.
        layer.train().momentum = None if isinstance(layer, _BatchNorm) else 1.0
    for batch in batches:
        for layer in layers:
            layer.reset_running_stats()
        model(*batch)
        for i, layer in enumerate(layers):
            mean, var = (layer.running_mean.double(), layer.running_var.double())
            if _is_fresh(mean, var):
                continue  # the batch did not reach it
            new = torch.stack([mean, mean * mean, var]) * len(batch[0])
            sums[i] = new if sums[i] is None else sums[i] + new
            seen[i] += len(batch[0])
    for layer, momentum, old, total, weight in zip(layers, momenta, before, sums, seen, strict=True):
        layer.eval().momentum = momentum
        layer.reset_running_stats()
        if total is None:
            layer._buffers.update(old)
            continue
        mean, squares, var = total / weight
        layer.running_mean.copy_(mean)
        # The variance over all rows is that within batches and that of their means.
        between = (squares - mean * mean).clamp(min=0) if isinstance(layer, _BatchNorm) else 0.0
        layer.running_var.copy_(var + between)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(len(batches))


def _training_rows(data: Population | Mapping[str, Any] | str, most: int) -> Rows:
    """Training rows with a positive weight, at most so many, of users evenly taken from all."""
    if most < 2:
        raise ConfigError(f"rows is {most}", mend="give 2 or more")
    if isinstance(data, Mapping) and not any(isinstance(value, Mapping) for value in data.values()):
        return _some({name: np.asarray(value) for name, value in data.items()}, most)
    from pfl_mobile.data.populations import population

    users = population(data)
    who = np.unique(np.linspace(0, len(users) - 1, min(len(users), _FIT_USERS)).astype(int)).tolist()
    parts = [_some(users.train(index), -(-most // len(who))) for index in who]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _some(rows: Mapping[str, np.ndarray], most: int) -> Rows:
    """At most so many of the rows that count, evenly taken; floating-point numbers as float32."""
    count = len(next(iter(rows.values())))
    weight = rows.get("weight", np.ones(count, np.float32))
    index = np.flatnonzero((weight > 0).reshape(count, -1).any(axis=1))
    index = (
        index[np.unique(np.linspace(0, len(index) - 1, min(len(index), most)).astype(int))]
        if len(index)
        else index
    )
    return {n: v[index].astype(np.float32) if v.dtype.kind == "f" else v[index] for n, v in rows.items()}

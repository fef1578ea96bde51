"""A model that keeps something from one call to the next: refused by what it keeps, in which layer, at which line.

A program is a function: each call starts from the values that were exported. Buffers that forward updates (caches of
keys, running means), attributes (``self.h = h``) and normalization in training mode would stay as they are.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pfl_mobile.errors import ExportError
from pfl_mobile.modules.normalization import (
    Normalization,
    as_found,
    listed,
    look,
    rows_depend_on_each_other,
)
from pfl_mobile.programs.origin import Origin, is_tool, of_call

#: Elements of a tensor up to which its values are looked at after every line.
_SMALL = 1 << 16
_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}
_NORMS = (F.batch_norm, torch.batch_norm)
_NORM_MEND = (
    "leave .train() and training=True out of forward, so that the running statistics are used; fit them first where "
    "they are not those of your users' rows, fit_batch_norm(model, data), or train a normalization of single examples, "
    "replace_batch_norm(model): both are in pfl_mobile"
)
_STATE_MEND = (
    "make it an input and an output: an entry of the batch that the task names in inputs=, and a second output that "
    "CustomTask(loss, prediction=lambda out, batch: {'value': out[0], 'state': out[1]}) gives back, so that the app "
    "keeps it; or begin anew in each call, h = torch.zeros(len(x), ...). What only counts or averages for others is "
    "to be left out of forward, or put under if not torch.compiler.is_exporting():"
)


def check_stateless(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Refuse a model whose forward pass changes it in eval mode too: a program would leave that out.

    What is the same in PyTorch's eval mode, but is seldom meant, is warned of.

    Args:
        model: personalized.
        inputs: an example batch.

    Returns:
        Whether the same input gives the same output twice.

    Raises:
        ExportError: names layers, what they change and the line.
    """
    try:
        seen = look(model, inputs)
    except Exception:  # the trace says what is wrong with a model that does not run
        return True
    layers = dict(model.named_modules())
    if seen.changed:
        raise _refused(model, inputs, seen)
    if seen.by_batch and rows_depend_on_each_other(model, inputs):
        raise _of_batch(model, inputs, seen)
    if seen.unfitted:
        warnings.warn(
            f"{listed(layers, seen.unfitted, 'has', 'have')}"
            " running statistics of 0 and 1, which normalize nothing on a "
            "device: export the trained model, or use fit_batch_norm or replace_batch_norm of pfl_mobile",
            stacklevel=3,
        )
    return seen.steady


#: Lines on which Python draws numbers or reads a clock.
_CHANCE = re.compile(
    r"\brandom\b|\brng\b|\btime\.|\bperf_counter|\buuid|\bdatetime\b|\burandom\b|\bsecrets\b|\bshuffle\("
)


def refuse_chance(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Refuse a model whose output for one input differs from call to call, though it changes nothing of its own.

    Raises:
        ExportError: always; names the line where it is seen.
    """
    found: list[str] = []

    def watch(frame: FrameType, event: str, _value: Any) -> Callable[..., Any] | None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if is_tool(file):
            return None
        code = linecache.getline(file, line)
        if event == "line" and _CHANCE.search(code) and not found:
            place = Origin(None, "", file, line, " ".join(code.split())[:120])
            found.append(f" {place}")
        return watch

    _run_watched(model, inputs, watch)
    raise ExportError(
        "the model gives another output for the same input in every call, and a program would repeat the one that was "
        f"traced: forward draws from Python's or NumPy's random numbers, reads a clock, or what is outside the model"
        f"{found[0] if found else ''}",
        mend="make what changes an entry of the batch that the task names in inputs=, or leave it out of forward",
    )


def _name(path: str) -> str:
    return path.removeprefix("backbone").removeprefix(".")


def _refused(model: nn.Module, inputs: Sequence[Tensor], seen: Normalization) -> ExportError:
    layers, changed = dict(model.named_modules()), seen.changed
    norms = [
        path
        for path, names in changed.items()
        if isinstance(layers[path], _NormBase) or _STATISTICS.intersection(names) or path in seen.by_batch
    ]
    path = norms[0] if norms else next(iter(changed))
    layer, names = layers[path], changed[path]
    places = changes(model, inputs, path, names)
    more = f" (and {len(changed) - 1} other layers change something too)" if len(changed) > 1 else ""
    what = (
        f"layer {_name(path)!r} ({type(layer).__name__})"
        if _name(path)
        else f"the model ({type(layer).__name__})"
    )
    if norms:
        place = places.get("training") or next(iter(places.values()), Origin())
        at = f", at {place.place}: {place.code}" if place.file else ""
        return ExportError(
            f"{what} normalizes in training mode, with the statistics of the batch, and changes {', '.join(names)} in "
            f"its forward pass{at}; a program keeps nothing from one call to the next{more}",
            mend=_NORM_MEND,
        )
    name = next((name for name in names if name in places), names[0])
    place = places.get(name, Origin())
    at = f", at {place.place}: {place.code}" if place.file else ""
    kind = "parameter" if name in layer._parameters else "buffer" if name in layer._buffers else "attribute"
    others = f" (also {', '.join(n for n in names if n != name)})" if len(names) > 1 else ""
    return ExportError(
        f"{what} changes its {kind} {name!r} in forward{at}{others}; a program keeps nothing from one call to the "
        f"next{more}",
        mend=_STATE_MEND
        if kind != "parameter"
        else "compute a new tensor from the parameter, w = self.weight * scale, and leave the parameter as it is",
    )


def _of_batch(model: nn.Module, inputs: Sequence[Tensor], seen: Normalization) -> ExportError:
    layers = dict(model.named_modules())

    def normalized(func: Any, args: Sequence[Any], _result: Any) -> bool:
        return func in _NORMS and (args[1] is None or any(a is True for a in args[3:6]))

    place = of_call(model, lambda: model(*inputs), normalized)
    at = f", at {place.place}: {place.code}" if place.file else ""
    return ExportError(
        f"{listed(layers, seen.by_batch, 'normalizes', 'normalize')} with the statistics of each batch, so that the "
        f"rows that fill up a batch on a device change the results of the others{at}",
        mend="train a normalization of single examples, model = replace_batch_norm(model), or give the layer running "
        "statistics (track_running_stats=True) and fit them, fit_batch_norm(model, data): both are in pfl_mobile",
    )


# -- which line changes it


def _print(value: Any) -> Any:
    """Differs after a value was changed or replaced."""
    if isinstance(value, Tensor):
        version = 0 if value.is_inference() else value._version
        # what goes through .data, and normalization, leaves the version as it is
        total = float(value.detach().double().sum()) if 0 < value.numel() <= _SMALL else 0.0
        return id(value), version, value.data_ptr(), tuple(value.shape), repr(total)
    if isinstance(value, dict):
        return id(value), tuple((id(v), _print(v) if isinstance(v, Tensor) else 0) for v in value.values())
    if isinstance(value, (list, tuple)) or hasattr(value, "__len__"):
        try:
            return id(value), tuple((id(v), _print(v) if isinstance(v, Tensor) else 0) for v in value)
        except Exception:  # not every thing with a length can be gone through
            return id(value)
    return value if isinstance(value, int | float | bool | str) else id(value)


def changes(model: nn.Module, inputs: Sequence[Tensor], path: str, names: Sequence[str]) -> dict[str, Origin]:
    """Lines at which a forward pass first changes something of a layer; of ``training``, the mode, too.

    Lines are watched one by one: an attribute, a list or a buffer can be changed by anything.

    Args:
        model: run once; nothing of it stays changed.
        inputs: of ``forward``.
        path: of the layer.
        names: of its buffers, parameters and attributes.
    """
    layer = model.get_submodule(path)
    kind, found = type(layer).__name__, dict[str, Origin]()
    lines: dict[FrameType, int] = {}
    tools: dict[str, bool] = {}
    before: dict[str, Any] = {}

    def prints() -> dict[str, Any]:
        return {name: _print(getattr(layer, name, None)) for name in (*names, "training")}

    def watch(frame: FrameType, event: str, _value: Any) -> Callable[..., Any] | None:
        if event == "call":
            file = frame.f_code.co_filename
            if file not in tools:
                tools[file] = is_tool(file)
            if tools[file]:
                return None
            lines[frame] = frame.f_lineno
        now, where = prints(), frame
        while event == "call" and where.f_back is not None and (where is frame or where not in lines):
            where = where.f_back  # the line that calls has done what there is to see
        for name in now.keys() - found.keys():
            if now[name] != before[name]:
                file, line = where.f_code.co_filename, lines.get(where, where.f_lineno)
                code = " ".join(linecache.getline(file, line).split())[:120]
                found[name] = Origin(_name(path), kind, file, line, code)
        before.update(now)
        if event == "line":
            lines[frame] = frame.f_lineno
        elif event == "return":
            lines.pop(frame, None)
        return watch

    _run_watched(model, inputs, watch, lambda: before.update(prints()))
    return found


def _run_watched(
    model: nn.Module,
    inputs: Sequence[Tensor],
    watch: Callable[..., Any],
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Run the model with a function of :func:`sys.settrace`; nothing of the model stays changed."""
    with as_found(model), torch.no_grad(), contextlib.suppress(Exception):  # it ran before
        model.eval()
        begin()
        outer = sys.gettrace()
        sys.settrace(watch)
        try:
            model(*inputs)
        finally:
            sys.settrace(outer)

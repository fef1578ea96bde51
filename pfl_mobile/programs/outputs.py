"""What a model gives: one tensor, with a row for each row of the batch, of any number of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfl_mobile.errors import ConfigError, ExportError
from pfl_mobile.modules.model import logits_of
from pfl_mobile.programs.origin import Origin, of_call

#: Calls of ``squeeze``; without an axis it removes every axis of size 1.
_SQUEEZES = (torch.squeeze, Tensor.squeeze, Tensor.squeeze_)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "None" if value is None else type(value).__name__


def _parts(output: Any) -> list[tuple[str, Any]]:
    """Parts of an output that is no tensor, with how Python reaches them."""
    if isinstance(output, Mapping):
        # the outputs of transformers are dicts whose entries are attributes too
        dotted = type(output).__module__.startswith("transformers.")
        return [(f".{k}" if dotted else f"[{k!r}]", v) for k, v in output.items()]
    if hasattr(output, "_fields"):
        return [(f".{name}", getattr(output, name)) for name in output._fields]
    if is_dataclass(output):
        return [(f".{f.name}", getattr(output, f.name)) for f in fields(output)]
    if isinstance(output, Sequence) and not isinstance(output, str):
        return [(f"[{i}]", v) for i, v in enumerate(output)]
    return []


def one_tensor(output: Any, model: nn.Module) -> Tensor:
    """The output, which has to be one tensor; of transformers' outputs, which have names, ``logits``.

    Raises:
        ConfigError: it is something else; names its parts and the wrapper that gives one of them.
    """
    output = logits_of(output)
    if isinstance(output, Tensor):
        return output
    backbone = type(getattr(model, "backbone", model)).__name__
    parts = _parts(output)
    if not parts:
        raise ConfigError(
            f"forward of {backbone} returns {_described(output)}, not a tensor",
            mend="return the logits, or whatever the task's loss is computed from",
        )
    shown = ", ".join(f"{how} {_described(value)}" for how, value in parts[:6])
    tensors = [how for how, value in parts if isinstance(value, Tensor)]
    best = next((how for how in tensors if "logits" in how), tensors[0] if tensors else parts[0][0])
    raise ConfigError(
        f"forward of {backbone} returns a {type(output).__name__} ({shown}), and a task takes one tensor",
        mend="personalize a module around it that returns the one that the task is about: def forward(self, *inputs): "
        f"return self.net(*inputs){best}",
    )


def checked_output(output: Any, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """One tensor of real numbers with a row for each weight of the batch, where that has weights.

    Raises:
        ConfigError: it is something else.
    """
    found = one_tensor(output, model)
    if found.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"forward of {type(getattr(model, 'backbone', model)).__name__} returns {_described(found)}, and a task "
            "takes float32",
            mend="return the scores from which classes are chosen, before any argmax, and without .half() or complex "
            "numbers: y.float(), y.abs(), torch.view_as_real(y)",
        )
    rows = batch["weight"].shape[:1] if "weight" in batch else found.shape[:1]
    if found.dim() > 1 and found.shape[:1] != rows:
        raise ConfigError(
            f"the model's output is {list(found.shape)} for a batch of {rows[0]} rows",
            mend="keep the rows as the first axis: batch_first=True for recurrent layers and attention, and "
            "x.flatten(1) in place of x.flatten()",
        )
    return found


@contextlib.contextmanager
def shapes_noted(model: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the outputs of a model's calls, in their order."""
    shapes: list[tuple[int, ...]] = []

    def note(_model: nn.Module, _inputs: Any, output: Any) -> None:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())

    handle = model.register_forward_hook(note)
    try:
        yield shapes
    finally:
        handle.remove()


def check_rows(
    many: tuple[int, tuple[int, ...]],
    few: tuple[int, tuple[int, ...]],
    model: nn.Module,
    run: Callable[[], Any],
) -> None:
    """The model gives as many rows as it takes, with the batch of ``predict`` too.

    Args:
        many: rows of the example batch, and shape of the output for it.
        few: the same for ``predict``.
        model: whose layers are named.
        run: computes ``predict`` again.

    Raises:
        ExportError: it gives the example's number of rows, or loses an axis; names layer and line.
    """
    (rows, shape), (other, less) = many, few
    if rows == other or not shape or shape[0] != rows:
        return
    if len(less) != len(shape):
        place = squeezed(model, run)
        raise ExportError(
            f"the model's output is {list(shape)} for the example's {rows} rows and {list(less)} for the {other} that "
            f"predict takes{_of_squeeze(place)}",
            mend=SQUEEZE_MEND,
        )
    if less[0] != other:

        def widened(_func: Any, args: Sequence[Any], result: Any) -> bool:
            sizes = [
                a.shape[0] for a in args if isinstance(a, Tensor) and a.dim() == getattr(result, "ndim", 0)
            ]
            found = isinstance(result, Tensor) and result.dim() > 0 and result.shape[0] == less[0]
            return found and other in sizes and set(sizes) != {less[0]}

        place = of_call(model, run, widened)
        at = f": the number of rows is fixed {place}" if place.known else ""
        raise ExportError(
            f"the model gives {less[0]} rows for a batch of {other}, which is what predict takes{at}",
            mend="take the number of rows from the input: torch.zeros(len(x), ...), x.new_zeros(x.shape[0], ...)",
        )


#: What works in place of a ``squeeze`` that finds a batch of one.
SQUEEZE_MEND = (
    "name the axis that is to go: squeeze(-1) in place of squeeze(), which also removes that of a single row"
)


def squeezed(model: nn.Module, run: Callable[[], Any]) -> Origin:
    """Where a ``squeeze`` without an axis takes the axis of the rows away."""

    def taken(func: Any, args: Sequence[Any], result: Any) -> bool:
        given = [a for a in args if isinstance(a, Tensor)]
        return (
            func in _SQUEEZES
            and len(args) == 1
            and bool(given)
            and given[0].shape[:1] == (1,) != result.shape[:1]
        )

    return of_call(model, run, taken)


def _of_squeeze(place: Origin) -> str:
    return f": squeeze() takes the axis of a single row away {place}" if place.known else ""

"""A place in the user's model: which layer, and which line of whose file."""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn
from typing_extensions import override

_PACKAGE = Path(__file__).resolve().parents[1]
#: Folders whose lines say nothing of the user's model: the tools that it is made with and exported by.
_TOOLS = tuple(
    f"{folder}{os.sep}"
    for folder in (
        _PACKAGE,
        Path(torch.__file__).resolve().parent,
        *(
            Path(sysconfig.get_paths()["purelib"], name)
            for name in ("numpy", "einops", "functorch", "jaxtyping")
        ),
        *(
            Path(sysconfig.get_paths()["purelib"], name)
            for name in ("beartype", "typeguard", "pfl_exporters")
        ),
    )
)
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_INSTALLED = tuple(sysconfig.get_paths()[key] + os.sep for key in ("purelib", "platlib"))
_LONGEST_LINE = 120


@dataclass(frozen=True)
class Origin:
    """Where in the user's model something comes from; what is not known is empty.

    Attributes:
        layer: qualified name of the innermost layer in the backbone, ``""`` for the backbone itself; of a module of
            pfl-mobile's own, its name. None outside of the model: in the loss, in the predictions.
        kind: class of the layer.
        file: of the innermost line that is neither PyTorch's nor pfl-mobile's: the user's own, or a model library's.
        line: its number, from 1.
        code: its text.
    """

    layer: str | None = None
    kind: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return self.layer is not None or bool(self.file)

    @property
    def place(self) -> str:
        """``my_model.py:31``, from the current folder or from where packages are installed; empty without a file."""
        return f"{_short(self.file)}:{self.line}" if self.file else ""

    @override
    def __str__(self) -> str:
        """For the end of a sentence: ``in layer 'net.encoder.0' (my_model.py:31: y = x.view(4, -1))``."""
        line = f"{self.place}: {self.code}" if self.code else self.place
        if self.layer is None:
            return f"at {line}" if line else "at a place that is not known"
        what = f"layer {self.layer!r}" if self.layer else "the model"
        return f"in {what} ({line or self.kind})"


def _short(file: str) -> str:
    for base in (*_INSTALLED, os.getcwd() + os.sep):
        if file.startswith(base):
            return file[len(base) :]
    return file


def is_tool(file: str) -> bool:
    """Whether a file is one of PyTorch's, pfl-mobile's or Python's own, or no file."""
    # a notebook's cells are no files, and known to Python; graphs of PyTorch have code like that too
    if file.startswith("<") and (file not in linecache.cache or file.startswith("<eval_with_key>")):
        return True
    resolved = file if file.startswith("<") else os.path.realpath(file)
    if resolved.startswith(_TOOLS) or f"{os.sep}pfl_exporters{os.sep}" in resolved:
        return True
    return resolved.startswith(_STANDARD) and not resolved.startswith(_INSTALLED)


class Layers:
    """Names of the layers of a model, by identity."""

    def __init__(self, model: nn.Module) -> None:
        self.names: dict[int, tuple[str, str]] = {}
        for path, layer in model.named_modules():
            if path == "" and "backbone" in model._modules:
                continue  # the personalized model around the user's
            name = "" if path == "backbone" else path.removeprefix("backbone.").removeprefix("extras.")
            self.names[id(layer)] = (name, type(layer).__name__)
        self._tools: dict[str, bool] = {}

    def of_frames(self, frames: Iterable[tuple[FrameType, int]]) -> Origin:
        """Origin of frames with their lines, the innermost first."""
        layer: tuple[str, str] | None = None
        found: tuple[str, int] | None = None
        for frame, line in frames:
            code = frame.f_code
            if layer is None and code.co_argcount:
                layer = self.names.get(id(frame.f_locals.get(code.co_varnames[0])))
            if found is None and not self._is_tool(code.co_filename):
                found = (code.co_filename, line)
            if layer is not None and found is not None:
                break
        name, kind = layer if layer is not None else (None, "")
        file, line = found or ("", 0)
        text = " ".join(linecache.getline(file, line).split()) if file else ""
        if len(text) > _LONGEST_LINE:
            text = f"{text[:_LONGEST_LINE]} ..."
        return Origin(name, kind, file, line, text)

    def _is_tool(self, file: str) -> bool:
        if file not in self._tools:
            self._tools[file] = is_tool(file)
        return self._tools[file]


def _of_traceback(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames[::-1]


def of_exception(error: BaseException, model: nn.Module) -> Origin:
    """Where in the model an exception was raised, by its traceback, or else by that of its cause."""
    layers, seen = Layers(model), set()
    best = Origin()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        found = layers.of_frames(_of_traceback(cause.__traceback__))
        if found.layer is not None:
            return found
        best = best if best.known else found
        cause = cause.__cause__ or cause.__context__
    return best

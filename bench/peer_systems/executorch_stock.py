"""ExecuTorch's own training: ``_export_forward_backward`` as it comes, and ``executorch.extension.training``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peer_systems import given
from peer_systems.models import Workload
from peer_systems.running import Running

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGES = ("executorch",)
#: In the run's folder.
_FILE = "stock.pte"


def training_program(net: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """The ``.pte`` of a module that gives its loss and whose trained parameters require gradients.

    Attention is exported in its MATH form: the fused one has a backward that ExecuTorch cannot lower.
    """
    import torch
    from executorch.exir import to_edge
    from torch.export.experimental import _export_forward_backward
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        exported = torch.export.export(net, inputs, strict=False)
        program: bytes = to_edge(_export_forward_backward(exported)).to_executorch().buffer
    return program


def runtime() -> None:
    """The runtime, and the tensors that its Python side takes."""
    import executorch.extension.training
    import torch
    from executorch.extension.pybindings import portable_lib

    assert executorch.extension.training
    torch.set_num_threads(1)
    portable_lib._unsafe_reset_threadpool(1)


def prepare(workload: Workload, folder: Path) -> None:
    """Write the program; its loss is the sum over all labels."""
    import torch

    from peer_systems import torch_models

    net = torch_models.from_file(workload, folder)

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = net

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return torch_models.loss(self.logits, x, labels)

    (folder / _FILE).write_bytes(training_program(WithLoss(), _inputs(workload, folder)))


def _inputs(workload: Workload, folder: Path) -> tuple[Any, ...]:
    import torch

    batch = given.batch(folder)
    return tuple(torch.from_numpy(batch[name]) for name in (workload.input, "labels"))


def files(_: Workload, folder: Path) -> list[Path]:
    """One file of program and values."""
    return [folder / _FILE]


def load(workload: Workload, folder: Path) -> Running:
    """The program."""
    from executorch.extension.training import _load_for_executorch_for_training

    module = _load_for_executorch_for_training(str(folder / _FILE))
    inputs = _inputs(workload, folder)

    def step() -> object:
        return module.forward_backward("forward", inputs)

    def gradients() -> dict[str, np.ndarray]:
        step()
        found = module.named_gradients()
        return {name: found[f"logits.net.{name}"].numpy() for name in workload.trained}

    return Running(step, gradients)

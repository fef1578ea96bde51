"""PyTorch eager, float32, the values mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peer_systems import given
from peer_systems.models import WORKLOADS, Workload
from peer_systems.running import Running

PACKAGES = ("torch",)


def runtime() -> None:
    """PyTorch, and what the models are made of."""
    import torch

    from peer_systems import torch_models

    # everything that models are made of is imported with the first one, of whatever size
    with torch.device("meta"):
        for name, sizes in ((w.name, w.sizes) for w in WORKLOADS.values()):
            torch_models.BUILT[name](**sizes)
    torch.set_num_threads(1)


def files(_: Workload, folder: Path) -> list[Path]:
    """The values are all there is; the program is Python."""
    return [given.values_file(folder)]


def load(workload: Workload, folder: Path) -> Running:
    """The plain module."""
    import torch

    from peer_systems import torch_models

    net = torch_models.from_file(workload, folder)
    batch = {name: torch.from_numpy(value) for name, value in given.batch(folder).items()}
    parameters = dict(net.net.named_parameters())
    trained = [parameters[name] for name in workload.trained]

    def step() -> tuple[torch.Tensor, ...]:
        loss = torch_models.loss(net, batch[workload.input], batch["labels"])
        return torch.autograd.grad(loss, trained)

    def gradients() -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in zip(workload.trained, step(), strict=True)}

    return Running(step, gradients)

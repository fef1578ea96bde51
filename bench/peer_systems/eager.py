"""PyTorch eager, float32, the values mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peer_systems import given
from peer_systems.models import Workload
from peer_systems.running import Running

PACKAGES = ("torch",)


def runtime() -> None:
    """PyTorch, and what the models are made of."""
    import torch
    import transformers.models.llama.modeling_llama

    from peer_systems import torch_models  # noqa: F401

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

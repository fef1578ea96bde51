"""The models as PyTorch modules that anyone would write, which is also where the expected gradients come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peer_systems import given
from peer_systems.models import Workload

if TYPE_CHECKING:
    from llama import Size


def _with_lora(net: nn.Module, names: tuple[str, ...], rank: int) -> None:
    """Put LoRA on all linear layers of these names."""
    from sim.workloads import LoRALinear

    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if name in names:
                setattr(module, name, LoRALinear(child, rank))


def _mlp(inputs: int, hidden: int) -> nn.Module:
    from sim.workloads import Mlp

    return Mlp(inputs, hidden)


def _cnn() -> nn.Module:
    from sim.workloads import Cnn

    return Cnn()


def _decoder(**sizes: int) -> nn.Module:
    from gpt import Gpt

    return Gpt(**sizes)


def _smollm2(size: Size) -> nn.Module:
    import llama
    from transformers import LlamaForCausalLM

    net = LlamaForCausalLM(llama.config(size))
    with torch.device("cpu"):  # a buffer that no file holds
        net.model.rotary_emb = type(net.model.rotary_emb)(net.config)
    return net


#: Layers with LoRA, by the last part of their name, and its rank.
LORA = {"decoder": (("q", "v"), 4), "smollm2": (("q_proj", "v_proj"), 8)}
#: Makes the module of a workload, by its name.
BUILT: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "decoder": _decoder,
    "smollm2": _smollm2,
}


def build(workload: Workload, values: dict[str, Tensor]) -> nn.Module:
    """The module in eval mode with these tensors as its parameters, not copied; what is trained requires gradients.

    Args:
        workload: whose module.
        values: by name; without those of LoRA, the module has none.

    Raises:
        RuntimeError: the values have other names or shapes than the module's parameters.
    """
    with torch.device("meta"):
        net = BUILT[workload.name](**workload.sizes)
        if any(name.endswith("lora_A") for name in values):
            _with_lora(net, *LORA[workload.name])
    wanted = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    if wanted != {name: tuple(value.shape) for name, value in values.items()}:
        raise RuntimeError(
            f"{workload.name}: other parameters than the module's: {sorted(set(wanted) ^ set(values))}"
        )
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        setattr(net.get_submodule(path), leaf, nn.Parameter(value, requires_grad=name in workload.trained))
    if hasattr(net, "tie_weights"):
        net.tie_weights()
    return net.eval()


class Logits(nn.Module):
    """The model's input alone to its logits, [rows, classes] with one row for each label."""

    def __init__(self, net: nn.Module) -> None:
        """Of a module that gives logits, or transformers' output with some."""
        super().__init__()
        self.net = net
        self.more = {"use_cache": False} if hasattr(net, "config") else {}

    def forward(self, x: Tensor) -> Tensor:
        """X as the batch has it."""
        out = self.net(x, **self.more)
        logits: Tensor = out.logits if self.more else out
        return logits.flatten(0, -2)


def from_file(workload: Workload, folder: Path) -> Logits:
    """The module with the given values; they stay in the mapped file."""
    from safetensors.torch import load_file

    return Logits(build(workload, load_file(given.values_file(folder)))).eval()


def loss(net: Logits, x: Tensor, labels: Tensor) -> Tensor:
    """Sum over all labels."""
    return F.cross_entropy(net(x), labels.flatten(), reduction="sum")


def gradients(workload: Workload, folder: Path, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """What PyTorch gives for the batch in this precision, by name of the trained parameter."""
    net = from_file(workload, folder).to(dtype)
    batch = {name: torch.from_numpy(value) for name, value in given.batch(folder).items()}
    x = batch[workload.input]
    total = loss(net, x.to(dtype) if x.is_floating_point() else x, batch["labels"])
    parameters = dict(net.net.named_parameters())
    found = torch.autograd.grad(total, [parameters[name] for name in workload.trained])
    return {name: value.numpy() for name, value in zip(workload.trained, found, strict=True)}

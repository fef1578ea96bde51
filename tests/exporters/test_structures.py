"""Structures that people's models have: packed attentions, shared and tied layers, wrappers, odd storage.

Each is traced and compared with PyTorch; with PFL_ALL_ENGINES=1 on every engine too, else some on ONNX Runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_exporters.export import frozen_bytes
from pfl_exporters.verify import cases, check_engine, check_traced
from pfl_mobile import Head, LoRA
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.programs.tasks import ClassificationTask
from pfl_mobile.programs.trace import trace_programs
from tests.exporters.conftest import opened

_ALL = bool(os.environ.get("PFL_ALL_ENGINES"))
#: What is run on ONNX Runtime in every run of the tests.
_SOME = {"DoRA", "LoRA on one attention"}


class Encoder(nn.Module):  # type: ignore[misc]
    """Tokens with padding 0, a stock encoder and an attention that pools."""

    def __init__(self, **attention: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **attention)
        self.head = nn.Linear(8, 3)
        self.width = attention.get("kdim", 8)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.encoder(self.embed(tokens), src_key_padding_mask=padding)
        keys = x[..., : self.width]
        x = x + self.attention(x, keys, keys, key_padding_mask=padding)[0]
        return self.head(x.mean(1))


class One(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).transpose(0, 1)
        return self.head(self.attention(x, x, x, (tokens == 0).float() * -1e9)[0].mean(0))


class Translator(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.body = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.body(x, x.flip(1), tgt_mask=causal)[:, -1])


class Shared(nn.Module):  # type: ignore[misc]
    """One layer in two places, and names as people give them."""

    def __init__(self, half: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8).to(half)
        self.again = nn.Linear(8, 8)
        self.layers = nn.ModuleList([self.again, nn.Linear(8, 8), self.again])
        self.named = nn.ModuleDict({"a-b c": nn.Linear(8, 8), "ü": nn.Linear(8, 3)})

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).float().mean(1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.named["ü"](self.named["a-b c"](x))


class Tied(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens).mean(1)))


def strided() -> nn.Module:
    net = Shared()
    net.again.weight = nn.Parameter(net.again.weight.detach().t())
    net.layers[1].weight = nn.Parameter(torch.randn(8, 16)[:, ::2])
    net.layers[1].bias = nn.Parameter(torch.zeros(1).expand(8))
    return net


class Images(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.point, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.point(self.conv(x))).mean((2, 3)))


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SHARED = ["layers.2", "named.*"]
CASES: dict[str, tuple[Callable[[], nn.Module], list[ModuleConfig]]] = {
    "frozen attentions": (Encoder, [LoRA(["embed", "encoder.layers.*.linear[12]"], rank=2), Head("head")]),
    "LoRA on packed attentions": (Encoder, [LoRA(["*self_attn", "attention"], rank=2, alpha=3)]),
    "weights asked for, trained": (Encoder, [Head(["attention", "encoder.layers.0.self_attn"])]),
    "keys of another width": (lambda: Encoder(kdim=6, vdim=6), [Head("attention"), LoRA("head", rank=2)]),
    "biases of keys": (lambda: Encoder(add_bias_kv=True), [LoRA("attention", rank=2), Head("head")]),
    "encoder and decoder": (Translator, [LoRA(["*.self_attn", "*.multihead_attn"], rank=2)]),
    "LoRA on one attention": (One, [LoRA("attention", rank=2, alpha=3)]),
    "DoRA": (Shared, [LoRA(["embed", "named.*"], rank=2, dora=True)]),
    "DoRA of a convolution": (Images, [LoRA(["conv", "head"], rank=2, dora=True)]),
    "shared layer": (Shared, [LoRA(SHARED, rank=2)]),
    "shared layer as a whole": (Shared, [Head(SHARED)]),
    "shared layer inside of a whole": (Shared, [Head("layers")]),
    "everything": (Shared, [Head("*")]),
    "DataParallel": (lambda: nn.DataParallel(Shared()), [LoRA(["module.again", "named.*"], rank=2)]),
    "tied, LoRA": (Tied, [LoRA(["embed", "out"], rank=2)]),
    "tied, one whole": (Tied, [Head("out")]),
    "tied, both whole": (Tied, [Head(["embed", "out"])]),
    "tied, everything": (Tied, [Head("*")]),
    "frozen half": (lambda: Shared(torch.float16), [LoRA("again", rank=2)]),
    "strides": (strided, [LoRA("again", rank=2), Head("layers.1")]),
    "channels last": (
        lambda: Images().to(memory_format=torch.channels_last),
        [LoRA("conv", rank=2), Head("point")],
    ),
}


def parts(name: str, size: int = 4) -> tuple[PersonalizedModel, ClassificationTask, dict[str, Tensor]]:
    make, modules = CASES[name]
    model = personalize(make().eval(), modules)
    tokens = torch.randint(1, 20, (size, 5), generator=torch.Generator().manual_seed(0))
    tokens[0, 3:] = 0
    x = IMAGES if CASES[name][0] is Images else tokens
    if name == "channels last":
        x = IMAGES.to(memory_format=torch.channels_last)
    batch = {"x": x, "labels": torch.arange(size) % 3, "weight": torch.ones(size)}
    return model, ClassificationTask(int(model(x).shape[-1]), inputs=("x",)), batch


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_pytorch(name: str) -> None:
    model, task, batch = parts(name)
    before, digest = model.values(), model.backbone_digest()
    programs = trace_programs(model, task, batch, batch)
    reference = cases(model, task, batch, batch, rounds=2)
    assert check_traced(programs, reference)["grad_max_rel_err"] < 1e-4
    assert frozen_bytes(programs) > 0
    assert model.backbone_digest() == digest
    assert all(torch.equal(value, before[n]) for n, value in model.values().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES if _ALL else sorted(_SOME))
def test_engines_agree(name: str, tmp_path: Path) -> None:
    model, task, batch = parts(name)
    programs = trace_programs(model, task, batch, batch)
    reference = cases(model, task, batch, batch, rounds=2)
    for target in ["onnx", "android"] if _ALL else ["onnx"]:
        with opened(target, programs, tmp_path) as session:
            assert check_engine(session, reference)["grad_max_rel_err"] < 1e-4


def test_a_batch_of_one() -> None:
    model, task, batch = parts("LoRA on one attention", 1)
    programs = trace_programs(model, task, batch, batch)
    assert check_traced(programs, cases(model, task, batch, batch))["grad_max_rel_err"] < 1e-4

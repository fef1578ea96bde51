"""A deployment for every kind of backbone that must export."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pfl_mobile import (
    Adapter,
    BackboneMixture,
    Experts,
    Gate,
    Head,
    LoRA,
    NgramMemory,
    SoftPrompt,
    VocabularySlots,
)
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import (
    ClassificationTask,
    CustomTask,
    RegressionTask,
    Task,
    TokenTask,
    tilted_task,
)
from pfl_mobile.text import TextEncoder, WordTokenizer
from tests.backbones import BACKBONES, MLP

PLAN = Plan(phases=(TrainPhase(epochs=2, optimizer=Sgd(lr=0.1)),))


def tokens(name: str, *modules: ModuleConfig) -> Deployment:
    """A token model with labels at every position."""
    backbone, (x,) = BACKBONES[name]()
    words = int(backbone(x).shape[-1])
    labels = x.roll(-1, 1)
    batch = {"tokens": x, "labels": labels, "weight": torch.ones(x.shape)}
    total = words + sum(m.count for m in modules if isinstance(m, VocabularySlots))
    short = {"tokens": x[:1], "position": torch.tensor([3])}
    return Deployment(
        name, personalize(backbone, modules), TokenTask(total), batch, PLAN, predict_batch=short
    )


def text(name: str, *modules: ModuleConfig) -> Deployment:
    """A token model with its tokenizer, as vocabulary slots need."""
    backbone, (x,) = BACKBONES[name]()
    words = int(backbone(x).shape[-1])
    count = sum(m.count for m in modules if isinstance(m, VocabularySlots))
    tokenizer = WordTokenizer.train(
        [" ".join(f"{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(99))], words
    )
    encoder = TextEncoder(tokenizer, x.shape[1], words, count)
    model = personalize(backbone, modules)
    return Deployment(name, model, TokenTask(words + count), plan=PLAN, **text_parts(encoder, len(x)))


def classes(name: str, *modules: ModuleConfig) -> Deployment:
    """A classifier."""
    backbone, (x,) = BACKBONES[name]()
    count = int(backbone(x).shape[-1])
    batch = {"x": x, "labels": torch.arange(len(x)) % count, "weight": torch.ones(len(x))}
    return Deployment(name, personalize(backbone, modules), ClassificationTask(count), batch, PLAN)


class StockEncoder(nn.Module):
    """PyTorch's own encoder layers with max pooling over positions; features [B, T, 8] to 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).amax(1))


def stock_encoder() -> Deployment:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    model = personalize(StockEncoder().eval(), [LoRA(["layers.*.linear[12]", "head"], rank=2)])
    batch = {"x": x, "labels": torch.tensor([0, 1, 2, 0]), "weight": torch.ones(4)}
    return Deployment("stock_encoder", model, ClassificationTask(3), batch, PLAN)


def with_task(task: Task, labels: Tensor) -> Deployment:
    """An MLP with another loss."""
    torch.manual_seed(0)
    model = personalize(MLP().eval(), [LoRA("hidden.[02]", rank=2)])
    batch = {"x": torch.randn(4, 6), "labels": labels, "weight": torch.ones(4)}
    return Deployment("mlp", model, task, batch, PLAN)


def pinball(output: Tensor, batch: object) -> Tensor:
    """Quantile loss for the 0.9 quantile, a user's own loss."""
    error = batch["labels"] - output[:, 0]  # type: ignore[index]
    return torch.maximum(0.9 * error, -0.1 * error)


DEPLOYMENTS: dict[str, Callable[[], Deployment]] = {
    "mlp": lambda: classes("mlp", LoRA("hidden.[02]", rank=2), Head("head")),
    "cnn with frozen batch norm": lambda: classes(
        "cnn", LoRA(["features.0", "features.3", "features.6"], rank=8), Gate("features.6")
    ),
    "1-d cnn": lambda: classes("sensor", LoRA(["first", "second", "head"], rank=2)),
    "gru": lambda: tokens("gru", LoRA(["proj", "embed"], rank=2)),
    "lstm": lambda: tokens("lstm", LoRA("proj", rank=2), Head("head", only="bias")),
    "encoder": lambda: encoder(),
    "stock encoder": stock_encoder,
    "decoder with sdpa": lambda: tokens(
        "decoder", LoRA("*.attn.[qv]", rank=2), Adapter("blocks.*.down", size=3)
    ),
    "decoder with prompt": lambda: tokens("tied_decoder", SoftPrompt("embed", length=3)),
    "rmsnorm, rope, swiglu, gqa": lambda: tokens("modern_decoder", LoRA(["*.attn.[qv]", "*.up"], rank=2)),
    "tied, slots and memory": lambda: text(
        "tied_decoder",
        LoRA("*.attn.[qv]", rank=2),
        VocabularySlots(embedding="embed", output="head", count=3),
        NgramMemory(capacity=16, order=3),
    ),
    "mixture with the backbone, slots and memory": lambda: text(
        "decoder",
        LoRA("*.attn.[qv]", rank=2),
        VocabularySlots(embedding="embed", output="head", count=3),
        BackboneMixture(words=31),
        NgramMemory(capacity=16, order=3, discount=0.75),
    ),
    "mixture of experts": lambda: tokens("tied_decoder", Experts("*.attn.[qv]", count=3, rank=2, top_k=2)),
    "regression": lambda: with_task(RegressionTask(), torch.randn(4, 4)),
    "tilted examples": lambda: with_task(tilted_task(ClassificationTask(4), 2.0), torch.tensor([0, 1, 2, 3])),
    "own loss": lambda: with_task(CustomTask(loss=pinball), torch.randn(4)),
}


def encoder() -> Deployment:
    """A token classifier: one label a sequence."""
    backbone, (x,) = BACKBONES["encoder"]()
    batch = {"x": x, "labels": torch.arange(len(x)) % 4, "weight": torch.ones(len(x))}
    model = personalize(backbone, [LoRA("*.attn.[qv]", rank=2)])
    return Deployment("encoder", model, ClassificationTask(4), batch, PLAN)

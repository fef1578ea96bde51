"""Deployments that are exported in seconds: a decoder over the words of made-up users, and a classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pfl_mobile import LoRA, NgramMemory, VocabularySlots
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import AdamW, Sgd
from pfl_mobile.plan.phases import AssignSlotsPhase, MemorizePhase, TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import ClassificationTask, TokenTask
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from tests.backbones import MLP, Decoder, ResidualMLP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: What each user says over and over; ``zorp`` and ``blick`` are in nobody else's vocabulary.
USERS = {
    "ann": ["see you at the zorp tonight", "the zorp is late again", "ok see you there"],
    "bob": ["did you feed the cat", "the cat is fine", "you feed blick and the cat"],
    "cleo": ["running late again sorry", "see you tonight ok", "sorry the bus is late"],
}
LENGTH, BATCH, SLOTS = 8, 4, 3


def texts(user: str, count: int = 30) -> list[str]:
    """Messages of one user, oldest first."""
    return [USERS[user][i % 3] + (" now" if i % 4 == 0 else "") for i in range(count)]


def tokenizer() -> WordTokenizer:
    """The words of all users but the ones that are only theirs."""
    known = [t.replace("zorp", "bus").replace("blick", "cat") for u in USERS for t in texts(u)]
    return WordTokenizer.train(known, 40)


def deployment(
    report: Callable[[str], None] = lambda _: None, roles: Mapping[str, str] | None = None
) -> Deployment:
    """LoRA, vocabulary slots and a memory in an untrained decoder."""
    report("build the tiny model")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    words = tokenizer()
    encoder = TextEncoder(words, LENGTH, words.size, SLOTS)
    rows = encoder.encode(texts("cleo")[:BATCH])
    batch = {k: torch.from_numpy(np.asarray(v[:BATCH])) for k, v in rows.items()}
    modules = [
        LoRA("*.attn.[qv]", rank=2),
        VocabularySlots(embedding="embed", output="head", count=SLOTS),
        NgramMemory(capacity=32, order=3),
    ]
    plan = Plan(
        phases=(
            AssignSlotsPhase(),
            MemorizePhase(),
            TrainPhase(group=("*",), epochs=3, optimizer=AdamW(lr=0.02), clip=1.0),
        ),
        guard=Guard(metric="loss", min_examples=2),
    )
    return Deployment(
        name="tiny",
        model=personalize(
            Decoder(vocabulary=words.size).eval(), modules, roles=roles, example=(batch["tokens"],)
        ),
        task=TokenTask(words.size + SLOTS),
        batch=batch,
        predict_batch={"tokens": batch["tokens"][:1], "position": torch.tensor([3])},
        plan=plan,
        tokenizer=words.to_json().encode(),
        encoder={"kind": "text", "length": LENGTH, "batch": BATCH, "vocabulary": words.size, "slots": SLOTS},
    )


def talk() -> Deployment:
    """The same, whose LoRA factors users train together; their words and memories are not sent."""
    alone = deployment(roles={"lora": "shared"})
    return replace(alone, name="tiny-talk", plan=alone.plan.model_copy(update={"upload": ("role:shared",)}))


def arrays() -> Deployment:
    """A classifier on arrays, without text."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 3]), "weight": torch.ones(4)}
    return Deployment(
        name="tiny-arrays",
        model=personalize(MLP().eval(), [LoRA("hidden.[02]", rank=2)], example=(batch["x"],)),
        task=ClassificationTask(4),
        batch=batch,
        plan=Plan(phases=(TrainPhase(group=("*",), epochs=20, optimizer=AdamW(lr=0.05)),)),
    )


def blocks() -> Deployment:
    """A classifier on arrays of four equal blocks, whose plan makes few steps."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 3]), "weight": torch.ones(4)}
    return Deployment(
        name="tiny-blocks",
        model=personalize(ResidualMLP().eval(), [LoRA("blocks.*.up", rank=2)], example=(batch["x"],)),
        task=ClassificationTask(4),
        batch=batch,
        plan=Plan(phases=(TrainPhase(group=("*",), epochs=1, optimizer=Sgd(lr=0.5)),)),
    )


def federated() -> Deployment:
    """A classifier of arrays whose LoRA factors are shared."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch = {"x": torch.randn(4, 6), "labels": torch.tensor([0, 1, 2, 3]), "weight": torch.ones(4)}
    model = personalize(
        MLP().eval(), [LoRA("hidden.[02]", rank=2)], roles={"lora": "shared"}, example=(batch["x"],)
    )
    return Deployment(
        name="tiny-federated",
        model=model,
        task=ClassificationTask(4),
        batch=batch,
        plan=Plan(
            phases=(TrainPhase(group=("*",), epochs=2, optimizer=Sgd(lr=0.1)),), upload=("role:shared",)
        ),
    )

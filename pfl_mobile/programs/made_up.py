"""Example batches that are nobody's: what a bundle holds to check an engine with is read by every device.

The golden batch of a bundle lies open in ``golden.safetensors``, so it must not be rows of a user. These batches
have the names, shapes and dtypes of real ones, and no value of theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pfl_mobile.modules.slots import VocabularySlots
from pfl_mobile.text.specials import BOS, EOS, PAD, SPECIALS, UNK

if TYPE_CHECKING:
    from pfl_mobile.modules.personalize import PersonalizedModel
    from pfl_mobile.programs.tasks import Batch, Task


def text_batch(batch: int, length: int, vocabulary: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Rows of random words, as :meth:`pfl_mobile.text.encoder.TextEncoder.encode` gives them, of several lengths.

    Args:
        batch: rows.
        length: T, tokens in a row.
        vocabulary: V, size of the base vocabulary.
        seed: another seed gives other words.

    Returns:
        tokens int64 [batch, T], labels int64 [batch, T], weight float32 [batch, T].
    """
    words = _words((batch, length), vocabulary, seed)
    ends = length - torch.arange(batch) % max(
        length // 2, 1
    )  # labels in each row, the end of the text among them
    place = torch.arange(length)
    labels = torch.where(place < (ends - 1).unsqueeze(1), words, torch.full_like(words, PAD))
    labels[torch.arange(batch), ends - 1] = EOS
    tokens = torch.cat([torch.full((batch, 1), BOS), labels[:, :-1]], dim=1)
    tokens = torch.where(place < ends.unsqueeze(1), tokens, torch.full_like(tokens, PAD))
    return {"tokens": tokens, "labels": labels, "weight": (labels >= len(SPECIALS)).float()}


def text_context(length: int, vocabulary: int, *, seed: int = 1) -> dict[str, Tensor]:
    """What ``predict`` takes after some random words: tokens int64 [1, T], position int64 [1]."""
    last = length // 2
    tokens = torch.full((1, length), PAD)
    tokens[0, 0] = BOS
    tokens[0, 1 : last + 1] = _words((last,), vocabulary, seed)
    return {"tokens": tokens, "position": torch.tensor([last])}


def batch_like(example: Batch, task: Task, model: PersonalizedModel, *, seed: int = 0) -> dict[str, Tensor]:
    """A batch with the names, shapes and dtypes of ``example`` and random values.

    Labels are classes of the task, ids are below the size of the model's smallest embedding (0 or 1 without one),
    weights are 1. Real values are of mean 0 and spread 1, but keep what the example says of their kind and of
    nobody in it: none is negative, all lie from 0 to 1, or all are whole.
    """
    generator = torch.Generator().manual_seed(seed)
    slots = sum(c.count for c in model.configs.values() if isinstance(c, VocabularySlots))
    classes = task.manifest()["vocabulary"]
    known = classes - slots if isinstance(classes, int) else None
    tables = [layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)]
    ids = known if task.kind == "tokens" and known is not None else min(tables, default=2)
    least = int(getattr(task, "specials", 0))
    found = {}
    for name, value in example.items():
        if name == "weight":
            found[name] = torch.ones_like(value)
        elif value.is_floating_point():
            found[name] = _real(value, generator)
        else:
            most = known if name in task.labels and known is not None else ids
            low = least if task.kind == "tokens" and least < most else 0
            found[name] = torch.randint(
                low, max(most, low + 1), value.shape, generator=generator, dtype=value.dtype
            )
    return found


def _real(example: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    if not example.numel() or bool((example < 0).any()):
        return drawn
    if bool((example == example.round()).all()):
        return torch.randint(0, 2, example.shape, generator=generator).to(example.dtype)
    if bool((example <= 1).all()):
        return torch.rand(example.shape, generator=generator, dtype=example.dtype)
    return drawn.abs()


def _words(shape: tuple[int, ...], vocabulary: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if vocabulary <= len(SPECIALS):
        return torch.full(shape, UNK)
    return torch.randint(len(SPECIALS), vocabulary, shape, generator=generator)

"""The training of the backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_mobile.errors import DataError
from pfl_mobile.modules.model import tensor_digest
from pfl_recipes.keyboard.model import Keyboard
from pfl_recipes.keyboard.training import InputNoise, TrainConfig, recall, train_backbone
from tests.recipes.keyboard.small import SIZES, TEXTS, rows


def test_training_learns_and_repeats_exactly() -> None:
    told: list[float] = []
    train = TrainConfig(epochs=40, batch=8, seed=3)
    state = torch.random.get_rng_state()
    first = train_backbone(rows(TEXTS), SIZES, train, lambda _, share: told.append(share or 0.0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert told == sorted(told)
    assert told[-1] <= 1.0
    assert tensor_digest(first) == tensor_digest(train_backbone(rows(TEXTS), SIZES, train))
    torch.manual_seed(0)
    assert recall(first, rows(TEXTS))["top1"] > recall(Keyboard(SIZES).eval(), rows(TEXTS))["top1"] + 30


def test_max_steps_ends_the_training_early() -> None:
    told: list[float] = []
    train = TrainConfig(epochs=100, batch=8, max_steps=20)
    train_backbone(rows(TEXTS), SIZES, train, lambda _, share: told.append(share or 0.0))
    assert told == [0.5, 1.0]


def test_noise_replaces_words_but_no_specials() -> None:
    tokens, labels, weight = (torch.as_tensor(rows(TEXTS)[n]) for n in ("tokens", "labels", "weight"))
    noise = InputNoise(tokens, labels, weight, 24, 1.0)
    torch.manual_seed(0)
    noisy = noise(tokens)
    changed = noisy != tokens
    assert bool(changed.any())
    assert not bool(changed[tokens < 4].any())
    assert int(noisy[changed].min()) >= 4
    assert torch.equal(InputNoise(tokens, labels, weight, 24, 0.0)(tokens), tokens)


def test_missing_text_is_named() -> None:
    with pytest.raises(DataError, match="no text to train"):
        train_backbone({k: v[:0] for k, v in rows(TEXTS).items()}, SIZES)


def test_recall_of_an_untrained_model_is_a_number() -> None:
    assert np.isfinite(recall(Keyboard(SIZES), rows(TEXTS))["top3"])

"""The training of the backbone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.modules.model import tensor_digest
from pfl_recipes.keyboard.model import Keyboard
from pfl_recipes.keyboard.training import (
    InputNoise,
    TrainConfig,
    mean_loss,
    mean_prediction,
    recall,
    taught_loss,
    train_backbone,
)
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


def test_teachers_that_count_for_everything_are_what_is_learned() -> None:
    """Taught by nothing but the teachers, the backbone comes to predict as their mean does, not as the text is."""
    train = TrainConfig(epochs=60, batch=8, teachers=2, teacher_epochs=3, taught=1.0)
    told: list[float] = []
    student = train_backbone(rows(TEXTS), SIZES, train, lambda _, share: told.append(share or 0.0))
    assert told == sorted(told)
    assert told[-1] <= 1.0
    teachers = [train_backbone(rows(TEXTS), SIZES, train.teacher(i)) for i in range(2)]
    assert tensor_digest(teachers[0]) != tensor_digest(teachers[1])
    tokens, weight = (torch.as_tensor(rows(TEXTS)[n]) for n in ("tokens", "weight"))
    wanted, found = (mean_prediction(m, tokens, weight > 0) for m in (teachers, [student]))
    untaught = train_backbone(rows(TEXTS), SIZES, replace(train, teachers=0))
    other = mean_prediction([untaught], tokens, weight > 0)
    assert float((found - wanted).abs().sum(-1).mean()) < 0.3
    assert float((other - wanted).abs().sum(-1).mean()) > 0.6


def test_a_taught_backbone_repeats_exactly() -> None:
    train = TrainConfig(epochs=2, batch=8, teachers=1, teacher_epochs=1)
    assert tensor_digest(train_backbone(rows(TEXTS), SIZES, train)) == tensor_digest(
        train_backbone(rows(TEXTS), SIZES, train)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), taught=st.floats(0.0, 1.0), words=st.integers(2, 9))
def test_taught_loss_is_least_at_the_mixture_of_text_and_teachers(
    seed: int, taught: float, words: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(words, (5,), generator=draw)
    predicted = torch.softmax(torch.randn(5, words, generator=draw), -1)
    weight = torch.rand(5, generator=draw) + 0.1
    target = (1 - taught) * torch.nn.functional.one_hot(labels, words) + taught * predicted
    best = taught_loss(torch.log(target + 1e-12), labels, weight, predicted, taught)
    other = torch.randn(5, words, generator=draw)
    assert float(taught_loss(other, labels, weight, predicted, taught)) >= float(best) - 1e-5
    expected = mean_loss(lambda x: x, other, labels, weight)
    torch.testing.assert_close(taught_loss(other, labels, weight, predicted, 0.0), expected)


@pytest.mark.parametrize("wrong", [{"teachers": -1}, {"teacher_epochs": 0}, {"taught": 1.5}])
def test_wrong_settings_of_teachers_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)  # type: ignore[arg-type]

"""A keyboard of a few words, trained in a moment."""

from __future__ import annotations

from pfl_mobile import LoRA, NgramMemory
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.text.encoder import Rows, TextEncoder, WordTokenizer
from pfl_recipes.keyboard.model import KeyboardConfig
from pfl_recipes.keyboard.training import TrainConfig, train_backbone

TEXTS = ["see you there", "see you at noon", "ok see you", "where are you", "at home, ok?"] * 4


SIZES = KeyboardConfig(vocabulary=24, length=8, width=16, layers=1, heads=2, feed_forward=32, dropout=0.1)


def encoder() -> TextEncoder:
    return TextEncoder(WordTokenizer.train(TEXTS, 24), 8, 24)


def rows(texts: list[str]) -> Rows:
    return encoder().encode(texts, drop_unknown=True)


def model() -> PersonalizedModel:
    backbone = train_backbone(rows(TEXTS), SIZES, TrainConfig(epochs=2, batch=8))
    return personalize(backbone, [LoRA(targets="*.query", rank=2), NgramMemory(capacity=64, order=3)])

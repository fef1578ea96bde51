"""The keyboard as a federated study: does LoRA trained together, personally, or both, suit people best?

A small backbone learns next words from some of the users, in one place; it stands for a language model that one
has. The others then take part in the study with their newest messages: nothing but LoRA is trained on their
devices.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from pfl_mobile import AdamW, Local, LoRA, PersonalizedModel, Study, personalize
from pfl_mobile.data import TextPopulation, UserText, cache_dir, load, split
from pfl_mobile.text import MIN_USERS, TextEncoder, VocabularyRule, WordTokenizer
from pfl_recipes.keyboard.model import Keyboard, KeyboardConfig
from pfl_recipes.keyboard.training import TrainConfig, train_backbone
from pfl_recipes.keyboard.weights import keep_weights, load_weights

#: Sizes of the backbone, and how it is trained.
CONFIG = KeyboardConfig(vocabulary=2000, length=16, width=64, feed_forward=256, dropout=0.1)
TRAIN = TrainConfig(epochs=2, max_steps=800)

#: Newest messages that a device keeps.
MESSAGES = 120


@dataclass(frozen=True)
class Adapted:
    """Makes the model: LoRA for everybody in the attention, and one's own in the feed-forward layers."""

    backbone: nn.Module
    rank: int = 4

    def __call__(self) -> PersonalizedModel:
        """The personalized model; fresh LoRA changes nothing."""
        return personalize(
            self.backbone,
            [
                LoRA(
                    r"re:blocks\.\d+\.attention\.(query|value)", rank=self.rank, name="common", role="shared"
                ),
                LoRA(r"re:blocks\.\d+\.feed_forward\.(up|down)", rank=self.rank, name="own", role="personal"),
            ],
        )


def study(
    data: UserText | str = "sotu", *, min_users: int = MIN_USERS, min_messages: int = 100, **settings: Any
) -> Study:
    """The study.

    Args:
        data: messages by user: a dataset's name, a JSONL file, or what ``pfl_mobile.data.load`` gives.
        min_users: users of the backbone's that a word of the vocabulary needs, as the vocabulary ships.
        min_messages: that a user needs to take part; the backbone learns from the others too.
        settings: replace the study's own, named as in the constructor of ``Study``.

    Raises:
        TooFewUsersError: there are fewer users for the backbone.
    """
    text = load(data) if isinstance(data, str) else data
    parts = split(text, min_messages=min_messages)
    known = list(parts.train.all_texts())
    encoder = encoder_of(parts.train, min_users)
    newest = text.select(list(parts.test)).newest(MESSAGES)
    defaults: dict[str, Any] = {
        "strategy": "fedper",
        "local": Local(epochs=1, optimizer=AdamW(lr=2e-3, weight_decay=0.0), clip=1.0),
        "batch": 16,
        "cohort": min(20, len(newest.users)),
        "name": "keyboard",
    }
    people = TextPopulation(newest, encoder)
    return Study(Adapted(backbone(encoder, known)), people, **(defaults | settings))


def encoder_of(users: UserText, min_users: int = MIN_USERS) -> TextEncoder:
    """The encoder with the words of these users that may ship."""
    texts = {user: users.texts(user) for user in users.users}
    tokenizer = WordTokenizer.of_users(texts, CONFIG.vocabulary, VocabularyRule(min_users))
    return TextEncoder(tokenizer, CONFIG.length, CONFIG.vocabulary)


def backbone(encoder: TextEncoder, texts: list[str]) -> Keyboard:
    """The backbone, trained on these texts or loaded when that was done before."""
    settings = hashlib.sha256(repr((asdict(CONFIG), asdict(TRAIN))).encode())
    settings.update(encoder.tokenizer.to_json().encode())
    settings.update("\n".join(texts).encode())
    place = cache_dir() / "keyboard" / f"study-{settings.hexdigest()[:24]}.pt"
    weights = load_weights(place)
    if weights is None:
        weights = train_backbone(encoder.encode(texts), CONFIG, TRAIN).state_dict()
        keep_weights(place, weights)
    model = Keyboard(CONFIG)
    model.load_state_dict(weights)
    model.eval()
    return model

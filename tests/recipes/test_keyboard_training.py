"""The keyboard's backbone, its training, and the fit of the memory's gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pfl_mobile import LoRA, NgramMemory
from pfl_mobile.data import Message, UserText
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.modules.model import tensor_digest
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.modules.shared_ngrams import SharedNgrams
from pfl_mobile.text.encoder import Rows, TextEncoder, WordTokenizer
from pfl_recipes.keyboard.gate import (
    GateExamples,
    fit_gate,
    gate_examples,
    gate_users,
    gate_values,
    learn,
    set_gate,
    set_table,
    shared_ngrams,
)
from pfl_recipes.keyboard.model import Keyboard, KeyboardConfig
from pfl_recipes.keyboard.ngrams import build_table
from pfl_recipes.keyboard.training import InputNoise, TrainConfig, recall, train_backbone

TEXTS = ["see you there", "see you at noon", "ok see you", "where are you", "at home, ok?"] * 4
SIZES = KeyboardConfig(vocabulary=24, length=8, width=16, layers=1, heads=2, feed_forward=32, dropout=0.1)


def encoder() -> TextEncoder:
    return TextEncoder(WordTokenizer.train(TEXTS, 24), 8, 24)


def rows(texts: list[str]) -> Rows:
    return encoder().encode(texts, drop_unknown=True)


def model() -> PersonalizedModel:
    backbone = train_backbone(rows(TEXTS), SIZES, TrainConfig(epochs=2, batch=8))
    return personalize(backbone, [LoRA(targets="*.query", rank=2), NgramMemory(capacity=64, order=3)])


def test_default_backbone_has_the_size_of_a_phone_keyboard() -> None:
    assert 1_000_000 <= sum(p.numel() for p in Keyboard().parameters()) <= 4_000_000


def test_logits_do_not_depend_on_later_tokens() -> None:
    torch.manual_seed(0)
    backbone = Keyboard(SIZES).eval()
    tokens = torch.randint(4, 24, (3, 8))
    changed = tokens.clone()
    changed[:, 5:] = 7
    torch.testing.assert_close(backbone(tokens)[:, :5], backbone(changed)[:, :5])
    assert backbone(tokens[:, :3]).shape == (3, 3, 24)


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


def test_gate_examples_give_the_mixture_of_the_memory() -> None:
    personal = model()
    learn(personal, rows(TEXTS[:5]), lr=0.01, epochs=2)
    examples = gate_examples(personal, rows(TEXTS[:5]), rows(["ok see you there"]))
    gate = personal.extras["memory"].gate
    ours = (gate(examples.counts).exp() * examples.chances).sum(-1).log()
    later = rows(["ok see you there"])
    tokens, labels = torch.as_tensor(later["tokens"]), torch.as_tensor(later["labels"])
    with torch.no_grad():
        log_p = personal(tokens).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(ours, log_p[torch.as_tensor(later["weight"]) > 0], rtol=1e-4, atol=1e-4)


def test_learning_changes_the_device_tensors_only() -> None:
    personal = model()
    digest, before = personal.backbone_digest(), personal.values()
    assert learn(personal, rows(TEXTS), lr=0.01, epochs=2, batch=8) == 6
    after = personal.values()
    assert personal.backbone_digest() == digest
    assert not torch.equal(
        before["blocks.0.attention.query.lora_B"], after["blocks.0.attention.query.lora_B"]
    )


def test_a_fitted_gate_is_better_and_can_be_moved() -> None:
    personal = model()
    examples = gate_examples(personal, rows(TEXTS[:10]), rows(TEXTS[10:]))
    losses = fit_gate(personal, [examples])
    assert losses.loss_after < losses.loss_before
    assert not [p for p in personal.extras["memory"].gate.parameters() if p.requires_grad]
    other = model()
    set_gate(other, gate_values(personal))
    for name, value in gate_values(personal).items():
        assert torch.equal(value, gate_values(other)[name])


def people(sizes: list[int]) -> UserText:
    return UserText(
        "test", {f"u{i:02}": tuple(Message(f"m{j}") for j in range(n)) for i, n in enumerate(sizes)}
    )


def test_gate_users_are_small_and_apart() -> None:
    users = people([60] * 8 + [500] * 4 + [3] * 8)
    left, apart = gate_users(users, count=4)
    assert len(apart.users) == 4
    assert all(len(m) == 60 for m in apart.users.values())
    assert sorted([*left.users, *apart.users]) == sorted(users.users)
    assert list(gate_users(users, count=4)[1].users) == list(apart.users)


def test_gate_users_fall_back_to_the_smallest() -> None:
    left, apart = gate_users(people([900, 700, 300, 800, 400]), count=20)
    assert [len(m) for m in apart.users.values()] == [300]
    assert len(left.users) == 4


def test_everybodys_ngrams_are_discounted_counts() -> None:
    words = encoder()
    place = SharedNgrams(24, 64, 3)
    table = build_table([rows(TEXTS)], place, min_users=1)
    see, you, where, there = (words.id(w) for w in ("see", "you", "where", "there"))
    assert words.decode(table.words[see].tolist())[0] == "you"
    assert float(table.parts[see, 0]) > 0.8
    torch.testing.assert_close(table.parts.sum(-1)[[see, you]], torch.ones(2))
    for value, name in ((table.words, "words"), (table.parts, "parts"), (table.key, "key")):
        getattr(place, name).copy_(value)
    row = int(place.rows(torch.tensor([[1, see, you]]))[0, 2])
    assert row >= 24  # "see you" was seen often enough for a row of its own
    assert set(table.words[row, :2].tolist()) == {there, words.id("at")}
    # 4 x "there", 4 x "at" of 8; the ends of messages do not count
    torch.testing.assert_close(table.features[row, 3:], torch.tensor([1.0, math.log(8), math.log(2)]))
    assert int(place.rows(torch.tensor([[where, see]]))[0, 1]) == see
    assert torch.equal(table.scores(torch.ones(6), -9.0) > -9.0, table.parts.sum(-1) > 0)


def test_gate_and_everybodys_ngrams_are_fitted_and_moved_together() -> None:
    def fresh() -> PersonalizedModel:
        config = NgramMemory(capacity=64, order=3, vocabulary=24, shared=64, followers=3)
        return personalize(Keyboard(SIZES).eval(), [LoRA(targets="*.query", rank=2), config])

    personal = fresh()
    table = build_table([rows(TEXTS)], shared_ngrams(personal), min_users=1)
    set_table(personal, table)
    nothing = gate_examples(personal, encoder().encode([]), rows(TEXTS[10:]))
    fitted = fit_gate(
        personal, [nothing, gate_examples(personal, rows(TEXTS[:5]), rows(TEXTS[10:]))], table=table
    )
    assert fitted.loss_after < fitted.loss_before
    later = rows(["see you there"])
    tokens = torch.as_tensor(later["tokens"])
    assert recall(personal, later)["top1"] > 30
    ours, other = personal(tokens), fresh()
    other.backbone.load_state_dict(personal.backbone.state_dict())
    other.load_values(personal.values())
    assert not torch.equal(other(tokens), ours)
    set_gate(other, gate_values(personal))
    assert torch.equal(other(tokens), ours)
    with pytest.raises(ConfigError, match="no place"):
        shared_ngrams(model())


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


def test_wrong_sizes_and_missing_text_are_named() -> None:
    with pytest.raises(ConfigError, match="5 heads"):
        KeyboardConfig(heads=5)
    with pytest.raises(DataError, match="no text to train"):
        train_backbone({k: v[:0] for k, v in rows(TEXTS).items()}, SIZES)
    with pytest.raises(DataError, match="memory's gate"):
        gate_users(people([3, 3]))
    with pytest.raises(DataError, match="memory's gate"):
        fit_gate(model(), [GateExamples(torch.zeros(0, 4), torch.zeros(0, 3))])
    bare = personalize(Keyboard(SIZES), [LoRA(targets="*.query")])
    with pytest.raises(ConfigError, match="no memory"):
        gate_values(bare)
    assert np.isfinite(recall(Keyboard(SIZES), rows(TEXTS))["top3"])

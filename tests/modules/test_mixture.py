"""The mixture with the backbone against its formula, message by message in plain Python."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pfl_mobile import BackboneMixture, Head, LoRA, NgramMemory, VocabularySlots
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from tests.backbones import decoder, encoder

WORDS, SLOTS = 7, 2


class Table(nn.Module):
    """Bigram logits: enough of a backbone for a mixture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, 5)
        self.head = nn.Linear(5, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        return 3.0 * self.head(self.embed(tokens))


def changed(seed: int, **settings: float) -> PersonalizedModel:
    """A personalized model with one of its slots assigned."""
    slots = VocabularySlots(embedding="embed", output="head", count=SLOTS)
    model = personalize(Table(), [LoRA("head", rank=2), slots, BackboneMixture(words=WORDS, **settings)])
    generator = torch.Generator().manual_seed(seed)
    values = {k: v + torch.randn(v.shape, generator=generator) for k, v in model.values().items()}
    values["slots.active"] = torch.tensor([1.0, 0.0])
    model.load_values(values)
    return model


def mixed(model: PersonalizedModel, config: BackboneMixture, tokens: list[int]) -> np.ndarray:
    """p [T, V] of one message in float64, by the formula."""
    message = torch.tensor([tokens])
    with torch.no_grad():
        own = F.log_softmax(model(message, for_gradients=True).double(), -1)[0].numpy()
        known = torch.where(message < WORDS, message, config.unk)
        plain = F.log_softmax(Table()(known).double(), -1)[0].numpy()
    plain = np.concatenate([plain, np.full((len(tokens), SLOTS), -np.inf)], -1)
    odds, found = 0.0, []
    for t in range(len(tokens)):
        odds *= config.fade
        if t and tokens[t] >= config.specials:
            mine, theirs = own[t - 1, tokens[t]], plain[t - 1, tokens[t]]
            odds += min(max(max(mine, math.log(1e-30)) - max(theirs, math.log(1e-30)), -3.0), 3.0)
        z = math.log(config.share / (1 - config.share)) + config.evidence * odds
        s = 1 / (1 + math.exp(-z))
        found.append((1 - s) * np.exp(plain[t]) + s * np.exp(own[t]))
    return np.array(found)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20),
    st.lists(st.integers(0, WORDS), min_size=1, max_size=9),
    st.floats(0.05, 0.95),
    st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    st.sampled_from([0.0, 0.8, 0.95, 1.0]),
    st.sampled_from([1, 3]),
)
def test_probabilities_are_those_of_the_formula(seed, tokens, share, evidence, fade, specials):
    given_ = {"share": share, "evidence": evidence, "fade": fade, "specials": specials}
    model = changed(seed, **given_)
    with torch.no_grad():
        found = model(torch.tensor([tokens, tokens]))
    assert found.shape == (2, len(tokens), WORDS + SLOTS)
    torch.testing.assert_close(found[0], found[1])
    probabilities = found[0].double().exp().numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)
    want = mixed(model, BackboneMixture(**given_), tokens)
    np.testing.assert_allclose(probabilities, want, rtol=2e-4, atol=1e-7)
    assert (probabilities[:, -1] == 0).all(), "no word has that slot"


def test_a_fresh_model_predicts_what_the_backbone_does():
    backbone, example = decoder()
    model = personalize(backbone, [LoRA("*.attn.[qv]", rank=2), BackboneMixture()], example=example)
    assert model.neutral
    with torch.no_grad():
        torch.testing.assert_close(
            model(*example), F.log_softmax(backbone(*example), -1), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("apart", [50.0, 500.0])
def test_predictions_that_are_far_apart_stay_finite(apart):
    model = changed(0, evidence=4.0)
    with torch.no_grad():
        values = model.values()
        model.load_values({k: v * apart if "lora" in k else v for k, v in values.items()})
        found = model(torch.tensor([[1, 4, 5, 6, 4, 5, 6, 7, 4, 5]]))
    assert torch.isfinite(found).all()
    assert (found <= 1e-5).all()


def test_training_and_what_is_stored_are_as_without_it():
    backbone, example = decoder()
    lora = LoRA("*.attn.[qv]", rank=2)
    plain = personalize(backbone, [lora], example=example)
    model = personalize(backbone, [lora, BackboneMixture()], example=example)
    assert model.values().keys() == plain.values().keys()
    assert model.frozen_tensors().keys() == plain.frozen_tensors().keys()
    assert model.backbone_digest() == plain.backbone_digest()
    other = {k: v + 0.1 for k, v in plain.values().items()}
    for one in (plain, model):
        one.load_values(other)
    with torch.no_grad():
        assert torch.equal(model.forward_for_gradients(*example), plain(*example))
        assert not torch.allclose(model(*example), F.log_softmax(plain(*example), -1), atol=1e-3)
        assert torch.equal(copy.deepcopy(model)(*example), model(*example))


def test_what_a_head_trains_is_as_it_shipped_in_the_backbone_beside():
    backbone, example = decoder()
    model = personalize(
        backbone, [Head("head"), BackboneMixture(share=0.999999, evidence=0.0)], example=example
    )
    other = {k: v + 0.1 * torch.randn(v.shape) for k, v in model.values().items()}
    with torch.no_grad():
        own = F.log_softmax(model.call(other, *example, for_gradients=True), -1)
        torch.testing.assert_close(model.call(other, *example), own, rtol=1e-3, atol=1e-4)
        beside = personalize(
            backbone, [Head("head"), BackboneMixture(share=1e-6, evidence=0.0)], example=example
        )
        torch.testing.assert_close(
            beside.call(other, *example), F.log_softmax(backbone(*example), -1), rtol=1e-3, atol=1e-4
        )
    assert any(name.startswith("mixture.") for name in model.frozen_tensors())


def test_the_memory_is_mixed_into_the_mixture():
    backbone, example = decoder()
    lora, memory = LoRA("*.attn.[qv]", rank=2), NgramMemory(capacity=4, order=2, discount=0.5)
    model = personalize(backbone, [memory, BackboneMixture(), lora], example=example)
    without = personalize(backbone, [BackboneMixture(), lora], example=example)
    with torch.no_grad():
        torch.testing.assert_close(model(*example), without(*example))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"evidence": -1.0}, "evidence=-1.0"),
        ({"fade": 1.5}, "fade=1.5"),
        ({"specials": 0}, "specials=0"),
        ({"unk": -1}, "unk=-1"),
        ({"words": 0}, "words=0"),
    ],
)
def test_settings_out_of_range_are_named(config, words):
    with pytest.raises(ConfigError, match=words):
        BackboneMixture(**config)


def test_a_backbone_that_it_does_not_fit_is_refused():
    backbone, example = encoder()
    with pytest.raises(ConfigError, match=r"not \[batch, length, vocabulary\]"):
        personalize(backbone, [BackboneMixture()], example=example)
    backbone, example = decoder()
    with pytest.raises(ConfigError, match="not known"):
        personalize(backbone, [BackboneMixture()])
    with pytest.raises(ConfigError, match="gives 31 logits"):
        personalize(backbone, [BackboneMixture(words=30)], example=example)
    with pytest.raises(ConfigError, match="outside of the 31 words"):
        personalize(backbone, [BackboneMixture(unk=31)], example=example)

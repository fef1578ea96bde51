"""Vocabulary slots: the base words keep their logits, slots act once they are assigned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfl_mobile import Head, LoRA, SoftPrompt, VocabularySlots
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from tests.backbones import decoder, tied_decoder

SLOTS = VocabularySlots("embed", "head", count=4)
WORDS = 31


def assigned(model: PersonalizedModel, *active: float) -> PersonalizedModel:
    model.load_values({"slots.active": torch.tensor(active, dtype=torch.float32)}, partial=True)
    return model


def test_base_words_keep_their_logits_whatever_the_slots_hold() -> None:
    backbone, (tokens,) = decoder()
    model = assigned(personalize(backbone, [SLOTS]), 1, 0, 1, 0)
    model.load_values(
        {n: torch.randn_like(v) for n, v in model.values().items() if "rows" in n}, partial=True
    )
    with torch.no_grad():
        assert torch.equal(model(tokens)[..., :WORDS], backbone(tokens))


def test_unassigned_slots_are_never_predicted() -> None:
    backbone, (tokens,) = decoder()
    model = personalize(backbone, [SLOTS])
    model.load_values({"slots.bias": torch.full((4,), 1e4)}, partial=True)
    with torch.no_grad():
        assert float(F.softmax(model(tokens), -1)[..., WORDS:].max()) == 0.0
        assigned(model, 0, 1, 0, 0)
        assert bool((model(tokens).argmax(-1) == WORDS + 1).all())


@pytest.mark.parametrize("make", [decoder, tied_decoder])
def test_fresh_slot_reads_and_is_predicted_like_the_unknown_word(make: object) -> None:
    backbone, (tokens,) = make()  # type: ignore[operator]
    model = assigned(personalize(backbone, [SLOTS]), 1, 1, 1, 1)
    unknown, slot = tokens.clone(), tokens.clone()
    unknown[:, 3], slot[:, 3] = 2, WORDS + 1
    with torch.no_grad():
        out = model(slot)
        torch.testing.assert_close(out[..., :WORDS], backbone(unknown), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out[..., WORDS], out[..., 2], rtol=1e-5, atol=1e-6)


def test_tied_output_has_one_row_a_slot_and_an_untied_one_two() -> None:
    names = {i.name for i in personalize(tied_decoder()[0], [SLOTS]).device_tensors()}
    assert names == {"embed.slot_rows", "slots.active", "slots.bias"}
    names = {i.name for i in personalize(decoder()[0], [SLOTS]).device_tensors()}
    assert names == {"embed.slot_rows", "head.slot_rows", "slots.active", "slots.bias"}
    untied = personalize(tied_decoder()[0], [SLOTS, Head("head")])
    assert "head.slot_rows" in untied.values()


def test_slots_match_a_model_with_a_larger_vocabulary() -> None:
    backbone, (tokens,) = decoder()
    model = assigned(personalize(backbone, [SLOTS]), 1, 1, 1, 1)
    values = {n: torch.randn_like(v) if "active" not in n else v for n, v in model.values().items()}
    model.load_values(values)
    larger, _ = decoder()
    larger.embed = nn.Embedding.from_pretrained(torch.cat([backbone.embed.weight, values["embed.slot_rows"]]))
    larger.head = nn.Linear(16, WORDS + 4)
    larger.head.weight.data = torch.cat([backbone.head.weight, values["head.slot_rows"]]).detach()
    larger.head.bias.data = torch.cat([backbone.head.bias, values["slots.bias"]]).detach()
    tokens = torch.randint(1, WORDS + 4, tokens.shape)
    parameters = model.train_parameters()
    out, expected = model(tokens), larger(tokens)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(F.cross_entropy(out.transpose(1, 2), tokens), parameters)
    larger.embed.weight.requires_grad_(True)
    F.cross_entropy(larger(tokens).transpose(1, 2), tokens).backward()
    theirs = [
        larger.embed.weight.grad[WORDS:],
        larger.head.weight.grad[WORDS:],
        larger.head.bias.grad[WORDS:],
    ]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_slots_go_together_with_lora_and_prompt_on_the_same_embedding() -> None:
    backbone, (tokens,) = decoder()
    modules = [SoftPrompt("embed", length=2), SLOTS, LoRA(("embed", "head"), rank=2)]
    model = assigned(personalize(backbone, modules, example=(tokens,)), 1, 1, 0, 0)
    tokens = tokens.clone()
    tokens[:, 2] = WORDS
    model.load_values(
        {n: torch.randn_like(v) for n, v in model.values().items() if "lora" in n}, partial=True
    )
    seen: list[torch.Tensor] = []
    model.backbone.embed.register_forward_hook(lambda _m, _i, out: seen.append(out))
    assert model(tokens).shape == (*tokens.shape, WORDS + 4)
    torch.testing.assert_close(seen[0][0, 2 + 2], model.values()["embed.slot_rows"][0])


def test_bias_setting_shifts_the_start() -> None:
    backbone, _ = decoder()
    start = personalize(backbone, [replace(SLOTS, bias=1.5)]).values()["slots.bias"]
    torch.testing.assert_close(start, backbone.head.bias.detach()[2].repeat(4) + 1.5)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"output": "blocks.0.up"}, "knows 31 words but 'blocks.0.up' gives 32"),
        ({"embedding": "positions"}, "knows 32 words"),
        ({"embedding": "head"}, "'head' is a Linear"),
        ({"output": "*.up"}, "matches 2 layers"),
        ({"unk": 31}, "outside of the 31 words"),
    ],
)
def test_wrong_places_are_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        personalize(decoder()[0], [replace(SLOTS, **change)])  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"count": 0}, {"unk": -1}, {"embedding": ""}, {"output": ""}])
def test_wrong_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(SLOTS, **change)  # type: ignore[arg-type]

"""What only prompts do."""

from __future__ import annotations

import pytest
import torch

from pfl_mobile import SoftPrompt
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import personalize
from tests.backbones import decoder, encoder, gru, mlp


def test_prompt_is_prepended_and_stripped() -> None:
    backbone, (tokens,) = decoder()
    model = personalize(backbone, [SoftPrompt("embed", length=3)], example=(tokens,))
    prompt = model.values()["embed.prompt"]
    rows = {tuple(row) for row in backbone.embed.weight.tolist()}
    assert all(tuple(row) in rows for row in prompt.tolist())
    embedded: list[torch.Tensor] = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda _m, inputs: embedded.append(inputs[0]))
    assert model(tokens).shape == backbone(tokens).shape
    positions = backbone.positions.weight[:3]
    torch.testing.assert_close(embedded[0][:, :3], (prompt + positions).expand(3, 3, 16))


def test_prompt_that_the_backbone_cannot_take_is_refused_with_the_reason() -> None:
    backbone, example = encoder()  # adds positions[: tokens.shape[1]], so it does not see the longer sequence
    with pytest.raises(ConfigError, match="fails on the example input") as caught:
        personalize(backbone, [SoftPrompt("embed", length=3, strip=False)], example=example)
    assert "soft prompt" in caught.value.mend
    backbone, _ = decoder()
    with pytest.raises(ConfigError, match="fails on the example input"):
        personalize(
            backbone, [SoftPrompt("embed", length=3)], example=(torch.ones(1, 30, dtype=torch.int64),)
        )
    backbone, example = gru()
    with pytest.raises(ConfigError, match="the output is"):
        personalize(backbone, [SoftPrompt("embed", length=3, strip=False)], example=example)
    backbone, example = mlp()
    with pytest.raises(ConfigError, match=r"not \[batch, length, width\]"):
        personalize(backbone, [SoftPrompt("hidden.0")], example=example)

"""What only heads, prompts, gates or adapters do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfl_mobile import Adapter, Gate, Head, SoftPrompt
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.modules.personalize import personalize, tensor_digest
from tests.backbones import cnn, decoder, encoder, gru, mlp, sensor, tied_decoder


def test_head_trains_as_the_layer_itself_would() -> None:
    backbone, (x,) = mlp()
    model = personalize(backbone, [Head("head")])
    names = [info.name for info in model.device_tensors()]
    assert names == ["head.bias", "head.weight"]
    model(x).square().mean().backward()
    backbone(x).square().mean().backward()
    torch.testing.assert_close(model.train_parameters()[0].grad, backbone.head.bias.grad)
    torch.testing.assert_close(model.train_parameters()[1].grad, backbone.head.weight.grad)
    assert not {"head.weight", "head.bias"} & set(model.frozen_tensors())


def test_head_on_a_tied_output_leaves_the_embedding_alone() -> None:
    backbone, (tokens,) = tied_decoder()
    model = personalize(backbone, [Head("head")])
    model.load_values({"head.weight": torch.zeros(31, 16)})
    assert not bool(model(tokens).any())
    assert torch.equal(model.backbone.embed.weight, backbone.embed.weight)
    assert model.backbone_digest() == tensor_digest(backbone)


def test_head_with_new_outputs_gives_that_many() -> None:
    backbone, (x,) = sensor()
    model = personalize(backbone, [Head("head", outputs=9)])
    assert model(x).shape == (4, 9)
    assert not model.neutral
    with pytest.raises(ConfigError, match="has groups"):
        personalize(backbone, [Head("second", outputs=9)])
    with pytest.raises(ConfigError, match="leave out one"):
        Head("head", only="bias", outputs=3)


def test_head_names_a_layer_without_parameters() -> None:
    with pytest.raises(ConfigError, match=r"'hidden\.1' \(ReLU\) has no parameters"):
        personalize(mlp()[0], [Head("hidden.1")])


def test_bias_of_a_convolution_is_added_to_each_channel() -> None:
    backbone, (x,) = cnn()
    model = personalize(backbone, [Head("features.0", only="bias")])
    delta = torch.randn(8)
    model.load_values({"features.0.bias_delta": delta})
    with torch.no_grad():
        backbone.features[0].bias = nn.Parameter(delta)
        torch.testing.assert_close(model(x), backbone(x))


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


def test_gate_multiplies_features() -> None:
    backbone, (x,) = sensor()
    model = personalize(backbone, [Gate("first")])
    scale = torch.rand(8)
    model.load_values({"first.gate_scale": scale})
    with torch.no_grad():
        backbone.first.weight.mul_(scale[:, None, None])
        backbone.first.bias.mul_(scale)
        # the model uses the same storage, so undo before its run
        expected = backbone(x)
        backbone.first.weight.div_(scale[:, None, None])
        backbone.first.bias.div_(scale)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_adapter_width_comes_from_the_type_the_setting_or_the_example() -> None:
    backbone, example = encoder()
    config = Adapter("re:blocks\\.\\d", size=2)
    with pytest.raises(ConfigError, match=r"output size of layer 'blocks\.0' \(Block\) is not known"):
        personalize(backbone, [config])
    names = personalize(backbone, [config], example=example).values()
    assert names["blocks.0.adapter_up"].shape == (16, 2)
    given = personalize(backbone, [Adapter("re:blocks\\.\\d", size=2, width=16)]).values()
    assert given.keys() == names.keys()
    with pytest.raises(ConfigError, match="width=5"):
        personalize(backbone, [Adapter("re:blocks\\.\\d", width=5)], example=example)
    with pytest.raises(ConfigError, match="width=5"):
        personalize(backbone, [Adapter("*.up", width=5)])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Adapter("x", activation="rleu"), "'relu'"),
        (lambda: Adapter("x", size=0), "size=0"),
        (lambda: Gate("x", on="inptu"), "'input'"),
        (lambda: Head("x", only="bais"), "'bias'"),
        (lambda: SoftPrompt(""), "target is empty"),
        (lambda: SoftPrompt("x", init="normla"), "'normal'"),
    ],
)
def test_wrong_settings_are_named(make: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make()  # type: ignore[operator]
    assert isinstance(caught.value, UnknownNameError) == ("'" in text)

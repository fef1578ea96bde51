"""What only heads do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pfl_mobile import Head
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import personalize, tensor_digest
from tests.backbones import cnn, mlp, sensor, tied_decoder


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
    with pytest.raises(ConfigError, match=r"'hidden\.1' \(ReLU\)"):
        personalize(mlp()[0], [Head(["head", "hidden.1"])])


@pytest.mark.parametrize("make", [mlp, cnn, sensor, tied_decoder])
def test_head_on_everything_trains_every_layers_own_parameters_once(make: Callable[[], Any]) -> None:
    backbone, example = make()
    model = personalize(backbone, [Head("*")])
    wanted = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    assert {info.name for info in model.device_tensors()} == wanted
    assert model.backbone_digest() == tensor_digest(backbone)
    with torch.no_grad():
        assert torch.equal(model(*example), backbone(*example))


def test_bias_of_a_convolution_is_added_to_each_channel() -> None:
    backbone, (x,) = cnn()
    model = personalize(backbone, [Head("features.0", only="bias")])
    delta = torch.randn(8)
    model.load_values({"features.0.bias_delta": delta})
    with torch.no_grad():
        backbone.features[0].bias = nn.Parameter(delta)
        torch.testing.assert_close(model(x), backbone(x))

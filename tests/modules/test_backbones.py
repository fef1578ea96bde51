"""Networks that cannot be a backbone are refused by the layer and with what to give instead."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import LoRA, personalize
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.backbones import check_backbone


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


class Around(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


def refused(backbone: Any, target: str = "*last") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        personalize(backbone, [LoRA(target, rank=2)])
    return caught.value


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_scripted_is_named() -> None:
    for made in (torch.jit.script(net()), torch.jit.trace(net(), torch.zeros(1, 8))):
        error = refused(Around(made))
        assert "layer 'inner'" in error.message
        assert "TorchScript" in error.message
        assert "load_state_dict(scripted.state_dict())" in error.mend


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_quantized_or_prepared_for_it_is_named() -> None:
    from torch.ao import quantization
    from torch.ao.nn import quantized

    error = refused(Around(nn.Sequential(nn.Linear(8, 3), quantized.DeQuantize())))
    assert "layer 'inner.1' (DeQuantize) is quantized" in error.message
    assert "before it was quantized" in error.mend
    error = refused(Around(nn.Sequential(nn.Linear(8, 3), quantization.MinMaxObserver())))
    assert "layer 'inner.1' (MinMaxObserver) is prepared for quantization" in error.message


def test_libraries_of_quantized_and_spread_layers_are_known_by_name() -> None:
    for module, word in (
        ("bitsandbytes.nn.modules", "quantized"),
        ("deepspeed.runtime.engine", "several processes"),
        ("opacus.grad_sample.grad_sample_module", "opacus"),
    ):
        kind = type("Layer", (nn.Linear,), {"__module__": module})
        assert word in refused(Around(kind(8, 3))).message
    strange = type("Layer", (nn.Linear,), {"__module__": "awkward.layers"})  # no prefix of a name
    check_backbone(Around(strange(8, 3)))


class Quantized(Tensor):
    """As torchao has them: a parameter of a class of its own."""


Quantized.__module__ = "torchao.dtypes"


def test_tensors_that_are_quantized_are_named() -> None:
    layer = nn.Linear(8, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantized), requires_grad=False)
    assert "'inner.weight' is quantized (Quantized)" in refused(Around(layer)).message


@pytest.mark.parametrize(
    ("given", "mend"),
    [
        ({"weight": torch.zeros(3)}, "load_state_dict"),
        ("model.pt", "load the network first"),
        (nn.Linear, r"an object of the class: Linear"),
        (lambda x: x, "forward of an nn.Module"),
    ],
)
def test_what_is_no_module_is_said_so(given: Any, mend: str) -> None:
    error = refused(given)
    assert "not an nn.Module" in error.message
    assert mend in error.mend


def test_layers_without_a_shape_and_with_a_norm_that_rewrites_them_are_named() -> None:
    assert "'inner.weight' has no shape yet" in refused(Around(nn.LazyLinear(3))).message
    assert (
        "layer 'inner' (Embedding) has max_norm" in refused(Around(nn.Embedding(3, 3, max_norm=1.0))).message
    )


def test_the_attribute_that_cannot_be_copied_is_named() -> None:
    broken = Around(net())
    broken.inner.lock = threading.Lock()
    error = refused(broken)
    assert "attribute 'inner.lock' of the backbone (lock) cannot be copied" in error.message
    kept = Around(net())
    kept.inner.before = kept(torch.zeros(1, 8))
    error = refused(kept)
    assert "attribute 'inner.before'" in error.message
    assert "history of gradients" in error.message
    assert "register_buffer" in error.mend


def test_weights_that_were_not_loaded_are_named() -> None:
    error = refused(Around(net()).to("meta"))
    assert "'inner.0.weight' has no values yet" in error.message
    assert "load_state_dict" in error.mend

"""LoRA against a layer with the explicitly merged weight."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pfl_mobile import LoRA
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.modules import make_config
from pfl_mobile.modules.personalize import personalize


def randomized(layer: nn.Module, config: LoRA) -> tuple[nn.Module, Tensor, Tensor]:
    model = personalize(nn.Sequential(layer), [config])
    values = {name: torch.randn_like(value) for name, value in model.values().items()}
    model.load_values(values)
    return model, values["0.lora_A"], values["0.lora_B"]


def close(model: nn.Module, merged: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), merged(x), rtol=1e-4, atol=1e-4)


@given(rank=st.integers(1, 5), alpha=st.sampled_from([None, 1.0, 16.0]), bias=st.booleans())
@settings(max_examples=15, deadline=None)
def test_linear_is_the_merged_weight(rank: int, alpha: float | None, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias)
    config = LoRA("0", rank=rank, alpha=alpha)
    model, a, b = randomized(layer, config)
    merged = nn.Linear(7, 5, bias=bias)
    merged.load_state_dict(layer.state_dict())
    merged.weight.data += config.scale * b @ a
    close(model, merged, torch.randn(2, 3, 7))


def test_embedding_is_the_merged_table() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(11, 6)
    model, a, b = randomized(layer, LoRA("0", rank=3, alpha=6))
    close(model, nn.Embedding(11, 6, _weight=layer.weight.detach() + 2.0 * a @ b.T), torch.arange(11))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layer_is_the_one_of_merged_weights(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    options = {"proj_size": 2} if kind is nn.LSTM else {}
    layer, x = kind(3, 4, num_layers=2, bidirectional=True, **options), torch.randn(5, 2, 3)
    model = personalize(nn.Sequential(layer), [LoRA("0", rank=2, alpha=6)])
    torch.testing.assert_close(model(x)[0], layer(x)[0])  # fresh, it changes nothing
    values = {name: 0.2 * torch.randn_like(value) for name, value in model.values().items()}
    model.load_values(values)
    merged = copy.deepcopy(layer)
    names = [name for name, _ in layer.named_parameters() if name.startswith("weight_")]
    assert set(values) == {f"0.{n.removeprefix('weight_')}.lora_{part}" for n in names for part in "AB"}
    for name in names:
        part = f"0.{name.removeprefix('weight_')}"
        getattr(merged, name).data += 3.0 * values[f"{part}.lora_B"] @ values[f"{part}.lora_A"]
    out, want = model(x)[0], merged(x)[0]
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    out.square().sum().backward()
    want.square().sum().backward()
    gradient = merged.weight_hh_l0.grad
    assert isinstance(gradient, Tensor)
    trained = dict(zip(model.values(), model.train_parameters(), strict=True))
    torch.testing.assert_close(
        trained["0.hh_l0.lora_B"].grad, 3.0 * gradient @ values["0.hh_l0.lora_A"].t(), rtol=1e-3, atol=1e-3
    )


def test_recurrent_layer_takes_one_adaptation() -> None:
    with pytest.raises(ConfigError, match="low-rank parts already"):
        personalize(nn.Sequential(nn.GRU(3, 4)), [LoRA("0", name="a"), LoRA("0", name="b")])


def test_embedding_training_leaves_unseen_words_alone() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(11, 6)
    model = personalize(nn.Sequential(layer), [LoRA("0", rank=3)])
    optimizer = torch.optim.SGD(model.train_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 2])).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        delta = model(torch.arange(11)) - layer(torch.arange(11))
    assert bool((delta[1:3].abs().sum(1) > 0).all())
    assert float(delta[[0, *range(3, 11)]].abs().sum()) == 0.0


@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 2, "valid"]),
    dilation=st.integers(1, 2),
    kernel=st.integers(1, 3),
    mode=st.sampled_from(["zeros", "circular", "reflect"]),
    two=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_convolution_is_the_merged_kernel(
    groups: int, stride: int, padding: int | str, dilation: int, kernel: int, mode: str, two: bool
) -> None:
    torch.manual_seed(0)
    kind = nn.Conv2d if two else nn.Conv1d
    layer = kind(
        4, 8, kernel, stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode, bias=True
    )
    config = LoRA("0", rank=4, alpha=8)
    model, a, b = randomized(layer, config)
    # as one dense kernel: the layer's own has zeros outside of its groups, and so has B
    dense = torch.zeros(8, 4, *layer.kernel_size)
    wide = torch.zeros(8, 4)
    for g in range(groups):
        out = slice(g * 8 // groups, (g + 1) * 8 // groups)
        inner = slice(g * 4 // groups, (g + 1) * 4 // groups)
        dense[out, inner] = layer.weight.detach()[out]
        wide[out, inner] = b.reshape(8, -1)[out]
    dense += config.scale * torch.einsum("or,r...->o...", wide, a)
    merged = kind(4, 8, kernel, stride, padding=padding, dilation=dilation, padding_mode=mode)
    merged.weight.data, merged.bias.data = dense, layer.bias.data
    close(model, merged, torch.randn(2, 4, 9, 9) if two else torch.randn(2, 4, 9))


def test_initial_values_depend_on_seed_and_name_only() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    both = personalize(backbone, [LoRA("*", rank=2)], seed=3).values()
    one = personalize(backbone, [LoRA("1", rank=2)], seed=3).values()
    other = personalize(backbone, [LoRA("1", rank=2)], seed=4).values()
    assert torch.equal(both["1.lora_A"], one["1.lora_A"])
    assert not torch.equal(both["0.lora_A"], both["1.lora_A"])
    assert not torch.equal(other["1.lora_A"], one["1.lora_A"])


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}], ids=str
)
def test_attention_is_the_one_with_merged_projections(options: dict[str, bool], scale: float) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, **options)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.attn(x, y, y, need_weights=False)[0] + self.attn(x, x, x)[0]

    net = Net().eval()
    model = personalize(net, [LoRA("attn", rank=2, alpha=2 * scale)])
    x, y = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    assert torch.equal(model(x, y), net(x, y))
    model.load_values({name: 0.2 * torch.randn_like(v) for name, v in model.values().items()})
    v = model.values()
    assert list(v) == [f"attn.{below}lora_{m}" for below in ("", "out_proj.") for m in "AB"]
    model(x, y).square().sum().backward()
    merged = copy.deepcopy(net)
    merged.attn.in_proj_weight.data += scale * v["attn.lora_B"] @ v["attn.lora_A"]
    merged.attn.out_proj.weight.data += scale * v["attn.out_proj.lora_B"] @ v["attn.out_proj.lora_A"]
    merged(x, y).square().sum().backward()
    for below, weight in (("attn", "in_proj_weight"), ("attn.out_proj", "weight")):
        whole = getattr(merged.get_submodule(below), weight).grad
        layer = model.backbone.get_submodule(below)
        torch.testing.assert_close(
            layer.lora_B.grad, scale * whole @ v[f"{below}.lora_A"].T, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            layer.lora_A.grad, scale * v[f"{below}.lora_B"].T @ whole, rtol=1e-4, atol=1e-4
        )
        assert weight not in layer.__dict__  # the weights themselves are back
    with torch.no_grad():  # PyTorch takes a fused kernel here
        torch.testing.assert_close(model(x, y), merged(x, y), rtol=1e-4, atol=1e-4)


def test_attention_that_fails_has_its_weights_back() -> None:
    model = personalize(nn.Sequential(nn.MultiheadAttention(4, 2)), [LoRA("0", rank=2)])
    attention = model.backbone[0]
    with pytest.raises((RuntimeError, AssertionError)):
        attention(*[torch.ones(2, 3, 5)] * 3)
    assert "in_proj_weight" not in attention.__dict__


def test_attentions_that_lora_cannot_follow_are_refused() -> None:
    backbone = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)})
    with pytest.raises(ConfigError, match=r"packed nn\.MultiheadAttention") as error:
        personalize(backbone, [LoRA("attn.out_proj")])
    assert "'attn'" in error.value.mend
    assert len(personalize(backbone, [LoRA("attn*")]).device_tensors()) == 4  # the attention takes it with it
    with pytest.raises(ConfigError, match="DoRA is not defined"):
        personalize(backbone, [LoRA("attn", dora=True)])
    other = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, kdim=3)})
    with pytest.raises(ConfigError, match="another width") as error:
        personalize(other, [LoRA("attn")])
    assert "Head('attn')" in error.value.mend
    half = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2).half()})
    with pytest.raises(ConfigError, match=r"in_proj_weight of layer 'attn' is torch\.float16"):
        personalize(half, [LoRA("attn")])


DORA: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(6, 5), torch.randn(2, 3, 6)),
    "no bias": (nn.Linear(6, 5, bias=False), torch.randn(3, 6)),
    "embedding": (nn.Embedding(7, 5), torch.tensor([[0, 3, 6]])),
    "conv1d": (nn.Conv1d(4, 5, 3, dilation=2), torch.randn(2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), torch.randn(2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", DORA)
def test_dora_is_the_merged_weight_with_trained_lengths(name: str) -> None:
    torch.manual_seed(0)
    layer, x = DORA[name]
    model = personalize(nn.Sequential(layer), [LoRA("0", rank=2, alpha=3, dora=True)])
    assert torch.equal(model(x), layer(x))
    model.load_values({n: v + 0.3 * torch.randn_like(v) for n, v in model.values().items()})
    a, b, m = (v.clone().requires_grad_() for v in model.values().values())
    low_rank = a @ b.T if name == "embedding" else (b.flatten(1) @ a.flatten(1)).reshape(layer.weight.shape)
    sums = layer.weight.detach() + 1.5 * low_rank
    rows = sums.T if name == "embedding" else sums.flatten(1)
    factor = m / rows.detach().norm(dim=1)  # section 4.3: a constant in the backward pass
    weight = sums * (factor if name == "embedding" else factor.reshape(-1, *(1,) * (sums.dim() - 1)))
    expected = torch.func.functional_call(layer, {"weight": weight}, (x,))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), (a, b, m))
    found = torch.autograd.grad(model(x).square().sum(), model.train_parameters())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dora_of_a_row_of_zeros_and_of_groups() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data[0] = 0
    model = personalize(nn.Sequential(layer), [LoRA("0", rank=1, dora=True)])
    assert torch.equal(model(torch.ones(1, 3)), layer(torch.ones(1, 3)))
    with pytest.raises(ConfigError, match="has groups, which DoRA"):
        personalize(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), [LoRA("0", rank=2, dora=True)])


def test_manifest_says_dora_only_where_it_is_used() -> None:
    assert "dora" not in LoRA("0").as_dict()
    config = LoRA("0", dora=True)
    assert make_config("lora", config.as_dict()) == config


def test_transformer_layer_of_torch_uses_the_module() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = personalize(nn.Sequential(layer), [LoRA("*.linear1", rank=2)])
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), layer(x), rtol=1e-5, atol=1e-6)
        model.load_values({name: torch.randn_like(v) for name, v in model.values().items()})
        assert not torch.allclose(model(x), layer(x))


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"targets": "0", "rank": 0}, "rank=0"),
        ({"targets": "0", "rank": 2.5}, "not whole"),
        ({"targets": "0", "alpha": -1.0}, "alpha"),
        ({"targets": ()}, "no layer pattern"),
        ({"targets": [""]}, "no layer pattern"),
        ({"targets": "0", "dora": 1}, "neither True nor False"),
    ],
)
def test_wrong_settings_are_named(settings_: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make_config("lora", settings_)


def test_rank_that_does_not_fit_the_groups_is_refused() -> None:
    with pytest.raises(ConfigError, match="no multiple of the 4 groups of layer '0'"):
        personalize(nn.Sequential(nn.Conv1d(4, 4, 1, groups=4)), [LoRA("0", rank=2)])


def test_unknown_kind_lists_near_names() -> None:
    with pytest.raises(UnknownNameError, match="'lora'"):
        make_config("lroa", {})

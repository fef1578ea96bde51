"""What ``personalize`` does around the modules: copies, names, checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile import Adapter, Gate, Head, LoRA, NgramMemory, SoftPrompt, VocabularySlots
from pfl_mobile.errors import ConfigError, RoleConflictError, TensorMismatchError, UnknownNameError
from pfl_mobile.modules import ModuleConfig, make_config, register
from pfl_mobile.modules.insertion import matches
from pfl_mobile.modules.personalize import personalize, tensor_digest
from tests.backbones import cnn, decoder, mlp, tied_decoder

EVERYTHING: list[ModuleConfig] = [
    LoRA(("*.attn.[qv]", "embed", "head"), rank=2),
    Adapter("re:blocks\\.\\d", size=3),
    Gate("*.up"),
    Gate("*.down", on="input"),
    Head("norm"),
    Head("head", only="bias", name="bias"),
    SoftPrompt("embed", 4),
    VocabularySlots("embed", "head", count=5),
    NgramMemory(16, 3, vocabulary=36),
]


def test_all_kinds_work_together() -> None:
    backbone, (tokens,) = decoder()
    digest = tensor_digest(backbone)
    model = personalize(backbone, EVERYTHING, example=(tokens,))
    assert model(tokens).shape == (*tokens.shape, 36)
    assert [row["name"] for row in model.modules_table] == [
        "lora",
        "adapter",
        "gate",
        "gate_2",
        "head",
        "bias",
        "prompt",
        "slots",
        "memory",
    ]
    model.load_values({"slots.active": torch.ones(5)}, partial=True)
    tokens = tokens.clone()
    tokens[0, 1] = 33
    F.cross_entropy(model.forward_for_gradients(tokens).transpose(1, 2), tokens).backward()
    assert all(p.grad is not None for p in model.train_parameters())
    assert model.backbone_digest() == digest


def test_result_does_not_depend_on_the_order_of_the_list() -> None:
    backbone, (tokens,) = decoder()
    one = personalize(backbone, EVERYTHING, example=(tokens,))
    other = personalize(backbone, [EVERYTHING[i] for i in (8, 7, 6, 5, 4, 0, 1, 2, 3)], example=(tokens,))
    assert one.device_tensors() == other.device_tensors()
    with torch.no_grad():
        assert torch.equal(one(tokens), other(tokens))


def test_roles_by_tensor_module_and_setting() -> None:
    backbone, _ = decoder()
    modules = [LoRA("*.attn.[qv]", rank=2), Gate("*.up", role="shared"), NgramMemory(4)]
    model = personalize(
        backbone, modules, roles={"blocks.0.*lora_?": "group", "re:blocks\\.1\\..*lora_A": "shared"}
    )
    roles = {info.name: (info.role, info.group) for info in model.device_tensors()}
    assert roles["blocks.0.attn.q.lora_A"] == ("group", "default")
    assert roles["blocks.1.attn.q.lora_A"] == ("shared", None)
    assert roles["blocks.1.attn.q.lora_B"] == ("personal", None)
    assert roles["blocks.0.up.gate_scale"] == ("shared", None)
    assert roles["memory.next"] == ("personal", None)
    # two patterns that agree are no conflict
    personalize(backbone, modules, roles={"lora": "shared", "*.lora_A": "shared"})
    with pytest.raises(RoleConflictError, match=r"lora_A"):
        personalize(backbone, modules, roles={"lora": "shared", "*.lora_A": "personal"})
    with pytest.raises(ConfigError, match=r"'memory\.next' holds the user's own words"):
        personalize(backbone, [replace(modules[-1], role="shared")])


def test_frozen_tensors_are_listed_once_and_share_storage() -> None:
    backbone, _ = tied_decoder()
    model = personalize(backbone, [LoRA("*.up", rank=2)])
    frozen = model.frozen_tensors()
    assert frozen.keys() == dict(backbone.named_parameters()).keys()
    assert model.backbone.head.weight is model.backbone.embed.weight
    for name, value in backbone.named_parameters():
        assert frozen[name].data_ptr() == value.data_ptr()
        assert not model.get_parameter(model.path(name)).requires_grad
        assert value.requires_grad


def test_frozen_tensors_lie_row_by_row() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.LayerNorm(4))
    backbone = backbone.to(memory_format=torch.channels_last)
    backbone[2].weight = nn.Parameter(torch.randn(4, 4).t())
    backbone[3].bias = nn.Parameter(torch.zeros(1).expand(4))
    model = personalize(backbone, [Head("1")])
    for name, value in [*model.frozen_tensors().items(), *model.values().items()]:
        strides, step = [], 1
        for size in reversed(value.shape):
            strides.insert(0, step)
            step *= size
        assert list(value.stride()) == strides, name
    assert model.backbone_digest() == tensor_digest(backbone)


def test_digest_sees_a_changed_byte() -> None:
    backbone, _ = cnn()
    model = personalize(backbone, [LoRA("head", rank=2)])
    before = model.backbone_digest()
    backbone.features[1].running_mean[0] += 1e-3
    assert model.backbone_digest() != before
    assert model.backbone_digest() == tensor_digest(backbone)


def test_call_replaces_frozen_tensors_too_and_names_unknown_ones() -> None:
    backbone, (x,) = mlp()
    model = personalize(backbone, [LoRA("head", rank=2)])
    with torch.no_grad():
        out = model.call({"head.weight": torch.zeros(4, 16), "head.bias": torch.ones(4)}, x)
        assert torch.equal(out, torch.ones(5, 4))
        assert torch.equal(model(x), backbone(x))
    with pytest.raises(TensorMismatchError, match=r"no tensor 'head\.lora_C'") as caught:
        model.call({"head.lora_C": torch.zeros(1)}, x)
    assert "head.lora_A" in caught.value.mend


class Twice(nn.Module):
    """One layer in three places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.layers = nn.ModuleList([self.first, nn.Linear(4, 4), self.first])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("path", ["first", "layers.0", "layers.2", "*.2", "re:layers\\.2"])
def test_a_layer_in_several_places_gets_one_module_by_any_of_its_names(path: str) -> None:
    for module in (LoRA(path, rank=2), Head(path)):
        model = personalize(Twice(), [module])
        names = [info.name for info in model.device_tensors()]
        assert len(names) == 2
        assert all(name.startswith("first.") for name in names)
        assert not set(names) & model.frozen_tensors().keys()
        assert model.backbone_digest() == tensor_digest(Twice())


def test_a_call_with_other_values_leaves_the_models_own_in_every_place() -> None:
    model, x = personalize(Twice(), [LoRA("first", rank=2)]), torch.randn(3, 4)
    before, output = model.values(), model(x)
    other = {name: value + 1 for name, value in before.items()}
    moved = model.call(other, x)
    assert not torch.allclose(moved, output)
    assert all(torch.equal(value, before[name]) for name, value in model.values().items())
    assert torch.equal(model(x), output)
    model.load_values(other)
    assert torch.equal(model(x), moved)


def test_gradients_of_all_uses_of_a_layer_are_summed() -> None:
    backbone, x = Twice(), torch.randn(3, 4)
    backbone(x).square().sum().backward()
    for module, path in ((Head("layers.2"), "first"), (Head("layers"), "first"), (Head("*"), "first")):
        model = personalize(backbone, [module])
        model(x).square().sum().backward()
        names = [info.name for info in model.device_tensors()]
        grad = model.train_parameters()[names.index(f"{path}.weight")].grad
        torch.testing.assert_close(grad, backbone.first.weight.grad)


def test_a_frozen_weight_that_two_layers_share_is_given_to_both() -> None:
    backbone, (tokens,) = tied_decoder()
    model = personalize(backbone, [LoRA("*.up", rank=2)])
    zeros = torch.zeros_like(backbone.embed.weight)
    assert not bool(model.call({"embed.weight": zeros}, tokens).any())
    assert bool(model(tokens).any())


@pytest.mark.parametrize("pattern", ["module.first", "first", "re:module\\.fir.t", "*first"])
def test_wrappers_are_taken_off_and_their_names_still_match(pattern: str) -> None:
    backbone, x = Twice(), torch.randn(3, 4)
    model = personalize(nn.DataParallel(backbone), [LoRA(pattern, rank=2)], example=(x,))
    assert [info.name for info in model.device_tensors()] == ["first.lora_A", "first.lora_B"]
    assert torch.equal(model(x), backbone(x))
    compiled = personalize(torch.compile(nn.DataParallel(backbone)), [LoRA("_orig_mod.module.first", rank=2)])
    assert torch.equal(compiled(x), backbone(x))
    with pytest.raises(UnknownNameError, match="matches no layer of Twice"):
        personalize(backbone, [LoRA("module.first")])


def test_distributed_is_taken_off(tmp_path: Path) -> None:
    dist, backbone, x = torch.distributed, Twice(), torch.randn(3, 4)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(backbone)
        model = personalize(wrapped, [LoRA("module.first", rank=2)], example=(x,))
    finally:
        dist.destroy_process_group()
    assert torch.equal(model(x), backbone(x))
    assert model.backbone_digest() == tensor_digest(backbone)


WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "weight norm of old": nn.utils.weight_norm,
    "spectral norm of old": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_layers_whose_weight_is_computed(name: str) -> None:
    torch.manual_seed(0)
    backbone, x = nn.Sequential(WEIGHTS[name](nn.Linear(4, 4)), nn.Linear(4, 2)).eval(), torch.randn(3, 4)
    wanted = backbone(x)
    for module in (Head("0"), LoRA("0", rank=2), LoRA("0", rank=2, dora=True)):
        if name.endswith("old") and module.as_dict().get("dora"):
            with pytest.raises(ConfigError, match="is computed by"):
                personalize(backbone, [module])
            continue
        model = personalize(backbone, [module])
        torch.testing.assert_close(model(x), wanted)
        model(x).square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.train_parameters())
        moved = {n: v + 0.3 * torch.randn_like(v) for n, v in model.values().items()}
        model.load_values(moved)
        assert not torch.allclose(model(x), wanted)
        assert torch.equal(backbone(x), wanted)


class Uncalled(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x), self.b.weight)


def test_layer_that_is_never_called_is_found_with_an_example() -> None:
    x = torch.ones(2, 4)
    with pytest.raises(ConfigError, match="'b' is never called"):
        personalize(Uncalled(), [LoRA("b", rank=2)], example=(x,))
    personalize(Uncalled(), [Head("b")], example=(x,))  # a head replaces the weight itself


def _bad_backbones() -> dict[str, tuple[nn.Module, str]]:
    holding = nn.Sequential(nn.Linear(2, 2))
    holding.cache = holding[0](torch.ones(1, 2))
    return {
        "max_norm": (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "layer '0' .* has max_norm"),
        "lazy": (nn.Sequential(nn.LazyLinear(3)), r"'0\.weight' has no shape yet"),
        "no copy": (holding, "cannot be copied"),
        "half": (nn.Sequential(nn.Linear(2, 2)).half(), "float16, not float32"),
        "bfloat16": (nn.Sequential(nn.Linear(2, 2)).bfloat16(), "weight of layer '0' is torch.bfloat16"),
        "a container": (nn.Sequential(nn.Sequential(nn.Linear(2, 2))), "'0' is a Sequential"),
    }


@pytest.mark.parametrize("name", _bad_backbones())
def test_backbone_that_does_not_fit_is_refused(name: str) -> None:
    backbone, text = _bad_backbones()[name]
    with pytest.raises(ConfigError, match=text):
        personalize(backbone, [LoRA("0", rank=1)])


def test_wrong_calls_are_named() -> None:
    backbone, (x,) = mlp()
    with pytest.raises(ConfigError, match="no module to insert"):
        personalize(backbone, [])
    with pytest.raises(ConfigError, match="'lora' is no module"):
        personalize(backbone, ["lora"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="fails on the example input"):
        personalize(backbone, [LoRA("head")], example=(x[:, :3],))
    with pytest.raises(ConfigError, match="returns a tuple"):
        personalize(nn.Sequential(nn.Linear(6, 4), nn.GRU(4, 4)), [LoRA("0")], example=(x,))
    with pytest.raises(UnknownNameError, match=r"'\*\.hed' matches no layer"):
        personalize(backbone, [LoRA("*.hed")])


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("*.attn.qq", "'*.q'"),
        ("blocks.*.attn.qu", "'blocks.*.attn.q'"),
        ("haed", "'head'"),
        ("zzzz", "known: blocks"),
    ],
)
def test_near_names_are_offered_as_patterns(pattern: str, near: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        personalize(decoder()[0], [LoRA(pattern)])
    assert near in caught.value.mend


def test_patterns_are_globs_over_the_whole_path_or_a_regex() -> None:
    assert matches("*.q", "blocks.0.attn.q")
    assert matches("blocks.[01].attn.q", "blocks.1.attn.q")
    assert not matches("q", "blocks.0.attn.q")
    assert not matches("*.Q", "blocks.0.attn.q")
    assert matches("re:.*\\.(q|v)", "blocks.0.attn.v")
    assert not matches("re:attn", "blocks.0.attn.v")


def test_a_new_kind_is_one_registration() -> None:
    with pytest.raises(ConfigError, match="registered twice"):
        register("lora")(LoRA)
    settings: dict[str, Any] = {"targets": ["0"], "rank": 4, "alpha": None}
    assert make_config("lora", settings) == LoRA("0", rank=4)
    with pytest.raises(ConfigError, match="order"):
        make_config("memory", {"order": 0})


@pytest.mark.parametrize(
    "target", ["enc.layers.1.self_attn", "enc.layers.0.self_attn", "enc.layers.1", "enc"]
)
def test_attention_under_a_head_takes_padded_rows(target: str) -> None:
    """PyTorch packs padded rows by what its first layer is; the layers behind it fail where they are trained."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.emb = nn.Embedding(10, 8)
            self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, ids: Tensor) -> Tensor:
            kept = (ids != 0).float().unsqueeze(-1)
            found: Tensor = self.enc(self.emb(ids), src_key_padding_mask=ids == 0) * kept
            return found.sum(1) / kept.sum(1)

    backbone = Encoder().eval()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    with torch.no_grad():
        before = backbone(ids)
    model = personalize(backbone, [Head(target)], example=(ids,))
    after = model(ids)
    after.sum().backward()
    torch.testing.assert_close(after.detach(), before, atol=1e-5, rtol=1e-5)
    assert all(p.grad is not None for p in model.train_parameters())
    layers = backbone.enc
    assert layers.use_nested_tensor  # the backbone itself is left as it was

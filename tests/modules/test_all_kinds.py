"""One suite that every module kind has to pass, on backbones it fits."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from pfl_mobile import Adapter, Experts, Gate, Head, LoRA, NgramMemory, SoftPrompt, VocabularySlots
from pfl_mobile.errors import ConfigError, RoleConflictError, TensorMismatchError, UnknownNameError
from pfl_mobile.modules import KINDS, ModuleConfig, make_config
from pfl_mobile.modules.personalize import PersonalizedModel, personalize, tensor_digest
from tests.backbones import BACKBONES

torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    name: str
    backbone: str
    config: ModuleConfig
    targets: str = "targets"  # the setting that holds the layer pattern, "" for none


CASES = [
    Case("lora-linear", "mlp", LoRA("hidden.*[02]", rank=2)),
    Case("lora-conv2d", "cnn", LoRA(("features.0", "features.3", "features.6"), rank=8)),
    Case("lora-conv1d", "sensor", LoRA(("first", "second"), rank=4, alpha=8)),
    Case("lora-embedding", "lstm", LoRA(("embed", "head"), rank=2)),
    Case("lora-attention", "modern_decoder", LoRA("re:.*attn\\.(q|v)", rank=2)),
    Case("adapter-linear", "gru", Adapter("proj", size=3)),
    Case("adapter-conv", "cnn", Adapter("features.[1457]", size=3, activation="tanh")),
    Case("adapter-block", "encoder", Adapter("re:blocks\\.\\d", size=3, activation="silu")),
    Case("experts", "mlp", Experts("hidden.*[02]", count=3, rank=2, top_k=2)),
    Case("experts-one", "decoder", Experts("*.attn.[qv]", count=4, rank=2, top_k=1)),
    Case("experts-all", "encoder", Experts("blocks.*.up", count=2, rank=3)),
    Case("gate-output", "decoder", Gate(("*.attn.[kv]", "*.ln1"))),
    Case("gate-conv", "sensor", Gate(("first", "second"))),
    Case("gate-input", "modern_decoder", Gate("*.down", on="input")),
    Case("head", "cnn", Head("head")),
    Case("head-gru", "gru", Head("rnn")),
    Case("head-block", "decoder", Head("blocks.1")),
    Case("head-tied", "tied_decoder", Head("head")),
    Case("head-bias", "tied_decoder", Head(("head", "*.up"), only="bias")),
    Case("head-bias-conv", "cnn", Head("features.0", only="bias")),
    Case("head-outputs", "mlp", Head("head", outputs=7)),
    Case("prompt", "decoder", SoftPrompt("embed", length=3), "target"),
    Case("prompt-rope", "modern_decoder", SoftPrompt("embed", length=3, init="normal"), "target"),
    Case("prompt-lstm", "lstm", SoftPrompt("embed", length=2), "target"),
    Case("slots", "decoder", VocabularySlots("embed", "head", count=3), "embedding"),
    Case("slots-tied", "tied_decoder", VocabularySlots("embed", "head", count=3), "output"),
    Case("slots-gru", "gru", VocabularySlots("embed", "head", count=3), "embedding"),
    Case("memory", "decoder", NgramMemory(capacity=8, order=3, vocabulary=31), ""),
    Case("memory-shared", "decoder", NgramMemory(8, 3, vocabulary=31, shared=16, followers=4), ""),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def build(
    case: Case, roles: dict[str, str] | None = None, groups: dict[str, str] | None = None
) -> tuple[nn.Module, tuple[Tensor, ...], PersonalizedModel]:
    backbone, example = BACKBONES[case.backbone]()
    return (
        backbone,
        example,
        personalize(backbone, [case.config], roles=roles, groups=groups, example=example),
    )


def changed(model: PersonalizedModel) -> dict[str, Tensor]:
    """Other values for every device tensor; all slots assigned."""
    generator = torch.Generator().manual_seed(1)
    values = model.values()
    for info in model.device_tensors():
        value = values[info.name]
        if info.update == "assign":
            values[info.name] = torch.ones_like(value)
        elif value.is_floating_point():
            values[info.name] = value + 0.3 * torch.randn(value.shape, generator=generator)
        else:
            values[info.name] = torch.randint(1, 9, value.shape, generator=generator)
    return values


def personal(case: Case, example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The example as a user's own text: with slot ids where there are slots."""
    if case.config.kind != "slots":
        return example
    tokens = example[0].clone()
    words = 29 if case.backbone == "gru" else 31
    tokens[:, 2], tokens[0, 3] = words, words + 2
    return (tokens,)


def test_every_registered_kind_is_in_this_suite() -> None:
    own = {"mixture"}  # has no tensors of its own: test_mixture.py
    assert {case.config.kind for case in CASES} | own == set(KINDS.names())


@every
def test_config_survives_the_manifest(case: Case) -> None:
    _, _, model = build(case)
    (row,) = json.loads(json.dumps(model.modules_table))
    assert row["name"] == row["kind"] == case.config.kind
    assert make_config(row["kind"], row["config"]) == case.config


@every
def test_config_is_frozen_and_its_settings_are_checked(case: Case) -> None:
    with pytest.raises(FrozenInstanceError):
        case.config.name = "other"  # type: ignore[misc]
    with pytest.raises(UnknownNameError, match="no setting 'rnak'"):
        make_config(case.config.kind, {"rnak": 1})
    with pytest.raises(ConfigError, match="role 'privat' is unknown"):
        replace(case.config, role="privat")
    with pytest.raises(ConfigError, match="not an identifier"):
        replace(case.config, name="a b")


@every
def test_fresh_module_is_neutral_where_it_says_so(case: Case) -> None:
    backbone, example, model = build(case)
    with torch.no_grad():
        before, after = backbone(*example), model(*example)
    if case.config.kind == "memory":
        assert torch.equal(after, F.log_softmax(before, -1))
    elif case.config.neutral:
        # the recurrent kernels round differently for weights that need no gradient
        tolerance = 1e-6 if case.backbone in ("gru", "lstm") else 0.0
        torch.testing.assert_close(after[..., : before.shape[-1]], before, rtol=0, atol=tolerance)
        assert torch.equal(F.softmax(after, -1)[..., before.shape[-1] :].sum(), torch.tensor(0.0))
    else:
        assert after.shape[:-1] == before.shape[:-1]
        assert not torch.equal(after, before)
    assert case.config.neutral == model.neutral


@every
def test_backbone_keeps_its_bytes_and_its_state(case: Case) -> None:
    backbone, example = BACKBONES[case.backbone]()
    digest, names = tensor_digest(backbone), list(backbone.state_dict())
    backbone.train()
    model = personalize(backbone, [case.config], example=example)
    assert backbone.training
    assert all(p.requires_grad for p in backbone.parameters())
    assert list(backbone.state_dict()) == names
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in backbone.modules())
    optimizer = torch.optim.AdamW(model.train_parameters(), lr=0.1) if model.train_parameters() else None
    model.train()
    for _ in range(2):
        if optimizer is not None:
            optimizer.zero_grad()
            model.forward_for_gradients(*example).square().mean().backward()
            optimizer.step()
    assert model.backbone_digest() == digest == tensor_digest(backbone)
    assert not any(layer.training for layer in model.modules())


@every
def test_frozen_tensors_use_the_storage_of_the_backbone(case: Case) -> None:
    backbone, _, model = build(case)
    theirs = {value.data_ptr() for value in [*backbone.parameters(), *backbone.buffers()]}
    own = tuple(f"{name}.{part}." for name in model.configs for part in ("gate", "shared"))
    for name, value in model.frozen_tensors().items():
        assert value.data_ptr() in theirs or name.startswith(own)
    assert not set(model.frozen_tensors()) & set(model.values())


@every
def test_gradients_flow_to_device_tensors_only(case: Case) -> None:
    _, example, model = build(case)
    example = personal(case, example)
    model.load_values(changed(model))
    trained = {info.name for info in model.device_tensors() if info.update == "gradient"}
    assert len(model.train_parameters()) == len(trained)
    assert bool(trained) == case.config.in_gradients
    if not trained:
        return
    torch.tanh(model.forward_for_gradients(*example)).square().mean().backward()
    with_gradient = {n.split(".", 1)[1] for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert all(bool(p.grad.abs().sum() > 0) for p in model.train_parameters())


@every
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    _, example, model = build(case)
    example = personal(case, example)
    model.load_values(changed(model))
    model.double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example)
    parameters = model.train_parameters()
    if not parameters:
        pytest.skip("nothing is trained by gradient")

    def loss() -> Tensor:
        return torch.tanh(model.forward_for_gradients(*inputs)).square().sum()

    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(
        (g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), direction, strict=True)
    )
    values, step = [], 1e-5
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(loss())
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * step)
    numeric = (values[0] - values[1]) / (2 * step)
    assert float(slope) == pytest.approx(float(numeric), rel=1e-4, abs=1e-6)


@every
def test_names_and_values_are_deterministic(case: Case) -> None:
    _, _, one = build(case)
    _, _, two = build(case)
    assert one.device_tensors() == two.device_tensors()
    names = [info.name for info in one.device_tensors()]
    assert names == sorted(names) == list(one.values())
    for name, value in one.values().items():
        assert torch.equal(value, two.values()[name])
    for info in one.device_tensors():
        assert info.shape == tuple(one.values()[info.name].shape)
        assert info.module == case.config.kind
        assert info.role == "personal"
        assert info.in_gradients == case.config.in_gradients


@every
def test_values_round_trip_and_act(case: Case) -> None:
    _, example, model = build(case)
    example = personal(case, example)
    start = model.values()
    with torch.no_grad():
        before = model(*example)
        model.load_values({name: value.numpy() for name, value in changed(model).items()})
        after = model(*example)
        assert not torch.allclose(before, after)
        for name, value in model.values().items():
            assert not torch.equal(value, start[name])
            assert np.shares_memory(start[name].numpy(), value.numpy()) is False
        model.load_values(start)
        assert torch.equal(model(*example), before)


@every
def test_values_are_checked_before_anything_changes(case: Case) -> None:
    _, _, model = build(case)
    start = model.values()
    first = next(iter(start))
    bad = changed(model)
    with pytest.raises(TensorMismatchError, match="missing"):
        model.load_values({})
    with pytest.raises(TensorMismatchError, match="no device tensor"):
        model.load_values({**bad, first + "x": bad[first]})
    with pytest.raises(TensorMismatchError, match=first):
        model.load_values({**bad, first: bad[first][1:]})
    with pytest.raises(TensorMismatchError, match="float64"):
        model.load_values({**bad, first: bad[first].double()})
    assert all(torch.equal(value, start[name]) for name, value in model.values().items())
    model.load_values({first: bad[first]}, partial=True)
    assert torch.equal(model.values()[first], bad[first])


@every
def test_call_is_a_pure_function_that_make_fx_traces(case: Case) -> None:
    _, example, model = build(case)
    example = personal(case, example)
    values = changed(model)
    start = model.values()
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        graph = make_fx(lambda v, *x: model.call(v, *x))(model.values(), *example)
        expected = model.call(values, *example)
        assert all(torch.equal(value, start[name]) for name, value in model.values().items())
        torch.testing.assert_close(graph(values, *example), expected, rtol=1e-5, atol=1e-6)
        model.load_values(values)
        torch.testing.assert_close(model(*example), expected, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_model_can_be_copied_and_pickled(case: Case, way: object) -> None:
    _, example, model = build(case)
    example = personal(case, example)
    with torch.no_grad():
        model.load_values(changed(model))
        before = model(*example)
        other = way(model)  # type: ignore[operator]
        assert torch.equal(other(*example), before)
        other.load_values(build(case)[2].values())
        assert torch.equal(model(*example), before)
    assert other.backbone_digest() == model.backbone_digest()


@every
def test_pattern_that_matches_nothing_lists_near_names(case: Case) -> None:
    if not case.targets:
        pytest.skip("has no target")
    backbone, _ = BACKBONES[case.backbone]()
    good = getattr(case.config, case.targets)
    good = good if isinstance(good, str) else good[0]
    name = next(n for n, _ in backbone.named_modules() if n and not n.startswith("blocks"))
    for wrong in (name + "x", f"re:{name}x+"):
        with pytest.raises(UnknownNameError, match="matches no layer") as caught:
            personalize(backbone, [replace(case.config, **{case.targets: wrong})])
        assert f"'{name}'" in caught.value.mend
    with pytest.raises(ConfigError, match="no valid regex"):
        personalize(backbone, [replace(case.config, **{case.targets: "re:("})])


@every
def test_layer_of_an_unsupported_type_is_named(case: Case) -> None:
    if case.config.kind in ("memory", "head"):
        pytest.skip("takes every layer")
    torch.manual_seed(0)
    backbone = nn.Sequential()
    backbone.add_module("rnn", nn.GRU(4, 4, batch_first=True))
    backbone.add_module("embed", nn.Embedding(5, 4))
    backbone.add_module("bag", nn.EmbeddingBag(5, 4))
    path = "bag" if case.config.kind == "lora" else "rnn"
    with pytest.raises(ConfigError, match=f"'{path}'"):
        personalize(backbone, [replace(case.config, **{case.targets: path})])


@every
def test_roles_come_from_patterns_and_conflicts_are_errors(case: Case) -> None:
    private = case.config.kind in ("slots", "memory")
    if private:
        with pytest.raises(ConfigError, match="user's own words"):
            build(case, roles={"*": "shared"})
        return
    _, _, model = build(case, roles={case.config.kind: "shared"})
    assert {info.role for info in model.device_tensors()} == {"shared"}
    last = model.device_tensors()[-1].name
    _, _, model = build(case, roles={last: "group"}, groups={last: "region"})
    assert [(i.role, i.group) for i in model.device_tensors() if i.name == last] == [("group", "region")]
    with pytest.raises(RoleConflictError, match=last):
        build(case, roles={"*": "shared", last: "group"})
    with pytest.raises(RoleConflictError, match="setting of module"):
        build(replace(case, config=replace(case.config, role="personal")), roles={last: "shared"})
    with pytest.raises(UnknownNameError, match="matches no device tensor") as caught:
        build(case, roles={last + "x": "shared"})
    assert last in caught.value.mend
    with pytest.raises(UnknownNameError, match="role 'publik'"):
        build(case, roles={last: "publik"})
    with pytest.raises(ConfigError, match="put into group"):
        build(case, groups={last: "region"})


@every
def test_two_modules_on_one_place_are_named_apart_or_refused(case: Case) -> None:
    backbone, example = BACKBONES[case.backbone]()
    with pytest.raises(ConfigError, match="two modules are called"):
        personalize(backbone, [replace(case.config, name="same"), replace(case.config, name="same")])
    if case.targets:
        with pytest.raises(ConfigError, match=r"already|trainable"):
            personalize(backbone, [case.config, case.config], example=example)


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

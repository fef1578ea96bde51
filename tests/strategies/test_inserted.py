"""Strategies that insert modules: what they insert, whose it is, and that the backbone stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import PersonalizedModel, personalize, tensor_digest
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.programs.tasks import ClassificationTask, Task, TokenTask, tilted_task
from pfl_mobile.strategies import Local, RoundContext, Strategy, create
from pfl_mobile.strategies.inserted import attention_layers, first_layer, inner_layers, token_embedding
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient
from tests.backbones import BACKBONES

CASES = {
    "lora": ({}, {"personal"}),
    "lora half": ({"share": "half"}, {"shared", "personal"}),
    "lora all": ({"share": "all"}, {"shared"}),
    "adapter": ({}, {"personal"}),
    "adapter all": ({"share": "all"}, {"shared"}),
    "prompt_tuning": ({"length": 5}, {"personal"}),
    "prompt_tuning all": ({"share": "all"}, {"shared"}),
    "moe": ({"count": 3, "top_k": 1}, {"shared", "personal"}),
}
every = pytest.mark.parametrize("case", CASES)


def build(case: str) -> tuple[Strategy, nn.Module, torch.Tensor, PersonalizedModel]:
    backbone, (x,) = BACKBONES["decoder" if "prompt" in case else "mlp"]()
    strategy = create(case.split()[0], **CASES[case][0])
    model = personalize(backbone, strategy.modules(backbone), roles=strategy.roles(), example=(x,))
    return strategy, backbone, x, model


def rows(x: torch.Tensor, seed: int, size: int) -> dict[str, torch.Tensor]:
    """Examples of one device: tokens with the next one as label, or features with a class."""
    generator = torch.Generator().manual_seed(seed)
    if x.dtype == torch.int64:
        tokens = torch.randint(4, 20, (size, x.shape[1]), generator=generator)
        return {"tokens": tokens, "labels": tokens.roll(-1, 1), "weight": torch.ones(tokens.shape)}
    features = torch.randn(size, x.shape[1], generator=generator)
    return {
        "x": features,
        "labels": torch.randint(4, (size,), generator=generator),
        "weight": torch.ones(size),
    }


def train(
    strategy: Strategy, model: PersonalizedModel, x: torch.Tensor, lanes: int = 2, tilt: float = 0.0
) -> list[dict[str, np.ndarray]]:
    """Two devices with examples of their own, five steps."""
    task: Task = TokenTask(int(model(x).shape[-1])) if x.dtype == torch.int64 else ClassificationTask(4)
    trainer = CohortTrainer(model, tilted_task(task, tilt), rows(x, 9, 2), lanes=lanes)
    local = Local(epochs=None, steps=5, optimizer=Sgd(lr=0.5))
    plan = strategy.plan(RoundContext(model.device_tensors(), local))
    start = {n: v.numpy() for n, v in model.values().items()}
    clients = [
        SimulatedClient({n: v.numpy() for n, v in rows(x, seed, 2 + seed).items()}, seed, {}, {}, {})
        for seed in (0, 1)
    ]
    outcomes = trainer.run(plan, clients, start, {"initial": start, "global": start})
    assert [o.failure for o in outcomes] == [None, None]
    return [o.tensors for o in outcomes]


@every
def test_roles_say_what_travels(case: str) -> None:
    strategy, _, _, model = build(case)
    table = model.device_tensors()
    assert {t.role for t in table} == CASES[case][1]
    plan = strategy.plan(RoundContext(table, Local()))
    assert bool(plan.upload) == ("shared" in CASES[case][1])
    if case == "lora half":
        assert all((t.role == "shared") == t.name.endswith("lora_A") for t in table)
    if case == "moe":
        assert all((t.role == "personal") == ("expert_gate" in t.name) for t in table)


@every
def test_training_changes_the_module_and_not_the_backbone(case: str) -> None:
    strategy, backbone, x, model = build(case)
    before, start = tensor_digest(backbone), model.values()
    one, other = train(strategy, model, x)
    assert tensor_digest(backbone) == before == model.backbone_digest()
    assert one.keys() == other.keys() == start.keys()
    for name in start:
        assert not np.array_equal(one[name], start[name].numpy())
        assert not np.array_equal(one[name], other[name])


@pytest.mark.parametrize("length", [1, 5])
def test_a_prompt_has_the_length_that_was_asked(length: int) -> None:
    backbone, (tokens,) = BACKBONES["decoder"]()
    model = personalize(backbone, create("prompt_tuning", length=length).modules(backbone), example=(tokens,))
    ((name, value),) = model.values().items()
    assert name == "embed.prompt"
    assert value.shape == (length, backbone.embed.embedding_dim)
    assert model(tokens).shape == backbone(tokens).shape


@pytest.mark.parametrize(("case", "tilt"), [("moe", 0.0), ("lora", 2.0)])
def test_lanes_do_not_mix_gates_or_tilts_of_devices(case: str, tilt: float) -> None:
    strategy, _, x, model = build(case)
    alone, together = (train(strategy, model, x, lanes, tilt) for lanes in (1, 2))
    for one, other in zip(alone, together, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_layers_are_found() -> None:
    decoder, mlp = BACKBONES["decoder"]()[0], BACKBONES["mlp"]()[0]
    assert {path.rpartition(".")[2] for path in attention_layers(decoder)} == {"q", "v"}
    assert attention_layers(mlp) == inner_layers(mlp) == ("hidden.0", "hidden.2")
    assert "head" not in inner_layers(decoder)
    assert inner_layers(nn.Sequential(nn.Linear(2, 2))) == ("0",)
    assert token_embedding(decoder) == "embed"
    assert token_embedding(mlp) is None
    assert first_layer(mlp) == "hidden.0"


def test_a_prompt_of_features_is_added_to_what_the_first_layer_gives() -> None:
    backbone, _ = BACKBONES["mlp"]()[:2]
    strategy = create("prompt_tuning")
    model = personalize(backbone, strategy.modules(backbone), roles=strategy.roles())
    assert [t.name for t in model.device_tensors()] == ["hidden.0.bias_delta"]
    x = torch.randn(3, backbone.hidden[0].in_features)
    prompt = torch.randn_like(x[0])
    model.load_values({"hidden.0.bias_delta": backbone.hidden[0].weight @ prompt})
    torch.testing.assert_close(model(x), backbone.eval()(x + prompt))


def test_a_backbone_without_such_layers_is_an_error() -> None:
    backbone = nn.Sequential(nn.Conv1d(2, 2, 1))
    for name in ("lora", "adapter", "moe", "prompt_tuning"):
        with pytest.raises(ConfigError, match=r"linear layer"):
            create(name).modules(backbone)


def test_more_experts_than_there_are_cannot_count() -> None:
    with pytest.raises(ConfigError, match="top_k"):
        create("moe", count=2, top_k=3).modules(nn.Sequential(nn.Linear(2, 2)))

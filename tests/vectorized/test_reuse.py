"""Studies of one model share what is made of its trace, and nothing that another model, loss or weight would make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pfl_mobile import ClassificationTask, CustomTask, Head, LoRA, personalize
from pfl_mobile.modules.model import PersonalizedModel
from pfl_mobile.programs.tasks import Task
from pfl_mobile.vectorized import reuse, steps
from pfl_mobile.vectorized.compiled import Graph, trace_step
from pfl_mobile.vectorized.steps import Steps
from tests.vectorized.inputs import different

CPU = torch.device("cpu")
BATCH = {
    "x": torch.linspace(-1, 1, 12).reshape(3, 4),
    "labels": torch.tensor([0, 1, 2]),
    "weight": torch.ones(3),
}


class Net(nn.Module):
    def __init__(self, seed: int = 0, activation: str = "tanh") -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head, self.activation = nn.Linear(4, 6), nn.Linear(6, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(getattr(torch, self.activation)(self.body(x)))


def model(seed: int = 0, activation: str = "tanh", rank: int = 2) -> PersonalizedModel:
    """Frozen but for the factors of its body."""
    return personalize(Net(seed, activation).eval(), [LoRA("body", rank=rank)])


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_made", {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was made anew."""
    calls: list[str] = []

    def counted(name: str):
        stock = getattr(steps, name)

        def call(*args, **kwargs):
            calls.append(name)
            return stock(*args, **kwargs)

        return call

    for name in ("stacked", "emit"):
        monkeypatch.setattr(steps, name, counted(name))
    return calls


def outputs(own: PersonalizedModel, task: Task | None = None, lanes: int = 3, **options) -> list[Tensor]:
    """Of a step for several lanes."""
    found = Steps(own, task or ClassificationTask(3), BATCH, CPU)
    inputs = different(trace_step(own, task or ClassificationTask(3), BATCH), lanes)
    values = [inputs[name] for name in found.inputs("step", lanes)]
    return [torch.as_tensor(v) for v in found.function("step", lanes, **options)(*values)]


def anew(*args, **kwargs) -> list[Tensor]:
    """The same with nothing to be reused."""
    reuse._made.clear()
    return outputs(*args, **kwargs)


def test_another_study_of_the_same_model_makes_nothing(made: list[str]) -> None:
    first = outputs(model())
    assert made == ["stacked", "emit"]
    assert all(map(torch.equal, outputs(model()), first))
    assert made == ["stacked", "emit"]


OTHERS = {
    "frozen weights": lambda: (model(seed=1),),
    "forward": lambda: (model(activation="relu"),),
    "shape": lambda: (model(rank=1),),
    "modules": lambda: (personalize(Net().eval(), [Head("head")]),),
    "loss": lambda: (
        model(),
        CustomTask(lambda output, batch: output[:, 0] * batch["weight"], labels=("labels",)),
    ),
    "constant of the loss": lambda: (
        model(),
        CustomTask(lambda output, _: -0.0 * output[:, 0] + output[:, 1]),
    ),
    "the other zero": lambda: (model(), CustomTask(lambda output, _: 0.0 * output[:, 0] + output[:, 1])),
    "lanes": lambda: (model(), None, 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_is_made_and_is_what_it_would_be_alone(name: str, made: list[str]) -> None:
    for other in OTHERS.values():  # what could be taken for it
        if other is not OTHERS[name]:
            outputs(*other())
    outputs(model())
    made.clear()
    found = outputs(*OTHERS[name]())
    assert "emit" in made
    assert all(map(torch.equal, found, anew(*OTHERS[name]())))


def test_options_of_a_function_are_part_of_it() -> None:
    wanted = [anew(model(), names=["body.lora_A"]), anew(model(), names=["body.lora_B"]), anew(model())]
    reuse._made.clear()
    found = [
        outputs(model(), names=["body.lora_A"]),
        outputs(model(), names=["body.lora_B"]),
        outputs(model()),
    ]
    for one, other in zip(found, wanted, strict=True):
        assert len(one) == len(other)
        assert all(map(torch.equal, one, other))


def test_weights_that_change_later_reach_nothing_that_is_kept() -> None:
    first = model()
    before = outputs(first)
    with torch.no_grad():
        for value in first.frozen_tensors().values():
            value.mul_(2)
    assert all(map(torch.equal, outputs(model()), before))
    changed = outputs(first)
    assert not torch.equal(changed[0], before[0])
    assert all(map(torch.equal, changed, anew(first)))


def test_an_error_is_raised_again_and_not_kept() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reuse.reused("key", fails)
    assert reuse.reused("key", lambda: 1) == 1


def test_what_was_not_used_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MOST", 2)
    for key in ("a", "b", "a", "c"):
        reuse.reused(key, lambda key=key: key)
    assert list(reuse._made) == ["a", "c"]


def test_large_models_and_graphs_of_other_operators_are_not_kept(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reuse.key_of(graph) == reuse.key_of(graph)
    monkeypatch.setattr(reuse, "MOST_BYTES", 1000)
    assert reuse.key_of(graph, 16) is None
    found = torch.fx.Graph()
    found.output((found.call_function(len, (found.placeholder("x"),)),))
    module = torch.fx.GraphModule({}, found)
    assert reuse.key_of(Graph(module, {"x": torch.ones(1)}, ("n",))) is None
    assert reuse.reused(None, lambda: 2) == 2
    assert not reuse._made

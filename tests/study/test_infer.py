from __future__ import annotations

import pytest
import torch
from torch import nn

from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.study.infer import infer_task, personalized


class Net(nn.Module):
    def __init__(self, tie=False, loose=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)
        if tie:
            self.body[2].weight = nn.Parameter(self.body[2].weight)
            self.other = nn.Linear(8, 8)
            self.other.weight = self.body[2].weight
        if loose:
            self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.head(self.body(x))


def roles(model):
    return {t.name: t.role for t in model.device_tensors()}


def test_everything_is_shared_by_default():
    found = roles(personalized(Net(), shared=None, personal=None))
    assert set(found.values()) == {"shared"}
    assert len(found) == 6


def test_the_rest_is_shared_beside_personal_layers():
    found = roles(personalized(Net(), shared=None, personal=["head"]))
    assert {n for n, r in found.items() if r == "personal"} == {"head.weight", "head.bias"}
    assert len(found) == 6


def test_named_layers_alone_are_trained():
    found = roles(personalized(Net(), shared=["body"], personal=["head"]))
    assert len(found) == 6
    found = roles(personalized(Net(loose=True), shared=["body.0"], personal=["head"]))
    assert {n for n, r in found.items() if r == "shared"} == {"body.0.weight", "body.0.bias"}


def test_unknown_layers_are_refused_with_near_names():
    with pytest.raises(UnknownNameError, match="haed") as error:
        personalized(Net(), shared=None, personal=["haed"])
    assert "head" in error.value.mend


@pytest.mark.parametrize(
    ("model", "kwargs", "text"),
    [
        (Net(tie=True), {"shared": None, "personal": None}, "one tensor"),
        (Net(loose=True), {"shared": None, "personal": None}, "of its own"),
        (Net(), {"shared": ["*"], "personal": ["head"]}, "shared= and by personal="),
        (nn.ReLU(), {"shared": None, "personal": None}, "no parameters"),
    ],
)
def test_models_that_cannot_be_split_are_refused(model, kwargs, text):
    with pytest.raises(ConfigError, match=text):
        personalized(model, **kwargs)


def test_the_task_follows_from_labels_and_outputs():
    x, weight = torch.zeros(2, 4), torch.ones(2)
    found, why = infer_task(Net(), {"x": x, "labels": torch.zeros(2, dtype=torch.int64), "weight": weight})
    assert (found.kind, found.classes) == ("classification", 3)
    assert why == "labels are int64 [rows] with nothing but 0; the model gives [rows, 3]"
    found, why = infer_task(Net(), {"x": x, "labels": torch.tensor([[0.5, 2, -1]] * 2), "weight": weight})
    assert found.kind == "regression"
    assert why == "labels are float32 [rows, 3] with numbers from -1 to 2; the model gives [rows, 3]"
    with pytest.raises(ConfigError, match="fits no known task"):
        infer_task(Net(), {"x": x, "labels": torch.zeros(2, 2), "weight": weight})
    with pytest.raises(ConfigError, match="labels"):
        infer_task(Net(), {"x": x, "weight": weight})
    with pytest.raises(ConfigError, match="forward"):
        infer_task(Net(), {"x": x[:, :2], "labels": torch.zeros(2, 3), "weight": weight})


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.layers[1].eval()

    def forward(self, x):
        return self.layers(x)


def test_looking_at_a_model_leaves_no_trace():
    model = Noisy()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    batch = {"x": torch.randn(2, 4), "labels": torch.zeros(2, dtype=torch.int64), "weight": torch.ones(2)}
    before = torch.random.get_rng_state()
    infer_task(model, batch)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.layers] == [True, False, True, True]
    assert model.training


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


def test_models_and_labels_that_fit_no_task_are_told_how_to():
    x, weight = torch.zeros(2, 4), torch.ones(2)
    with pytest.raises(ConfigError, match="returns a tuple"):
        infer_task(Pair(), {"x": x, "labels": torch.zeros(2, dtype=torch.int64), "weight": weight})
    with pytest.raises(ConfigError, match="fits no known task") as error:
        infer_task(nn.Linear(4, 1), {"x": x, "labels": torch.zeros(2), "weight": weight})
    assert "labels.reshape(-1, 1)" in error.value.mend


def test_ids_of_a_users_own_tokens_are_all_words():
    net = nn.Embedding(5, 5)
    tokens = torch.tensor([[0, 1, 2]])
    batch = {"tokens": tokens, "labels": tokens, "weight": torch.ones(1, 3)}
    assert (infer_task(net, batch)[0].specials, infer_task(net, batch, specials=4)[0].top_k) == (0, 1)

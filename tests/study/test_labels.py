"""What labels may be, and what is said where they fit no task or several: the real thing and a mend that works."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfl_mobile import ClassificationTask, CustomTask, Machine, RegressionTask, Study, TokenTask
from pfl_mobile.data.populations import ArrayPopulation, GeneratedPopulation
from pfl_mobile.errors import ConfigError, DataError, PflError
from pfl_mobile.rows import Rows
from pfl_mobile.study.labels import LabelFacts, task_of

Change = Callable[[np.ndarray], Any]


class Net(nn.Module):
    def __init__(self, k=3, squeeze=False):
        super().__init__()
        self.head, self.squeeze = nn.Linear(6, k), squeeze

    def forward(self, x):
        return self.head(x).squeeze(-1) if self.squeeze else self.head(x)


def users(change: Change, count=3) -> dict[str, dict[str, Any]]:
    found = {}
    for i in range(count):
        g = np.random.default_rng(i)
        y = np.arange(20) % 3
        g.shuffle(y)
        found[f"u{i}"] = {"x": g.normal(size=(20, 6)).astype(np.float32), "labels": change(y)}
    return found


def study(change: Change, k=3, squeeze=False, **settings):
    return Study(lambda: Net(k, squeeze), users(change), machine=Machine(processes=0), **settings)


TAKEN = {
    "int64": lambda y: y,
    "int32": lambda y: y.astype(np.int32),
    "uint8": lambda y: y.astype(np.uint8),
    "uint64": lambda y: y.astype(np.uint64),
    "a list": lambda y: y.tolist(),
    "a tensor": torch.from_numpy,
}


@pytest.mark.parametrize("name", TAKEN)
def test_whole_numbers_of_any_kind_are_classes(name):
    found = study(TAKEN[name])
    assert found.task == ClassificationTask(3)
    said = "labels are int64 [rows] with whole numbers from 0 to 2; the model gives [rows, 3]"
    assert found.effective()["task_from"] == f"inferred: {said}"
    assert json.loads(json.dumps(found.effective()))["task"] == "classification"


def test_a_task_that_is_given_is_said_to_be():
    assert study(lambda y: y, task=ClassificationTask(3)).effective()["task_from"] == "given"


@pytest.mark.parametrize(
    ("change", "k"),
    [
        (lambda y: y[:, None] * 0.5, 1),
        (lambda y: y.astype(np.float32)[:, None], 1),
        (lambda y: np.stack([y, y + 0.5, -y], 1), 3),
    ],
)
def test_real_values_of_the_output_s_shape_are_regression(change, k):
    found = study(change, k)
    assert found.task == RegressionTask()
    assert "float32" in found.effective()["task_from"]


ONE = {"k": 1}
#: Labels, settings, and what the message and the mend name.
UNFIT: dict[str, tuple[Change, dict[str, Any], list[str]]] = {
    "one-hot float": (lambda y: np.eye(3)[y], {}, ["float32 [rows, 3]", "one-hot", "argmax(1)", "RegressionTask("]),
    "shares": (lambda y: np.eye(3)[y] * 0.4 + 0.2, {}, ["add up to 1", "CustomTask(soft)", "RegressionTask("]),
    "multi-hot float": (
        lambda y: (y[:, None] >= np.arange(3)).astype(float),
        {},
        ["yes and no", "CustomTask(bce)", "RegressionTask("],
    ),
    "0/1 [n, 1]": (lambda y: (y[:, None] > 0) * 1.0, ONE, ["[rows, 1]", "0 and 1", "bce", "ClassificationTask(2)"]),
    "0/1 [n]": (lambda y: (y > 0).astype(float), ONE, ["float32 [rows] ", "reshape(-1, 1)", "bce", "RegressionTask("]),
    "0/1 [n], output [n]": (lambda y: (y > 0) * 1.0, {"k": 1, "squeeze": True}, ["gives [rows]:", "bce"]),
    "-1/+1": (lambda y: (y > 0)[:, None] * 2.0 - 1, ONE, ["-1 and 1", "labels 0 and 1"]),
    "one-hot int": (lambda y: np.eye(3, dtype=int)[y], {}, ["int64 [20, 3]", "'weight'", "argmax(1)"]),
    "multi-hot int": (lambda y: (y[:, None] >= np.arange(3)).astype(int), {}, ["[20, 3]", "astype(np.float32)"]),
    "per position": (lambda y: np.tile(y[:, None], 5), {}, ["int64 [20, 5]", "each position", "float32 weights"]),
    "column": (lambda y: y[:, None], {}, ["int64 [rows, 1]", "reshape(-1)"]),
    "float classes": (lambda y: y * 1.0, {}, ["float32 [rows]", "from 0 to 2", "[rows, 3]", "astype(np.int64)"]),
    "float column": (lambda y: y[:, None] * 1.0, {}, ["float32 [rows, 1]", "reshape(-1).astype(np.int64)"]),
    "counted from 1": (lambda y: y + 1, {}, ["1 to 3", "0..2", "labels - 1"]),
    "unknown -1": (lambda y: np.where(y == 2, -1, y), {}, ["label -1", "0..2", "weight 0"]),
    "ids": (lambda y: y + 2**40, {}, ["1099511627778", "np.unique"]),
    "too many classes": (lambda y: y * 5, {}, ["label 10 is not in 0..2", "as many outputs"]),
    "bool": (lambda y: y > 0, {"k": 2}, ["bool", "astype(np.int64)"]),
    "bool, one output": (lambda y: y > 0, ONE, ["bool", "bce", "astype(np.int64)"]),
    "int 0/1, one output": (lambda y: (y > 0) * 1, ONE, ["two classes and one output", "two outputs", "bce"]),
    "int targets": (lambda y: y * 7, ONE, ["int64 [rows]", "0 to 14", "astype(np.float32).reshape(-1, 1)"]),
    "int columns": (lambda y: np.stack([y, y], 1) * 7, {"k": 2}, ["[20, 2]", "astype(np.float32)"]),
    "text": (lambda y: np.array(["walk", "run", "sit"])[y], {}, ["<U4", "with the str '", "classes.index"]),
    "objects": (lambda y: np.array(["a", "b", "c"], object)[y], {}, ["object", "with the str '", "classes.index"]),
    "missing among ints": (lambda y: np.where(y == 2, None, y), {}, ["object", "NoneType", "what is missing"]),
    "dates": (lambda y: y.astype("datetime64[D]"), {}, ["datetime64", "seconds"]),
    "complex": (lambda y: y * 1j, {}, ["complex128", "numbers"]),
    "ragged": (lambda y: [[1]] * 19 + [[1, 2]], {}, ["is no array", "one length"]),
    "bfloat16": (lambda y: torch.ones(20, dtype=torch.bfloat16), {}, ["a Tensor, is no array", ".numpy()"]),
    "NaN": (lambda y: np.where(y == 2, np.nan, y), {}, ["'labels'", "'u0'", "NaN"]),
    "one value": (lambda _y: 3, {}, ["one value"]),
    "wrong length": (lambda y: y[:-1], {}, ["20"]),
    "past int64": (lambda y: y.astype(np.uint64) + np.uint64(2**63), {}, ["uint64", "int64 holds"]),
    "past float32": (lambda y: y[:, None] * 1e300, ONE, ["float64", "2e+300", "float32 holds"]),
    "another width": (lambda y: np.stack([y, y], 1) * 0.5, {}, ["float32 [rows, 2]", "[rows, 3]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_labels_that_fit_none_or_several_are_named_with_the_mend(name):
    change, settings, words = UNFIT[name]
    with pytest.raises(PflError) as error:
        study(change, **settings)
    assert isinstance(error.value, ConfigError | DataError)
    assert [word for word in words if word not in str(error.value)] == []


def bce(output, batch):
    return (
        F.binary_cross_entropy_with_logits(output, batch["labels"], reduction="none")
        .reshape(len(output), -1)
        .mean(1)
    )


def soft(output, batch):
    return F.cross_entropy(output, batch["labels"], reduction="none")


@pytest.mark.parametrize(
    ("change", "k", "task"),
    [
        (lambda y: np.eye(3)[y], 3, RegressionTask()),
        (lambda y: np.eye(3)[y].argmax(1), 3, None),
        (lambda y: (y > 0).astype(np.float32)[:, None], 1, CustomTask(bce)),
        (lambda y: (y > 0).astype(np.int64), 2, None),
        (lambda y: (y[:, None] >= np.arange(3)).astype(np.float32), 3, CustomTask(bce)),
        (lambda y: np.eye(3)[y] * 0.4 + 0.2, 3, CustomTask(soft)),
        (lambda y: (y * 7).astype(np.float32)[:, None], 1, None),
    ],
)
def test_what_the_mends_say_trains(change, k, task):
    with study(change, k, task=task).run(rounds=1) as result:
        assert result.history[0].clients == 3
        assert not result.evaluate(metric="loss").failed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: np.eye(3, dtype=np.float32)[y], ["float32 [", ", 3]", "int64 [B]", "argmax"]),
        (lambda y: y.astype(np.float32), ["float32 [", "astype(np.int64)"]),
        (lambda y: y[:, None], ["int64 [", ", 1]", "squeeze(-1)"]),
    ],
)
def test_a_given_task_names_labels_that_it_does_not_take(change, words):
    with pytest.raises(ConfigError) as error:
        study(change, task=ClassificationTask(3)).run(rounds=1)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("name", ["y", "target", "Labels", "outcome"])
def test_targets_by_another_name(name):
    rows = users(lambda y: y)
    for own in rows.values():
        own[name] = own.pop("labels")
    with pytest.raises(DataError) as error:
        Study(Net, rows, machine=Machine(processes=0))
    assert f"'{name}'" in error.value.message
    assert ("rows.pop('the name')" if name == "outcome" else f"rows.pop('{name}')") in error.value.mend
    weights = {user: {**own, "weight": np.ones(20, np.float32)} for user, own in rows.items()}
    with pytest.raises(ConfigError, match="but no 'labels'"):
        Study(Net, weights, machine=Machine(processes=0))


def rows_of(index: int) -> tuple[Rows, Rows]:
    one = {"x": np.ones((4, 6), np.float32), "weight": np.ones(4, np.float32)}
    train = {**one, "labels": np.full((4, 1), min(index, 1), np.float32)}
    return train, {name: value[:0] for name, value in train.items()}


def test_a_first_user_of_one_class_does_not_make_it_regression():
    with pytest.raises(ConfigError, match="nothing but 0 and 1"):
        Study(lambda: Net(1), GeneratedPopulation("made", 5, rows_of), machine=Machine(processes=0))


def test_one_user_with_other_labels_does_not_stop_the_others():
    rows = users(lambda y: y)
    rows["u2"]["labels"] = rows["u2"]["labels"] + 4
    found = Study(Net, rows, machine=Machine(processes=0))
    assert "from 0 to 6" in found.task_from
    with found.run(rounds=1) as result:
        assert result.history[0].clients == 2


def test_tokens_are_told_from_texts_with_one_label():
    facts = LabelFacts.of([np.arange(3)])
    assert task_of(("tokens",), ("int64", (16, 5)), (16, 5, 9), facts, 0)[0] == TokenTask(9, specials=0)
    found = task_of(("tokens",), ("int64", (16,)), (16, 3), facts, 0)[0]
    assert found == ClassificationTask(3, inputs=("tokens",))
    with pytest.raises(ConfigError, match="for each position") as error:
        task_of(("ids", "mask"), ("int64", (16, 5)), (16, 5, 9), facts, 0)
    assert "TokenTask(9, specials=0, inputs=('ids', 'mask'))" in error.value.mend


VALUES = [
    np.zeros(0),
    np.arange(3.0),
    np.array([0.0, 1.0]),
    np.eye(3),
    np.full((2, 3), 1 / 3),
    np.full(2, 0.5),
]
SHAPES = [(16,), (16, 1), (16, 3), (16, 5), (16, 5, 3), (16, 3, 5, 5)]


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "uint8"])
def test_every_pair_of_shapes_gives_a_task_or_a_typed_error(dtype):
    told = 0
    for labels, output, values in itertools.product(SHAPES, [(), *SHAPES], VALUES):
        try:
            task, why = task_of(("x",), (dtype, labels), output, LabelFacts.of([values]), 0)
        except ConfigError as error:
            found = error.message
        else:
            found, told = why, told + 1
            assert task == (RegressionTask() if dtype == "float32" else ClassificationTask(output[-1]))
        assert found.startswith(f"labels are {dtype} [rows")
    assert (told > 0) == (dtype in ("int64", "float32"))


def test_labels_in_memory_are_all_looked_at():
    rows = users(lambda y: (y > 0).astype(np.float32)[:, None])
    rows["u2"]["labels"] = rows["u2"]["labels"] * 0.5
    assert (
        Study(lambda: Net(1), ArrayPopulation.of("all", rows), machine=Machine(processes=0)).task
        == RegressionTask()
    )

"""What programs compute from a model's output: losses, hits, predictions, and what does not fit is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pfl_mobile.errors import ConfigError
from pfl_mobile.programs.tasks import (
    ClassificationTask,
    CustomTask,
    RegressionTask,
    TiltedTask,
    TokenTask,
    tilted_task,
)

CLASSES = ClassificationTask(3)
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 1.0]])
BATCH = {"labels": torch.tensor([0, 2, 2]), "weight": torch.ones(3)}


def test_cross_entropy_is_that_of_each_example() -> None:
    losses = CLASSES.losses(LOGITS, BATCH)
    assert losses[1].item() == pytest.approx(math.log(3))
    assert losses[0].item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)))


def test_a_hit_is_the_label_on_top_and_ties_count_for_it() -> None:
    assert CLASSES.metrics(LOGITS, BATCH)["top1"].tolist() == [1, 1, 0]


def test_predictions_are_the_likeliest_first() -> None:
    found = ClassificationTask(3, top_k=2).predict(LOGITS, {})
    assert found["top_ids"][2].tolist() == [1, 2]
    assert found["top_probs"][2, 0] > found["top_probs"][2, 1]


@pytest.mark.parametrize(
    ("output", "labels", "helps"),
    [
        (LOGITS[:, :2], BATCH["labels"], "number of classes"),
        (LOGITS, BATCH["labels"].float(), "whole numbers"),
        (LOGITS, torch.eye(3, dtype=torch.int64), "argmax"),
        (LOGITS, BATCH["labels"].unsqueeze(1), "squeeze"),
    ],
)
def test_outputs_and_labels_that_do_not_fit_are_refused(output: object, labels: object, helps: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CLASSES.losses(output, {"labels": labels})  # type: ignore[arg-type, dict-item]
    assert helps in caught.value.mend


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassificationTask(1),
        lambda: ClassificationTask(3, top_k=4),
        lambda: TokenTask(4),
        lambda: TokenTask(10, specials=-1),
        lambda: TokenTask(6, top_k=3),
        lambda: TokenTask(9, top_k=2, never=((6, 9),)),  # two could be suggested
        lambda: TokenTask(9, never=((3, 5),)),  # among the specials
        lambda: TokenTask(9, never=((5, 5),)),
        lambda: TokenTask(9, never=((5, 10),)),
        lambda: tilted_task(CLASSES, math.inf),
    ],
)
def test_numbers_that_make_no_task_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_special_tokens_are_never_suggested_and_a_label_among_them_is_a_miss() -> None:
    task = TokenTask(6, specials=4, top_k=2)  # so few that even what is never suggested is among three
    logits = torch.zeros(1, 2, 6)
    logits[..., 1] = 9  # a special
    logits[..., 5] = 3
    found = task.predict(logits, {"position": torch.tensor([1])})
    assert found["top_ids"][0, 0] == 5
    assert int(found["top_ids"].min()) >= 4
    hits = task.metrics(logits, {"labels": torch.tensor([[1, 5]])})
    assert hits["top1"].tolist() == [[0, 1]]
    assert hits["top3"].tolist() == [[0, 1]]


def test_ids_elsewhere_are_never_suggested_either() -> None:
    task = TokenTask(9, specials=1, top_k=3, never=((2, 4), (8, 9)))
    logits = torch.arange(9.0).repeat(1, 2, 1)
    logits[..., 2] = 20
    found = task.predict(logits, {"position": torch.tensor([1])})
    assert found["top_ids"].tolist() == [[7, 6, 5]]
    hits = task.metrics(logits, {"labels": torch.tensor([[8, 7]])})
    assert hits["top1"].tolist() == [[0, 1]]
    assert hits["top3"].tolist() == [[0, 1]]


def test_each_token_has_a_class() -> None:
    task = ClassificationTask(3, top_k=2, per_token=True)
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 4), generator=torch.Generator().manual_seed(1))
    wanted = [[float(-row[i].log_softmax(0)[labels[b, i]]) for i in range(4)] for b, row in enumerate(logits)]
    torch.testing.assert_close(task.losses(logits, {"labels": labels}), torch.tensor(wanted))
    assert task.metrics(logits, {"labels": labels})["top1"].equal((logits.argmax(-1) == labels).float())
    assert task.predict(logits, {})["top_ids"][..., 0].equal(logits.argmax(-1))
    with pytest.raises(ConfigError, match=r"needs \[B, T, 3\]"):
        task.losses(logits[:, 0], {"labels": labels[:, 0]})


def test_predictions_are_those_at_the_position() -> None:
    logits = torch.zeros(1, 3, 7)
    for place in range(3):
        logits[0, place, 4 + place] = 5
    for place in range(3):
        found = TokenTask(7, top_k=1).predict(logits, {"position": torch.tensor([place])})
        assert found["top_ids"].tolist() == [[4 + place]]


def test_regression_averages_over_the_values_of_an_example() -> None:
    output, labels = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    task = RegressionTask()
    assert task.losses(output, {"labels": labels}).tolist() == [5, 2]
    assert task.metrics(output, {"labels": labels})["mae"].tolist() == [2, 1]
    with pytest.raises(ConfigError) as caught:  # else it would be all pairs
        task.losses(output[:, :1], {"labels": labels[:, 0]})
    assert "reshape([2, 1])" in caught.value.mend


def test_tilting_keeps_the_losses_and_scales_their_gradients() -> None:
    t, weight = 2.0, torch.tensor([1.0, 3.0, 0.0])
    x = torch.tensor([0.5, 1.0, 50.0], requires_grad=True)
    plain = CustomTask(lambda output, batch: output * 1.0)
    losses = tilted_task(plain, t).losses(x, {"weight": weight})
    assert losses.tolist() == pytest.approx(x.tolist())
    (losses * weight).sum().backward()
    tilt = weight * torch.exp(t * x.detach().clamp(max=1))  # the third does not count, however large
    torch.testing.assert_close(x.grad, tilt / tilt.sum() * weight.sum())


def test_a_tilt_of_zero_is_the_task_itself() -> None:
    assert tilted_task(CLASSES, 0) is CLASSES
    found = tilted_task(TokenTask(7), 1.0)
    assert isinstance(found, TiltedTask)
    assert (found.kind, found.inputs, found.predict_extra, found.specials) == (
        "tokens",
        ("tokens",),
        ("position",),
        4,
    )


@pytest.mark.parametrize(
    ("task", "classes"),
    [(CLASSES, 3), (TokenTask(9), 9), (RegressionTask(), None), (tilted_task(CLASSES, 1.0), 3)],
)
def test_the_manifest_tells_the_classes_and_the_metrics(task: object, classes: int | None) -> None:
    assert task.manifest()["vocabulary"] == classes  # type: ignore[attr-defined]

"""Batches of several clients: those that each would see alone, and padding that counts nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.rows import epoch_order
from pfl_mobile.vectorized import feed as module
from pfl_mobile.vectorized.feed import Feed, Helping

COUNTS, SEEDS, SIZE = [5, 2, 7], [11, 12, 13], 3


def rows(count: int, base: int) -> dict[str, np.ndarray]:
    x = base + np.arange(count, dtype=np.float32)
    return {"x": x.reshape(-1, 1), "weight": np.ones(count, np.float32)}


@pytest.fixture
def feed() -> Feed:
    own = [rows(count, 100 * k) for k, count in enumerate(COUNTS)]
    return Feed(own, SEEDS, SIZE, ["x", "weight"], torch.device("cpu"))


def seen(helping: Helping, lane: int, batch: int = 0) -> list[float]:
    """The rows that count."""
    one = helping.batches[batch]
    return [float(v) for v in one["x"][lane, :, 0][one["weight"][lane] > 0]]


def phase(**more: object) -> TrainPhase:
    return TrainPhase.model_validate(
        {"group": ("*",), "optimizer": Sgd(lr=0.1).model_dump(), "epochs": 2} | more
    )


def test_every_row_is_evaluated_once_in_order(feed: Feed) -> None:
    found = list(feed.in_order())
    assert len(found) == 3  # ceil(7 / 3)
    for lane, count in enumerate(COUNTS):
        assert [v for h in found for v in seen(h, lane)] == [100 * lane + i for i in range(count)]
    assert found[2].weights.tolist() == [0, 0, 1]


def test_training_takes_the_order_of_each_client_alone(feed: Feed) -> None:
    found = list(feed.train(phase(), 4))
    for lane, (count, seed) in enumerate(zip(COUNTS, SEEDS, strict=True)):
        each = -(-count // SIZE)
        for epoch in range(2):
            own = [v for h in found[epoch * each : (epoch + 1) * each] for v in seen(h, lane)]
            assert own == [100 * lane + i for i in epoch_order(count, seed, 4, epoch)]
    assert feed.steps(phase()) == [4, 2, 6]
    assert len(found) == 6
    assert [(h.weights > 0).tolist() for h in found[3:]] == [[True, False, True], *[[False, False, True]] * 2]


def test_pieces_of_a_run_are_the_run(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [seen(h, k) for h in feed.train(phase(), 0) for k in range(3)]
    chunks = list(feed.chunks(phase(), 0, most=1))
    assert len(chunks) == 6
    assert [seen(h, k) for c in chunks for h in c.helpings() for k in range(3)] == whole
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert len(list(feed.chunks(phase(), 0))) == 6


def test_entries_by_lane_have_only_rows_of_helpings_that_a_lane_has(feed: Feed) -> None:
    (chunk,) = feed.chunks(phase(epochs=1), 0, by_lane=["x"])
    assert "x" not in chunk.entries
    assert len(chunk.by_lane["x"]) == SIZE * (2 + 1 + 3)
    first = chunk.by_lane["x"][: 2 * SIZE, 0][:5].tolist()
    assert sorted(first) == [0, 1, 2, 3, 4]


def test_a_held_batch_is_the_same_in_every_step(feed: Feed) -> None:
    found = list(feed.train(phase(epochs=None, steps=3, hold_batch=True), 0))
    assert len(found) == 3
    assert seen(found[0], 2) == seen(found[1], 2) == seen(found[2], 2)

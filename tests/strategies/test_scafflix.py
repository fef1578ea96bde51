"""Scafflix."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.random import derive
from pfl_mobile.strategies import Equally, Local, RoundContext, create
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.scafflix import Scafflix
from tests.strategies.harness import Federation, assert_near, full_batch
from tests.strategies.models import LeastSquares, Softmax, classes, flat, lines, quadratic


def federation(data: list[dict[str, np.ndarray]], lr: float = 0.2, **values: float) -> Federation:
    values = {"optimum_lr": 0.3, "optimum_epochs": 6, **values}
    return Federation(create("scafflix", **values), LeastSquares(), data, full_batch(lr))


def h_sum(fed: Federation, name: str) -> np.ndarray:
    """Sum of h_i over everybody, each with what is underway since it sent last."""
    strategy = fed.strategy
    assert isinstance(strategy, Scafflix)
    total = np.zeros(fed.shipped[name].shape)
    for client, copies in fed.copies.items():
        gap = fed.sets(client)["merged"][name].astype(float) - copies["sent"][name]
        total += -copies["minus_h"][name] + strategy.p / fed.local.optimizer.lr * gap
    return total


@pytest.mark.parametrize("cohort", [6, 2])
def test_controls_sum_to_zero_at_every_round(cohort: int) -> None:
    fed = Federation(create("scafflix", p=0.4), Softmax(), classes(6))
    for _ in range(8):
        fed.run(1, cohort=cohort)
        for name in ("body.weight", "head.bias"):
            np.testing.assert_allclose(h_sum(fed, name), 0, atol=1e-5)
    assert max(np.abs(copies["minus_h"]["body.weight"]).max() for copies in fed.copies.values()) > 0.01


@pytest.mark.parametrize(("alpha", "p"), [(1.0, 0.2), (0.4, 0.2), (0.4, 0.5)])
def test_it_reaches_the_flix_optimum_exactly(alpha: float, p: float) -> None:
    data = lines(5, spread=2.0)
    fed = federation(data, alpha=alpha, p=p).run(110)
    own = [np.linalg.solve(*quadratic(rows)) for rows in data]
    # 0 = sum_i H_i (alpha x + (1 - alpha) x_i*) - g_i
    parts = [quadratic(rows) for rows in data]
    best = np.linalg.solve(
        sum(alpha * h for h, _ in parts),
        sum(g - (1 - alpha) * h @ z for (h, g), z in zip(parts, own, strict=True)),
    )
    np.testing.assert_allclose(flat(fed.server.values), best, atol=2e-3)
    for client in range(5):
        served = alpha * best + (1 - alpha) * own[client]
        np.testing.assert_allclose(flat(fed.served(client)), served, atol=2e-3)
    drifting = Federation(FedAvg(weighting=Equally()), LeastSquares(), data, full_batch(0.2, 5)).run(60)
    assert np.abs(flat(drifting.server.values) - best).max() > 0.05


def test_it_reaches_the_optimum_with_devices_that_come_and_go() -> None:
    data = lines(5, spread=2.0)
    fed = federation(data, alpha=1.0, p=0.3).run(400, cohort=3)
    parts = [quadratic(rows) for rows in data]
    best = np.linalg.solve(sum(h for h, _ in parts), sum(g for _, g in parts))
    np.testing.assert_allclose(flat(fed.server.values), best, atol=5e-3)
    assert len([s for s in fed.server.sets if "merged" in s]) <= 5, (
        "averages that nobody waits for are dropped"
    )


def test_more_personalization_needs_fewer_rounds() -> None:
    """Rounds until the FLIX objective is within 1e-4 of its least value, at the largest stable rate for each alpha."""
    data = lines(5, spread=2.0)
    parts = [quadratic(rows) for rows in data]
    best = np.linalg.solve(sum(h for h, _ in parts), sum(g for _, g in parts))
    rounds = {}
    for alpha in (1.0, 0.3, 0.1):
        fed = federation(data, lr=0.2 / alpha, alpha=alpha, p=0.2)
        excess = np.inf
        while excess > 1e-4 and fed.server.round < 200:
            fed.run(1)
            gap = alpha * (flat(fed.server.values) - best)
            excess = np.mean([gap @ h @ gap / 2 for h, _ in parts])
        rounds[alpha] = fed.server.round
    assert rounds[0.1] < rounds[0.3] < rounds[1.0] < 200


def test_p_one_without_personalization_is_gradient_descent() -> None:
    data = classes(4)
    fed = Federation(create("scafflix", p=1.0, alpha=1.0), Softmax(batch=32), data, full_batch(0.3)).run(10)
    descent = Federation(FedAvg(weighting=Equally()), Softmax(batch=32), data, full_batch(0.3)).run(10)
    assert_near(fed.server.values, descent.server.values, 1e-5)


def test_a_small_alpha_serves_the_own_optimum() -> None:
    data = lines(3, spread=2.0)
    fed = federation(data, alpha=1e-6, optimum_epochs=100).run(4)
    for client, rows in enumerate(data):
        np.testing.assert_allclose(flat(fed.served(client)), np.linalg.solve(*quadratic(rows)), atol=2e-2)


def test_rounds_have_geometric_lengths_and_bytes_fall_by_p() -> None:
    strategy = create("scafflix", p=0.2)
    assert isinstance(strategy, Scafflix)
    seeds = [derive(3, r) for r in range(4000)]
    lengths = np.array([strategy.steps(s) for s in seeds])
    assert lengths.min() == 1
    for k in (1, 2, 3, 5):
        np.testing.assert_allclose((lengths == k).mean(), 0.2 * 0.8 ** (k - 1), atol=0.02)
    rounds = [RoundContext((), Local(), r, seed) for r, seed in enumerate(seeds)]
    assert [strategy.full_sync_steps(at) for at in rounds] == lengths.tolist()
    np.testing.assert_allclose(len(rounds) / lengths.sum(), 0.2, atol=0.01)
    everything = create("scafflix", p=1.0)
    assert all(everything.full_sync_steps(at) == 1 for at in rounds)
    assert create("fedavg").full_sync_steps(rounds[0]) is None


def test_one_vector_a_round_is_sent_and_the_plan_has_the_drawn_steps() -> None:
    fed = Federation(create("scafflix", alpha=1.0), LeastSquares(), lines(2), full_batch(0.1))
    updates = fed.round()
    assert list(updates.layout.shapes) == ["b", "w"]
    assert isinstance(fed.strategy, Scafflix)
    assert updates.steps.tolist() == [fed.strategy.steps(derive(fed.seed, 0))] * 2


def test_personal_tensors_stay_and_are_trained() -> None:
    data = classes(6, spread=3.0)
    fed = Federation(create("scafflix"), Softmax(personal=True), data).run(6)
    assert list(fed.collect([0]).layout.shapes) == ["body.weight"]
    assert np.abs(fed.personal[0]["head.bias"]).max() > 0
    assert all(not np.any(copies["minus_h"]["head.bias"]) for copies in fed.copies.values())
    assert fed.mean_loss() < Federation(create("fedavg"), Softmax(), data).run(6).mean_loss()


def test_controls_need_plain_sgd() -> None:
    fed = Federation(create("scafflix"), Softmax(), classes(2), Local(optimizer=AdamW(lr=0.1)))
    with pytest.raises(ConfigError, match="'adamw'"):
        fed.round()

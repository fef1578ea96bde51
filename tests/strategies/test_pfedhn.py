"""pFedHN: the chain rule, new devices, what the server sees."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.pfedhn import CLIP, PFedHN, _backward, _forward
from tests.strategies.harness import Federation, assert_near, assert_same, full_batch, merge_peak
from tests.strategies.models import Location, Softmax, classes, rows_of


def federation(strategy: PFedHN | FedAvg, users: int = 12) -> Federation:
    """Devices of two kinds, far apart: one model for all is wrong for everybody."""
    rng = np.random.default_rng(0)
    data = [rows_of(x=(-1) ** i * 3 + 0.1 * rng.normal(size=(4, 2))) for i in range(users)]
    return Federation(strategy, Location(2, 4), data, full_batch(0.3, 3))


def test_backward_is_autograd() -> None:
    fed = Federation(PFedHN(hidden=7, depth=2), Softmax(), classes(5))
    rng = np.random.default_rng(0)
    phi = {n: v + 0.1 * rng.normal(size=v.shape) for n, v in fed.server.sets["hypernet"].items()}
    v, changes = rng.normal(size=(4, 2)), rng.normal(size=(4, 15))
    parts = np.array([0.1, 0.4, 0.2, 0.3])
    got_phi, got_v = _backward(phi, v, changes, parts)
    leaf = {n: torch.tensor(x, requires_grad=True) for n, x in phi.items()}
    at = torch.tensor(v, requires_grad=True)
    h = at
    for k in range(2):
        h = torch.relu(h @ leaf[f"w{k}"].T + leaf[f"b{k}"])
    out = (h / np.float32(np.sqrt(7))) @ leaf["w2"].T + leaf["b2"]
    np.testing.assert_allclose(_forward(phi, v)[-1], out.detach().numpy(), rtol=1e-6)
    inner = (out * torch.tensor(changes)).sum(dim=1)
    want = torch.autograd.grad((inner * torch.tensor(parts)).sum(), list(leaf.values()), retain_graph=True)
    for name, gradient in zip(leaf, want, strict=True):
        np.testing.assert_allclose(got_phi[name], gradient.numpy(), rtol=1e-6, atol=1e-9)
    (want_v,) = torch.autograd.grad(inner.sum(), at)
    np.testing.assert_allclose(got_v, want_v.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lr", [0.5, 40.0])
def test_a_merge_is_the_formula_on_all_updates_at_once(lr: float) -> None:
    """40 devices are read in several groups; the long step is clipped or halved."""
    fed = federation(PFedHN(lr=lr, lr_embedding=lr), users=40).run(2)
    updates, before = fed.collect(), copy.deepcopy(fed.server)
    fed.strategy.merge(fed.server, updates)

    phi = before.sets["hypernet"]
    v = np.stack([fed.strategy.embedding_of(before, c) for c in range(40)])
    parts = (updates.examples / updates.examples.sum()).astype(np.float32)
    of_phi, of_v = _backward(phi, v, updates.changes, parts)
    norm = np.linalg.norm(np.concatenate([g.reshape(-1) for g in of_phi.values()]))
    step = lr * min(1, CLIP / norm)
    step_v = lr * np.minimum(1, CLIP / np.linalg.norm(of_v, axis=1))[:, None] * of_v
    factors = []
    for factor in 0.5 ** np.arange(20):
        phi_new = {n: x + factor * step * of_phi[n] for n, x in phi.items()}
        v_new = v + factor * step_v
        moved = np.linalg.norm(_forward(phi_new, v_new)[-1] - _forward(phi, v)[-1])
        factors.append(factor)
        if moved <= np.linalg.norm(updates.changes):
            break
    assert (len(factors) > 1) == (lr > 1), "both ways are tried"
    assert_near(fed.server.sets["hypernet"], phi_new, 1e-5)
    assert_near(fed.server.sets["embeddings"], {str(c): v_new[c] for c in range(40)}, 1e-5)


def test_memory_does_not_grow_with_the_cohort(tmp_path: Path) -> None:
    width = 20_000
    few, many = (merge_peak(PFedHN(hidden=4, embedding=2), tmp_path, count, width) for count in (50, 500))
    assert many < 1.2 * few
    assert many < 4 * width * 500 / 4


def test_devices_start_near_the_shipped_values() -> None:
    fed = federation(PFedHN())
    for client in range(12):
        np.testing.assert_allclose(fed.sets(client)["global"]["w"], fed.shipped["w"], atol=0.1)


def test_devices_get_models_of_their_own() -> None:
    fed = federation(PFedHN()).run(30)
    assert fed.mean_loss() < 0.01 * federation(FedAvg()).run(20).mean_loss()
    for client in (0, 1):
        np.testing.assert_allclose(fed.sets(client)["global"]["w"], (-1) ** client * 3.0, atol=1.0)


def test_a_step_that_is_too_long_is_shortened() -> None:
    """No merge moves the cohort's models further than the devices moved them, whatever the step is."""
    fed = federation(PFedHN(lr=50.0, lr_embedding=50.0))
    for _ in range(5):
        before = np.array([fed.sets(c)["global"]["w"] for c in range(12)])
        updates = fed.round()
        after = np.array([fed.sets(c)["global"]["w"] for c in range(12)])
        assert np.linalg.norm(after - before) <= np.linalg.norm(updates.changes) * 1.001
    assert fed.run(40).mean_loss() < 1.0


def test_no_step_changes_nothing() -> None:
    fed = federation(PFedHN(lr=0.0, lr_embedding=0.0))
    before = [dict(fed.sets(c)["global"]) for c in range(4)]
    fed.run(3)
    for client in range(4):
        assert_same(before[client], fed.sets(client)["global"])


def test_a_new_device_needs_an_embedding_only() -> None:
    """Trained without device 0; then only its embedding is fitted, the hypernetwork stays."""
    fed = federation(PFedHN())
    for _ in range(60):
        fed.round(list(range(1, 12)))
    hypernet = copy.deepcopy(fed.server.sets["hypernet"])
    others = copy.deepcopy(fed.server.sets["embeddings"])
    first = fed.loss(0, fed.sets(0)["global"])
    for _ in range(40):
        fed.strategy.adapt(fed.server, fed.collect([0]))
    assert fed.loss(0, fed.sets(0)["global"]) < max(0.2 * first, 0.5)
    assert_same(fed.server.sets["hypernet"], hypernet)
    found = dict(fed.server.sets["embeddings"])
    assert found.pop("0").shape == (4,)
    assert_same(found, others)


def test_the_server_needs_changes_only() -> None:
    """Neither losses nor steps enter the merge: others in their place give the same bits."""
    fed = federation(PFedHN()).run(1)
    updates, other = fed.collect(), copy.deepcopy(fed.server)
    fed.strategy.merge(fed.server, updates)
    fed.strategy.merge(other, updates.replaced(reports={}, steps=np.zeros_like(updates.steps)))
    assert_same(fed.server.sets["hypernet"], other.sets["hypernet"])
    assert_same(fed.server.sets["embeddings"], other.sets["embeddings"])

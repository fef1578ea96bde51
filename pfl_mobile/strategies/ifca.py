"""IFCA: several models, and every device trains the one that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from pfl_mobile.errors import NonFiniteError
from pfl_mobile.local.plan import ChoosePhase, Phase, Plan
from pfl_mobile.local.random import derive
from pfl_mobile.strategies.registry import Param, register
from pfl_mobile.strategies.strategy import (
    Context,
    Server,
    Strategy,
    Values,
    check_values,
    local_plan,
    mean_change,
    without_upload,
)

if TYPE_CHECKING:
    from pfl_mobile.strategies.updates import Updates

#: Report of the cluster that a device chose.
CLUSTER = "cluster"
#: Starts of k-means, the best of which counts.
TRIES = 10


@register(
    "ifca",
    title="IFCA: iterative federated clustering",
    paper="Ghosh, Chung, Yin, Ramchandran 2020, An efficient framework for clustered federated learning "
    "(arXiv 2006.04088)",
    shares="all trained tensors, one model for each cluster, and which one fits",
)
@dataclass(frozen=True, kw_only=True)
class Ifca(Strategy):
    """The paper's algorithm 1 with model averaging (its option II), for K models theta_j:

        j_i       = argmin over j of F_i(theta_j)                      (device, a ``choose`` phase)
        theta~_i  = theta_{j_i} after local steps                      (device)
        theta_j  <- mean over the devices with j_i = j of theta~_i     (server, weighted by examples)

    A device's update is relative to ``global``, the mean of the models by examples seen, because only the device
    knows at first which model it starts from; the server adds that difference back. A model that nobody chooses
    stays. Once the rounds are over, a device serves the model that fits its training examples.

    Differs from the paper, where the models start at random or from several restarts: by default (``start`` =
    ``models``) all devices train from one model in the first round, and k-means over what they trained
    (k-means++, the best of ten) makes the first clusters. ``noise`` starts from the shipped values plus normal noise
    of deviation ``spread``, as the paper does. Sending K models costs K times the download.

    Limits: one cluster is FedAvg.
    """

    one_mean: ClassVar[bool] = False
    streams: ClassVar[bool] = False

    clusters: Annotated[int, Param("number of models; 1 is FedAvg", low=1)] = 2
    start: Annotated[
        str, Param("what the models start from: the first round's, or noise", choices=("models", "noise"))
    ] = "models"
    spread: Annotated[float, Param("deviation of the noise that the models start with", low=0.0)] = 0.1

    def _names(self) -> tuple[str, ...]:
        return tuple(f"cluster_{j}" for j in range(self.clusters))

    def _choose(self, at: Context) -> ChoosePhase:
        return ChoosePhase(group=at.traveling, among=self._names(), report=CLUSTER)

    def phases(self, at: Context) -> tuple[Phase, ...]:
        """Choose a model, train it."""
        return (self._choose(at), *super().phases(at))

    def personal_plan(self, at: Context) -> Plan | None:
        """Choose a model; personal tensors are trained beside it as in a round."""
        return without_upload(self.plan(at)) if at.has("personal") else local_plan(at, self._choose(at))

    def begin(self, server: Server) -> None:
        """All models: the shipped one, or that plus noise."""
        for j, cluster in enumerate(self._names()):
            rng = np.random.default_rng(derive(0, j))
            server.sets[cluster] = {
                name: value + np.float32(self.spread) * rng.standard_normal(value.shape, np.float32)
                if self.start == "noise" and self.clusters > 1
                else value.copy()
                for name, value in self._values(server).items()
            }
        server.numbers["ifca"] = [0] * self.clusters

    @staticmethod
    def _values(server: Server) -> dict[str, np.ndarray]:
        return {name: server.values[name] for name in server.names("shared", "group")}

    def sets(self, server: Server) -> dict[str, Values]:
        """All models."""
        return {"global": server.values, **{c: server.sets[c] for c in self._names()}}

    def merge(self, server: Server, updates: Updates) -> None:
        """Average within the clusters."""
        with server.undo_on_error():
            self._merge(server, updates)

    def _merge(self, server: Server, updates: Updates) -> None:
        shared = self._values(server)
        weights = self.weighting.weights(updates, server)
        chosen = updates.report(CLUSTER).astype(int)
        if server.round == 0 and self.start == "models" and self.clusters > 1:
            chosen = self._first(updates, list(shared))
        seen = list(server.numbers["ifca"])
        for j, cluster in enumerate(self._names()):
            rows = chosen == j
            if not rows.any():
                continue
            change = mean_change(updates.select(rows), weights[rows], list(shared))
            values = dict(server.sets[cluster])
            step = {n: (shared[n] - values[n]) + change[n] for n in change}
            self.optimizer.apply(server, cluster, values, step)
            check_values(values, change)
            server.sets[cluster] = values
            seen[j] += int(updates.examples[rows].sum())
        server.numbers["ifca"] = seen
        parts = np.array(seen, np.float64) / max(sum(seen), 1)
        mean = {
            n: sum(
                (np.float32(p) * server.sets[c][n] for p, c in zip(parts, self._names(), strict=True)),
                np.zeros_like(value),
            )
            for n, value in shared.items()
        }
        server.values = {**server.values, **mean}

    def _first(self, updates: Updates, names: list[str]) -> np.ndarray:
        """Clusters of the first round's models; of fewer devices than clusters, one each."""
        order = np.argsort(updates.clients)
        points = np.concatenate([updates.of(n).reshape(len(updates), -1) for n in names], axis=1)[order]
        if not np.isfinite(points).all():
            raise NonFiniteError(
                "an update of the first round is NaN or infinite", mend="lower the devices' learning rate"
            )
        labels = np.empty(len(updates), int)
        labels[order] = k_means(points, min(self.clusters, len(points)))
        return labels


def k_means(points: np.ndarray, count: int) -> np.ndarray:
    """Cluster of each row of ``points`` [n, P], int [n]: Lloyd's algorithm from k-means++, the best of ten tries."""
    best, least = np.zeros(len(points), int), np.inf
    for attempt in range(TRIES):
        rng = np.random.default_rng(attempt)
        centers = points[[rng.integers(len(points))]]
        while len(centers) < count:
            near = _distances(points, centers).min(axis=1)
            odds = near / near.sum() if near.sum() > 0 else np.full(len(points), 1 / len(points))
            centers = np.concatenate([centers, points[[rng.choice(len(points), p=odds)]]])
        labels = _distances(points, centers).argmin(axis=1)
        for _ in range(50):
            groups = [points[labels == j] for j in range(count)]
            centers = np.stack(
                [g.mean(axis=0) if len(g) else c for g, c in zip(groups, centers, strict=True)]
            )
            before, labels = labels, _distances(points, centers).argmin(axis=1)
            if (before == labels).all():
                break
        cost = float(_distances(points, centers).min(axis=1).sum())
        if cost < least:
            best, least = labels, cost
    return best


def _distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squared, float64 [n, k]; one center at a time, so that memory stays that of the points."""
    return np.stack([np.square(points - c, dtype=np.float64).sum(axis=1) for c in centers], axis=1)

"""IFCA: several models, and every device trains the one that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.merge.update_rows import finite_gram, weighted_sum
from pfl_mobile.plan.phases import ChoosePhase, Phase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive, permutation
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, check_values, local_plan, mean_change, without_upload

if TYPE_CHECKING:
    from pfl_mobile.merge.update_rows import UpdateRows
    from pfl_mobile.merge.updates import Updates

#: Report of the cluster that a device chose.
CLUSTER = "cluster"
#: Starts of k-means, the best of which counts.
TRIES = 10
#: Devices whose first models k-means takes, at most: its memory grows by the square.
SAMPLE = 1000


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
    (k-means++, the best of ten) makes the first clusters. Of more than 1000 devices it takes 1000, drawn, and every
    device belongs to the nearest of their means. ``noise`` starts from the shipped values plus normal noise of
    deviation ``spread``, as the paper does. Sending K models costs K times the download.

    A robust rule merges each cluster by itself: attackers who all name the same one can be more there than the rule
    assumes. It does not protect k-means.

    Limits: one cluster is FedAvg.
    """

    why_not_private: ClassVar[str] = (
        "it takes a mean for every cluster, over the devices that chose it, and makes the first ones of single changes"
    )

    clusters: Annotated[int, Param("number of models; 1 is FedAvg", low=1)] = 2
    start: Annotated[
        str, Param("what the models start from: the first round's, or noise", choices=("models", "noise"))
    ] = "models"
    spread: Annotated[float, Param("deviation of the noise that the models start with", low=0.0)] = 0.1

    def _names(self) -> tuple[str, ...]:
        return tuple(f"cluster_{j}" for j in range(self.clusters))

    def _choose(self, at: RoundContext) -> ChoosePhase:
        return ChoosePhase(group=at.traveling, among=self._names(), report=CLUSTER)

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Choose a model, train it."""
        return (self._choose(at), *super().phases(at))

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """Choose a model; personal tensors are trained beside it as in a round."""
        return without_upload(self.plan(at)) if at.has("personal") else local_plan(at, self._choose(at))

    @override
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

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        return {"global": server.values, **{c: server.sets[c] for c in self._names()}}

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """Average within the clusters."""
        with server.undo_on_error():
            self._merge(server, updates)

    def _merge(self, server: Server, updates: Updates) -> None:
        shared = self._values(server)
        weights = self.weighting.weights(updates, server)
        chosen = updates.report(CLUSTER).astype(int)
        if server.round == 0 and self.start == "models" and self.clusters > 1:
            chosen = self._first(updates)
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

    def _first(self, updates: Updates) -> np.ndarray:
        """Clusters of the first round's models; of fewer devices than clusters, one each."""
        # In the order of the devices, so that the draws do not depend on the order in which updates came.
        order = np.argsort(updates.clients)
        drawn = order[np.sort(permutation(0, len(order))[:SAMPLE])]
        rows = updates.rows.pick(drawn.tolist())
        labels = k_means(finite_gram(rows), min(self.clusters, len(drawn)))
        found = np.unique(labels)
        means = [_mean(rows.pick(np.flatnonzero(labels == label).tolist())) for label in found]
        return found[[_nearest(updates.rows, i, means) for i in range(len(updates))]]


def _mean(rows: UpdateRows) -> np.ndarray:
    return weighted_sum(rows, np.full(len(rows), 1 / len(rows)))


def _nearest(rows: UpdateRows, at: int, means: list[np.ndarray]) -> int:
    """Index of the mean that a row is nearest to."""
    row = rows.block(at, at + 1, slice(0, rows.width))[0]
    return int(np.argmin([np.square(row - mean).sum() for mean in means]))


def k_means(products: np.ndarray, count: int) -> np.ndarray:
    """Cluster of each of n points, int [n]: Lloyd's algorithm from k-means++, the best of ten tries.

    A center is the mean of some points, so their inner products are all it takes.

    Args:
        products: float64 [n, n].
        count: of clusters.
    """
    size = len(products)
    best, least = np.zeros(size, int), np.inf
    for attempt in range(TRIES):
        rng = np.random.default_rng(attempt)
        centers = [np.array([rng.integers(size)])]
        while len(centers) < count:
            near = _distances(products, centers).min(axis=1)
            odds = near / near.sum() if near.sum() > 0 else np.full(size, 1 / size)
            centers.append(np.array([rng.choice(size, p=odds)]))
        labels = _distances(products, centers).argmin(axis=1)
        for _ in range(50):
            groups = [np.flatnonzero(labels == j) for j in range(count)]
            centers = [g if len(g) else c for g, c in zip(groups, centers, strict=True)]
            before, labels = labels, _distances(products, centers).argmin(axis=1)
            if (before == labels).all():
                break
        cost = float(_distances(products, centers).min(axis=1).sum())
        if cost < least:
            best, least = labels, cost
    return best


def _distances(products: np.ndarray, centers: list[np.ndarray]) -> np.ndarray:
    """Squared, float64 [n, k], from the means of the points with these indexes.

    The bits of a column depend on its center alone, so that the same clusters in another order cost the same.
    """
    squares = np.diagonal(products)
    found = [squares - 2 * products[:, c].mean(axis=1) + products[np.ix_(c, c)].mean() for c in centers]
    return np.asarray(np.maximum(np.stack(found, axis=1), 0.0), np.float64)

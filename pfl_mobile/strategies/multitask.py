"""Multi-task regularization: a model for each device, pulled toward those of related devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.plan.phases import Phase
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, check_values

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates

#: Part of the identity that keeps a learned relation invertible.
RIDGE = 0.1

Tensors = dict[str, np.ndarray]


@register(
    "multitask",
    title="Multi-task learning with related devices",
    paper="Smith, Chiang, Sanjabi, Talwalkar 2017, Federated multi-task learning (MOCHA, arXiv 1705.10467)",
    shares="all trained tensors: the server keeps the latest model of every device",
)
@dataclass(frozen=True, kw_only=True)
class MultiTask(Strategy):
    """min over w_1..w_m of sum_k F_k(w_k) + lambda/2 * tr(W Q W'), W = [w_1 ... w_m] (the paper's equation 1).

    * ``mean``: Q = I - 11'/m, its mean-regularized example: the penalty is sum_k |w_k - mean|^2.
    * ``learned``: Q = Omega^-1 / m with Omega = (D'D)^(1/2) / tr((D'D)^(1/2)), D the models less their mean: its
      clustered or probabilistic example, where Omega is learned in turn with W.

    As the gradient of the penalty by w_k is lambda * Q_kk * (w_k - a_k) with a_k = -sum over j != k of
    (Q_kj / Q_kk) w_j, the server sends a_k as the anchor ``related`` and lambda * Q_kk as ``strength``:
    d = g + strength * (theta - related), an exact proximal step. m runs over the devices of the same group that have
    taken part. Each device goes on from its own latest model.

    Differs from the paper: it solves a dual problem of linear models (MOCHA, for stragglers); ours are gradient steps
    on any model, each device against the others' latest models. Omega^-1 is divided by m, so that lambda means the
    same for both relations, and has a ridge of 0.1/m. All devices count the same: ``weighting`` is not used. The
    server sees every device's model, and keeps it: memory grows with the devices that took part; ``learned``
    inverts a matrix of their number per group.

    Limits: lam = 0 is local training, lam -> infinity holds all models at their mean. Devices that are alone in
    their group train locally whatever lam is.
    """

    merges_means: ClassVar[bool] = False
    why_not_private: ClassVar[str] = "it keeps the model of every device, and others are pulled to it"

    lam: Annotated[float, Param("lambda, the pull to related devices; 0 is local training", low=0.0)] = 0.1
    relation: Annotated[
        str,
        Param("how devices are related: all the same, or learned from models", choices=("mean", "learned")),
    ] = "mean"

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Train, pulled to the related models."""
        return (at.local.train(anchor="related", mu="strength", prox="implicit"),)

    @override
    def begin(self, server: Server) -> None:
        """Nobody has a model yet."""
        server.numbers["multitask"] = {}

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        """What a device gets that nobody is related to."""
        return {"global": server.values, "related": server.values, "strength": self._strength(server, 0.0)}

    @override
    def sets_for(self, server: Server, client: int, group: str) -> dict[str, Values]:
        """The device's own latest model, the related models' combination, the strength of the pull."""
        names, members = self._names(server), self._members(server, group)
        own = server.sets.get(_key(client), {n: server.values[n] for n in names})
        others = [m for m in members if m != client]
        related, coupling = own, 0.0
        precision = server.sets.get(f"precision:{group}", {}).get("matrix")
        if others and precision is not None and client in members:
            row = precision[members.index(client)]
            factors = {m: -row[members.index(m)] / row[members.index(client)] for m in others}
            mean = self._mean(server, group, len(members))
            related = {
                n: np.asarray(
                    mean[n] + sum(f * (server.sets[_key(m)][n] - mean[n]) for m, f in factors.items()),
                    np.float32,
                )
                for n in names
            }
            coupling = float(row[members.index(client)])
        elif others:
            # Of I - 11'/m: the mean of the others, and 1 - 1/m.
            related = self._mean(server, group, len(others), without=own if client in members else None)
            coupling = len(others) / (len(others) + 1)
        return {
            "global": {**server.values, **own},
            "related": {**server.values, **related},
            "strength": self._strength(server, self.lam * coupling),
        }

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """Keep every device's model; the global values become the mean of all."""
        with server.undo_on_error():
            names, groups = self._names(server), list(updates.groups) or [""] * len(updates)
            member_of: dict[str, str] = dict(server.numbers["multitask"])
            base = {n: server.values[n] for n in names}
            # Sums of each group's models, so that a mean costs the same however many devices took part.
            sums = {g: dict(server.sets.get(_sum(g), {})) for g in {*groups, *member_of.values()}}
            for i, (client, group) in enumerate(zip(updates.clients, groups, strict=True)):
                known = server.sets.get(_key(client))
                own = base if known is None else known
                change = updates.one(i)
                model = {n: own[n] + change[n] for n in names}
                check_values(model, model)
                for n in names:
                    if known is not None:
                        before = sums[member_of[str(client)]]
                        before[n] = before[n] - known[n]
                    sums[group][n] = sums[group].get(n, 0.0) + model[n].astype(np.float64)
                server.sets[_key(client)] = model
                member_of[str(client)] = group
            server.sets |= {_sum(g): values for g, values in sums.items()}
            server.numbers["multitask"] = member_of
            total = {n: sum((v[n] for v in sums.values()), np.float64(0)) for n in names}
            mean = {n: np.asarray(t / len(member_of), np.float32) for n, t in total.items()}
            server.values = {**server.values, **mean}
            if self.relation == "learned":
                for group in sorted(set(groups)):
                    server.sets[f"precision:{group}"] = {"matrix": self._precision(server, group)}

    def _precision(self, server: Server, group: str) -> np.ndarray:
        """Omega^-1 / m of a group, float64 [m, m]."""
        members = self._members(server, group)
        models = np.stack(
            [
                np.concatenate([v.reshape(-1) for _, v in sorted(server.sets[_key(m)].items())])
                for m in members
            ]
        ).astype(np.float64)
        centered = models - models.mean(axis=0)
        return precision(centered @ centered.T)

    @staticmethod
    def _names(server: Server) -> list[str]:
        return server.names("shared", "group")

    @staticmethod
    def _members(server: Server, group: str) -> list[int]:
        """The devices of a group that have taken part, in order."""
        return sorted(int(c) for c, g in server.numbers["multitask"].items() if g == group)

    @staticmethod
    def _mean(server: Server, group: str, count: int, without: Tensors | None = None) -> Tensors:
        """Mean of a group's models; ``count`` of them, one left out or not."""
        return {
            n: np.asarray((total - (0.0 if without is None else without[n])) / count, np.float32)
            for n, total in server.sets[_sum(group)].items()
        }

    def _strength(self, server: Server, value: float) -> Tensors:
        """One number for each tensor, as ``mu`` takes it."""
        return {name: np.full(1, value, np.float32) for name in server.names("shared", "group", "personal")}


def precision(gram: np.ndarray) -> np.ndarray:
    """Omega^-1 / m for Omega = gram^(1/2) / tr(gram^(1/2)) with a ridge; all alike where the gram is 0.

    Args:
        gram: inner products of the models less their mean, [m, m].
    """
    count = len(gram)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    roots = np.sqrt(np.maximum(values, 0.0))
    if roots.sum() == 0:
        return np.eye(count) - 1.0 / count
    inverse = 1.0 / ((1 - RIDGE) * roots / roots.sum() + RIDGE / count)
    return np.asarray((vectors * inverse) @ vectors.T / count, np.float64)


def _key(client: int) -> str:
    return f"model:{client}"


def _sum(group: str) -> str:
    return f"sum:{group}"

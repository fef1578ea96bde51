"""Hierarchical training: a model for each group of devices, and personal tensors on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import Server
from pfl_mobile.strategies.strategy import Strategy, check_values, mean_change

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates


@register(
    "hierarchical",
    title="Models of groups, and personal tensors where there are any",
    paper="Liu, Zhang, Song, Letaief 2019, Client-edge-cloud hierarchical federated learning (arXiv 1905.06641)",
    shares="all trained tensors but the personal ones, within the device's group",
    keeps="personal tensors, where the model has any",
)
@dataclass(frozen=True, kw_only=True)
class Hierarchical(Strategy):
    """HierFAVG with the groups of the data as its edges.

    With w^l the model of group l, n_i the examples of device i and n^l those of a group:

        w^l <- sum over devices i of l of (n_i / n^l) w_i                              every round
        w   <- sum over groups l of (n^l / n) w^l, and then w^l <- w                   every ``period`` rounds

    The paper's kappa_1 is the local steps of a round, its kappa_2 is ``period``; 0 never merges the groups, which
    then have models of their own. Tensors with the role ``group`` are the group's; without any, all shared ones are.
    Then tensors with the role ``shared`` are merged over all devices in every round. Personal tensors are trained
    along and stay on the device. Devices without a group are one group.

    Differs from the paper: a round's cohort is drawn over all groups, so n^l counts the examples of a group's
    devices that took part since the groups were last merged.

    Limits: one group is FedAvg; groups of one device each with period = 0 are local training; period = 1 is FedAvg.
    """

    # A sum with a block of columns for each group would be one bounded sum. It would need every group, and how many of
    # its devices a round has, fixed in advance, noise for the groups that nobody is in too, and no count of examples.
    why_not_private: ClassVar[str] = (
        "it takes a mean for every group, over as many examples as its devices had, which is not fixed in advance"
    )

    period: Annotated[int, Param("rounds between merges of the groups; 1 is FedAvg, 0 never", low=0)] = 0

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """Merge within the groups, and the groups when it is their time."""
        with server.undo_on_error():
            own = server.names("group") or server.names("shared")
            weights = self.weighting.weights(updates, server)
            rest = [name for name in server.names("shared") if name not in own]
            self.apply(server, mean_change(updates, weights, rest))
            groups = list(updates.groups) or [""] * len(updates)
            seen: dict[str, int] = dict(server.numbers.get("hierarchical", {}))
            for group in sorted(set(groups)):
                rows = np.array([g == group for g in groups])
                change = mean_change(updates.select(rows), weights[rows], own)
                values = dict(server.groups.get(group, {n: server.values[n] for n in own}))
                self.optimizer.apply(server, f"group:{group}", values, change)
                check_values(values, change)
                server.groups[group] = values
                seen[group] = seen.get(group, 0) + int(updates.examples[rows].sum())
            server.values = {**server.values, **self._mean(server, own, seen)}
            if self.period and (server.round + 1) % self.period == 0:
                server.groups = {group: {n: server.values[n] for n in own} for group in server.groups}
                seen = {}
            server.numbers["hierarchical"] = seen

    @staticmethod
    def _mean(server: Server, names: list[str], seen: dict[str, int]) -> dict[str, np.ndarray]:
        """Mean of the groups' values by examples seen: what a device of a new group starts from."""
        total = sum(seen.values())
        return {
            n: np.asarray(
                sum(np.float64(count / total) * server.groups[g][n] for g, count in sorted(seen.items())),
                np.float32,
            )
            for n in names
        }

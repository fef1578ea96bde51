"""FedP3: every device trains a pruned model of the size that it can bear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param, check_ranges
from pfl_mobile.plan.phases import Phase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive, permutation
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, without_upload

if TYPE_CHECKING:
    from pfl_mobile.merge.updates import Updates

Masks = dict[str, np.ndarray]


@dataclass(frozen=True)
class ModelTraffic:
    """Bytes of one device in one round.

    Attributes:
        down: values of the kept entries and one bit per entry that says which they are.
        up: changes of the kept entries of the layers that the device sends.
        dense: what the whole model takes, each way.
    """

    down: int
    up: int
    dense: int


@register(
    "fedp3",
    title="FedP3: personalized, privacy-friendly pruning",
    paper="Yi, Gazagnadou, Richtarik, Lyu 2024, FedP3: Federated personalized and privacy-friendly network pruning "
    "under model heterogeneity (arXiv 2404.09816)",
    shares="the kept entries of the layers that the device sends",
)
@dataclass(frozen=True, kw_only=True)
class FedP3(Strategy):
    """Server-to-client pruning P_i, a subset of layers L_i that goes back, and entry-wise averaging.

    In a round device i gets P_i * w, with the mask P_i in {0, 1} of its sparsity; it trains the entries that are
    kept, so the rest stays 0; it sends the changes of the layers L_i. The server averages every entry over the
    devices that trained and sent it:

        w <- w + (sum_i p_i S_i * c_i) / (sum_i p_i S_i)      entry by entry, S_i = P_i within L_i; 0/0 is 0

    P_i keeps the largest entries of each tensor of the present global values; of equal ones (a LoRA's zeros) it keeps
    a random choice that each device keeps through the rounds. L_i is drawn anew in every round.

    Differs from the paper: masks are by magnitude, and a whole round uses one (its ``fixed`` local pruning; it also
    has random and ordered ones); layers that a device does not send are not trained by it either, so that its
    trained values of them never have to be kept. Only tensors with the role ``shared`` are pruned.

    Limits: sparsity = 0 and layers = 1 is FedAvg.

    Attributes:
        by_group: sparsity of the devices of a group (a class of resources), in place of ``sparsity``.
        by_client: sparsity of single devices, in place of both.
    """

    merges_means: ClassVar[bool] = False
    why_not_private: ClassVar[str] = (
        "it divides every entry by how many devices of the round sent that entry, which is not fixed in advance"
    )

    sparsity: Annotated[
        float,
        Param("part of each tensor's entries that is pruned; 0 is FedAvg", low=0.0, high=1.0, open=("high",)),
    ] = 0.5
    layers: Annotated[
        float, Param("part of the layers that a device trains and sends", low=0.0, high=1.0, open=("low",))
    ] = 1.0
    by_group: Mapping[str, float] = field(default_factory=dict)
    by_client: Mapping[int, float] = field(default_factory=dict)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for owner, value in [*self.by_group.items(), *self.by_client.items()]:
            check_ranges(f"FedP3 for {owner!r}", FedP3, {"sparsity": value})

    def sparsity_of(self, client: int, group: str = "") -> float:
        """Sparsity of one device."""
        return self.by_client.get(client, self.by_group.get(group, self.sparsity))

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Train what the mask allows."""
        return (at.local.train(mask="mask"),)

    @override
    def personal_plan(self, at: RoundContext) -> Plan:
        """Train the pruned model once more, for itself."""
        return without_upload(self.plan(at))

    def masks(self, server: Server, client: int, group: str = "") -> Masks:
        """P_i: 1 for a kept entry, float32 of each tensor's shape."""
        sparsity = self.sparsity_of(client, group)
        return {
            name: keep_largest(server.values[name], sparsity, derive(0, client, k))
            for k, name in enumerate(server.names("shared"))
        }

    def sends(self, server: Server, client: int) -> set[str]:
        """L_i: the tensors of the layers that a device sends in this round, at least one layer."""
        names = server.names("shared")
        layers = sorted({_layer(name) for name in names})
        count = max(1, round(self.layers * len(layers)))
        order = permutation(derive(1, client, server.round), len(layers))
        chosen = {layers[i] for i in order[:count]}
        return {name for name in names if _layer(name) in chosen}

    @override
    def sets_for(self, server: Server, client: int, group: str) -> dict[str, Values]:
        """The pruned values, and the mask of what is trained."""
        kept, sent = self.masks(server, client, group), self.sends(server, client)
        values = super().sets_for(server, client, group).get("global", server.values)
        pruned = {name: values[name] * mask for name, mask in kept.items()}
        trained = {name: mask if name in sent else np.zeros_like(mask) for name, mask in kept.items()}
        own = {name: np.ones_like(server.values[name]) for name in server.names("group", "personal")}
        return {"global": {**values, **pruned}, "mask": {**trained, **own}}

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        """Nothing pruned; every device gets sets of its own."""
        return {
            "global": server.values,
            "mask": {n: np.ones_like(server.values[n]) for n in server.names("shared", "group", "personal")},
        }

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """Average every entry over the devices that trained it."""
        with server.undo_on_error():
            names = server.names("shared")
            weights = updates.bounded(self.weighting.weights(updates, server))
            groups = list(updates.groups) or [""] * len(updates)
            counted = {n: np.zeros(server.values[n].shape) for n in names}
            for client, group, weight in zip(updates.clients, groups, weights, strict=True):
                mask, sent = self.masks(server, client, group), self.sends(server, client)
                for name in sent & counted.keys():
                    counted[name] += weight * mask[name]
            total = updates.weighted_sum(weights)
            change = {
                n: np.asarray(np.divide(total[n], c, out=np.zeros_like(c), where=c > 0), np.float32)
                for n, c in counted.items()
            }
            for name, delta in change.items():
                # A value that is not finite must not pass for an entry that nobody trained.
                delta[~np.isfinite(total[name])] = np.nan
            self.apply(server, change)
            self.merge_groups(server, updates, weights)

    @override
    def bytes_on_wire(self, server: Server, client: int, group: str) -> tuple[int, int]:
        """Of the kept entries."""
        found = self.traffic(server, client, group)
        return found.down, found.up

    def traffic(self, server: Server, client: int, group: str = "") -> ModelTraffic:
        """Bytes that a device receives and sends in this round."""
        masks, sent = self.masks(server, client, group), self.sends(server, client)
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        entries = sum(mask.size for mask in masks.values())
        bitmap = (entries + 7) // 8 if self.sparsity_of(client, group) > 0 else 0
        return ModelTraffic(4 * sum(kept.values()) + bitmap, 4 * sum(kept[n] for n in sent), 4 * entries)


def keep_largest(values: np.ndarray, sparsity: float, seed: int) -> np.ndarray:
    """A mask of the entries of largest magnitude, float32 of the values' shape.

    Args:
        values: any shape.
        sparsity: part that is 0 in the mask, rounded to whole entries; at least one entry stays.
        seed: which of equal entries stay.
    """
    size = values.size
    pruned = min(round(sparsity * size), size - 1)
    if not pruned:
        return np.ones(values.shape, np.float32)
    magnitude = np.abs(values).reshape(-1)
    least = np.partition(magnitude, pruned)[pruned]  # of those that stay
    mask = magnitude > least
    equal = np.flatnonzero(magnitude == least)
    missing = size - pruned - int(mask.sum())
    if missing < len(equal):
        equal = equal[permutation(seed, len(equal))[:missing]]
    mask[equal] = True
    return np.asarray(mask.reshape(values.shape), np.float32)


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name

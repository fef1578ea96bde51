"""SCAFFOLD: local steps corrected by how a device's gradients differ from everybody's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.merge.updates import Updates
from pfl_mobile.plan.phases import CombinePhase, Phase, Term
from pfl_mobile.plan.schema import CopyStart
from pfl_mobile.plan.select import copy_key
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.strategy import Strategy, check_values, mean_change
from pfl_mobile.strategies.weighting import Equally, Weighting

_SHARED = ("role:shared",)


@register(
    "scaffold",
    title="Local steps with control variates",
    paper="Karimireddy and others 2020, SCAFFOLD: stochastic controlled averaging for federated learning "
    "(arXiv 1910.06378)",
    shares="all trained tensors, and the change of each device's control variate (twice the bytes of FedAvg)",
    keeps="the control variate",
)
@dataclass(frozen=True, kw_only=True)
class Scaffold(Strategy):
    """The paper's algorithm 1 with option II. Device i, from the server's x and c, K times:

        y_i <- y_i - eta_l (g_i(y_i) - c_i + c)
        c_i+ = c_i - c + (x - y_i) / (K eta_l);   sends y_i - x and c_i+ - c_i

    and the server x <- x + eta_g * mean(y_i - x), c <- c + (|S| / N) * mean(c_i+ - c_i) over the cohort S of N
    devices. In the update rule: control = c - c_i, made and kept up by ``combine`` phases; c_i is a copy that
    starts at 0. eta_g is the server optimizer's rate (``FedAvgM(lr=..., momentum=0)``), 1 by default.

    Control variates belong to shared tensors; those of groups and personal ones are trained without. Devices count
    the same, as in the paper; other weightings w give c as the mean of the c_i by w when everybody takes part.
    Option I, a further gradient at x, is not there.

    Limits: with one device it is SGD; while all c_i are 0, in the first round, it is FedAvg.
    """

    merges_stale: ClassVar[bool] = True

    weighting: Weighting = field(default_factory=Equally)

    @override
    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """Corrected training, then the new c_i.

        Raises:
            ConfigError: no shared tensors, or an optimizer that is not plain SGD.
        """
        at.need("shared", self)
        at.plain_rate(self)
        return (
            CombinePhase(group=_SHARED, makes="control", terms=(Term(of="c"), Term(of="c_i", times=-1.0))),
            at.local.train(control="control"),
            # The way first, then its scale: so nothing is lost to rounding when the rate is small.
            CombinePhase(group=_SHARED, makes="way", terms=(Term(of="global"), Term(of="theta", times=-1.0))),
            CombinePhase(
                group=_SHARED,
                makes="c_i",
                terms=(Term(of="c_i"), Term(of="c", times=-1.0), Term(of="way", per="rate")),
            ),
        )

    @override
    def copies(self, at: RoundContext) -> dict[str, CopyStart]:
        """c_i, and a correction of zero for tensors that have none."""
        return {"c_i": CopyStart(group=_SHARED), "control": CopyStart()}

    @override
    def keep(self, at: RoundContext) -> tuple[str, ...]:
        """The control variate of the device, c_i."""
        return ("c_i",)

    @override
    def upload_copies(self, at: RoundContext) -> tuple[str, ...]:
        """The change of the device's control variate, c_i."""
        return ("c_i",)

    @override
    def begin(self, server: Server) -> None:
        """The control variate of the server, c, starts at 0."""
        server.sets["c"] = server.zeros("shared")

    @override
    def sets(self, server: Server) -> dict[str, Values]:
        """The global values and c."""
        return {**super().sets(server), "c": server.sets["c"]}

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """FedAvg's merge, and c.

        Raises:
            NonFiniteError: a merged value is NaN or infinite; nothing is changed then.
        """
        with server.undo_on_error():
            names = server.names("shared")
            weights = self.weighting.weights(updates, server)
            change = mean_change(updates, weights, [*names, *(copy_key("c_i", n) for n in names)])
            self.apply(server, {n: change[n] for n in names if n in change})
            part = np.float32(updates.expected / server.population)
            controls = {
                n: c + part * change[copy_key("c_i", n)] if copy_key("c_i", n) in change else c
                for n, c in server.sets["c"].items()
            }
            check_values(controls, controls)
            server.sets["c"] = controls
            self.merge_groups(server, updates, weights)

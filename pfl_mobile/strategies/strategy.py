"""The base of all strategies: the device's part is a plan, the server's part merges what comes back.

A subclass overrides what differs from federated averaging, usually ``phases`` or ``merge`` alone. Weighting
(fairness), server optimizer and clipping are fields, so they go with every strategy:

    Scafflix(p=0.2, weighting=BoundedGroupLoss(max_loss=0.15))
    FedRep(weighting=Tilted(t=2.0), optimizer=FedAdam(lr=0.01))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.errors import ConfigError, NonFiniteError, PrivacyError
from pfl_mobile.hyperparameters import check_ranges
from pfl_mobile.merge.private import PRIVATE_MEND
from pfl_mobile.plan.phases import MovePhase, Phase
from pfl_mobile.plan.schema import CopyStart, Guard, Plan
from pfl_mobile.strategies.server_optimizer import ServerOptimizer
from pfl_mobile.strategies.state import RoundContext, Server, Values
from pfl_mobile.strategies.weighting import ByExamples, SummedBy, Weighting

if TYPE_CHECKING:
    from torch import nn

    from pfl_mobile.merge.rules import MergeRule
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.modules.roles import DeviceTensorInfo
    from pfl_mobile.plan.schema import ServeMix


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Federated averaging, which every other strategy departs from.

    Attributes:
        weighting: how much each device counts.
        optimizer: what the server does with the mean change.
    """

    #: Whether the merge is by means of updates, so that a robust rule can take their place.
    merges_means: ClassVar[bool] = True
    #: Why its rounds cannot be private, in words; empty where it takes one mean and reads nothing else of the changes.
    why_not_private: ClassVar[str] = ""
    #: Whether `merge` needs no change of a single device, so that changes may be added up where devices train.
    merges_sums: ClassVar[bool] = True
    #: Whether `merge` adds up changes whichever version they start from, so that rounds can be buffered.
    merges_stale: ClassVar[bool] = True
    #: Whether `sets_for` sends a device sets of its own, beside those of its group.
    sends_own_sets: ClassVar[bool] = False

    weighting: Weighting = field(default_factory=ByExamples)
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)

    @override
    def __init_subclass__(cls, **arguments: Any) -> None:
        """What a class says of a method holds for that method: a subclass with its own has to say it again."""
        super().__init_subclass__(**arguments)
        own = vars(cls)
        if "merge" in own or "merge_groups" in own:
            cls.merges_sums = own.get("merges_sums", False)
        if "merge" in own:
            cls.merges_stale = own.get("merges_stale", False)
        if "sets_for" in own:
            cls.sends_own_sets = own.get("sends_own_sets", True)

    def __post_init__(self) -> None:
        """Refuse hyper-parameters outside their range, and what is no weighting or optimizer (ConfigError)."""
        for name, kind in (("weighting", Weighting), ("optimizer", ServerOptimizer)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"{type(self).__name__}: {name} is {getattr(self, name)!r}",
                    mend=f"give a {kind.__name__} object; by name, fairness= takes a weighting",
                )
        check_ranges(type(self).__name__, type(self), vars(self))

    @property
    def private(self) -> bool:
        """Whether its rounds can be private, where no tensor has the role ``group``; see ``check_private``."""
        try:
            self.check_private(())
        except PrivacyError:
            return False
        return True

    def check_rule(self, rule: MergeRule) -> None:
        """Refuse a robust rule that the merge would go around (ConfigError); call it before the first round."""
        if not (self.merges_means or rule.additive):
            raise ConfigError(
                f"{type(self).__name__} does not merge by means, so {type(rule).__name__} could not protect it",
                mend="leave the robust rule out, or choose a strategy that takes a mean",
            )

    def check_private(self, table: Sequence[DeviceTensorInfo]) -> None:
        """Refuse private rounds that the merge would fail in; call it before the first.

        They let out one sum of changes, each clipped and with a weight in 0..1 that no other device changes, divided by
        a number fixed in advance. Then one device moves it by the clip norm at most, which is what is accounted.

        Args:
            table: the device tensors.

        Raises:
            PrivacyError: the merge needs more of the updates than that.
        """
        self.weighting.check_private()
        why = self.why_not_private
        if not why and any(t.role == "group" and t.update == "gradient" for t in table):
            why = "tensors with the role 'group' need a mean for every group, and a private merge gives one"
        if why:
            raise PrivacyError(f"{type(self).__name__} cannot be private: {why}", mend=PRIVATE_MEND)

    # -- the model

    def modules(self, backbone: nn.Module) -> tuple[ModuleConfig, ...]:
        """What the strategy puts into a backbone that nothing was put into; by default nothing."""
        return ()

    def roles(self) -> dict[str, str]:
        """Roles of the tensors of ``modules`` by pattern, as ``personalize`` takes them; others are personal."""
        return {}

    # -- the device

    def phases(self, at: RoundContext) -> tuple[Phase, ...]:
        """What a device does with the values that it was sent."""
        return (at.local.train(),)

    def copies(self, at: RoundContext) -> dict[str, CopyStart]:
        """Copies that a device has from the start."""
        return {}

    def keep(self, at: RoundContext) -> tuple[str, ...]:
        """Copies that a device keeps from round to round."""
        return ()

    def upload_copies(self, at: RoundContext) -> tuple[str, ...]:
        """Copies whose change is sent."""
        return ()

    def for_steps(self, steps: int) -> Mapping[str, Any]:
        """The hyper-parameters that make a device take ``steps`` local steps in a round.

        Empty, the default, where ``Local`` says how long devices train.
        """
        return {}

    def full_sync_steps(self, at: RoundContext) -> int | None:
        """How often a device would send in this round if it did after every local step, where it is about sending less.

        None, the default, where the paper does not compare with that.
        """
        return None

    def serve(self, at: RoundContext) -> str | ServeMix:
        """What predictions use."""
        return "theta"

    def plan(self, at: RoundContext) -> Plan:
        """The device's part of a round.

        Raises:
            ConfigError: the strategy shares tensors, but none of the model's has that role.
        """
        sent = at.traveling
        if not sent:
            raise ConfigError(
                f"{type(self).__name__} shares tensors but the model's are all personal",
                mend="give tensors the role 'shared', or choose the strategy 'local'",
            )
        return Plan(
            phases=(*take_over(at), *self.weighting.measures(at), *self.phases(at)),
            upload=sent,
            copies=self.copies(at),
            keep=self.keep(at),
            upload_copies=self.upload_copies(at),
            serve=self.serve(at),
            guard=Guard(),
            seed=at.seed % 2**63,
        )

    def personal_plan(self, at: RoundContext) -> Plan | None:
        """How a device makes its own model from the shared one once the rounds are over; None: it does not.

        By default a device that keeps anything does what it does in a round, and sends nothing.
        """
        if not (at.has("personal") or self.keep(at)):
            return None
        return without_upload(self.plan(at))

    # -- the server

    def begin(self, server: Server) -> None:
        """Fill the server's sets before the first round."""

    def sets(self, server: Server) -> dict[str, Values]:
        """Sets sent to every device; ``global`` is always among them."""
        return {"global": server.values}

    def sets_for(self, server: Server, client: int, group: str) -> dict[str, Values]:
        """Sets sent to one device, over those of ``sets``: by default its group's values."""
        if not server.groups:
            return {}
        return {"global": {**server.values, **server.groups.get(group, {})}}

    def bytes_on_wire(self, server: Server, client: int, group: str) -> tuple[int, int] | None:
        """Bytes down to and up from a device in this round, where they are fewer than the sets' and changes' own.

        None, the default, where whole tensors travel.
        """
        return None

    def summed_by(self, server: Server) -> SummedBy | None:
        """How devices count, where ``merge`` needs no change of a single device; changes are added up early then.

        None where the merge needs more (``merges_sums``) or a weight needs more than a number of examples.
        """
        return self.weighting.summed_by if self.merges_sums and not server.names("group") else None

    def merge(self, server: Server, updates: Updates) -> None:
        """Merge a round. Called with at least one update.

        A cohort may be larger than memory, so a merge reads the changes of a few devices at a time: by a mean, a sum,
        or ``Updates.one``.

        Raises:
            NonFiniteError: a merged value is NaN or infinite; nothing is changed then.
        """
        with server.undo_on_error():
            weights = self.weighting.weights(updates, server)
            self.apply(server, mean_change(updates, weights, server.names("shared")))
            self.merge_groups(server, updates, weights)

    def apply(self, server: Server, change: Values) -> None:
        """Let the server optimizer change the shared values."""
        values = dict(server.values)
        self.optimizer.apply(server, "global", values, change)
        check_values(values, change)
        server.values = values

    def merge_groups(self, server: Server, updates: Updates, weights: np.ndarray) -> None:
        """Merge the tensors with the role ``group`` within each group."""
        names = server.names("group")
        if not names:
            return
        for group in sorted(set(updates.groups)):
            rows = np.array([g == group for g in updates.groups])
            change = mean_change(updates.select(rows), weights[rows], names)
            old = server.groups.get(group, {n: server.values[n] for n in names})
            new = {n: old[n] + change[n] for n in change}
            check_values(new, change)
            server.groups[group] = {**old, **new}


def mean_change(updates: Updates, weights: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean of the changes of these tensors by the updates' rule; nothing when all weights are 0.

    Raises:
        TooFewUpdatesError, PrivacyError: as ``Updates.mean``.
        NonFiniteError: a weight is negative, NaN or infinite.
    """
    if not updates.private:
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise NonFiniteError(
                "a weight of the merge is negative or not finite", mend="check the losses that devices report"
            )
        if not (weights > 0).any():
            return {}
    merged = updates.mean(weights)
    return {name: merged[name] for name in names}


def check_values(values: Values, names: Values) -> None:
    """Refuse merged values that are not finite (NonFiniteError)."""
    for name in names:
        if not np.isfinite(values[name]).all():
            raise NonFiniteError(
                f"the merged tensor {name!r} has values that are NaN or infinite",
                mend="lower the learning rate of the devices or the server, or set clip",
            )


def take_over(at: RoundContext) -> tuple[MovePhase, ...]:
    """The phase that takes the aggregator's values over: part of each plan, so that it says all that is done."""
    return (MovePhase(group=at.traveling, toward="global", rate=1.0),) if at.traveling else ()


def local_plan(
    at: RoundContext, *phases: Phase, keep: tuple[str, ...] = (), serve: str | ServeMix = "theta"
) -> Plan:
    """A plan that takes the aggregator's values over, runs these phases and sends nothing."""
    return Plan(phases=(*take_over(at), *phases), keep=keep, serve=serve, seed=at.seed % 2**63)


def without_upload(plan: Plan) -> Plan:
    """The plan, sending nothing."""
    return plan.model_copy(update={"upload": (), "upload_copies": ()})

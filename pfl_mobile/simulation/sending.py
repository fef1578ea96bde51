"""What the server sends to the devices of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfl_mobile.federation.round import RoundDefinition, sets_read
from pfl_mobile.plan.schema import Plan
from pfl_mobile.simulation.pool import Pool, Refs
from pfl_mobile.strategies.state import Server, Values


@dataclass(frozen=True)
class Sent:
    """Arrays for the devices of a round.

    Attributes:
        pool: holds them.
        start: what a device without a state starts from.
        sets: those that the plan reads, and ``global``.
        own: sets of each device alone; empty where none has any.
        bytes_down: on the wire, mean over the devices. What comes with the bundle is not sent: the shipped values,
            the plan, personal tensors.
    """

    pool: Pool
    start: Refs
    sets: Mapping[str, Refs]
    own: Sequence[Mapping[str, Refs]]
    bytes_down: int


def send(
    definition: RoundDefinition,
    server: Server,
    initial: Values,
    plans: Sequence[Plan],
    devices: Sequence[tuple[int, str]],
) -> Sent:
    """Put what the plans read into a pool.

    Args:
        definition: of the round, says which sets travel.
        server: their values.
        initial: the shipped values.
        plans: that the devices run.
        devices: index and group of each.
    """
    read = sets_read(plans)
    # Changes are against the global values, so workers need these in any case; other values are not read by a device.
    common = dict(definition.common_sets(server, read))
    if "initial" in read:
        common["initial"] = initial
    own = [definition.own_sets(server, read, client, group) for client, group in devices]

    def size(name: str, values: Values) -> int:
        if name == "initial" or name not in read:
            return 0
        return sum(v.nbytes for v in definition.on_wire(name, values).values())

    sizes = {name: size(name, values) for name, values in common.items()}
    total = len(devices) * sum(sizes.values())
    total += sum(size(n, v) - sizes.get(n, 0) for one in own for n, v in one.items())
    pool = Pool()
    return Sent(
        pool,
        pool.add_set(server.values),
        {n: pool.add_set(v) for n, v in common.items()},
        [{n: pool.add_set(v) for n, v in one.items()} for one in own] if any(own) else (),
        round(total / max(len(devices), 1)),
    )

"""The aggregator merges as the simulator does: the same updates give the same state, for every strategy.

Under the bounds of the aggregator, which a simulation, where nobody can lie, leaves out unless it is told.
"""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.round import LOSSES
from pfl_mobile.merge.bounds import bounded_losses
from pfl_mobile.merge.updates import Updates
from pfl_mobile.strategies import create, names
from pfl_mobile.strategies.server_state_file import plain_numbers
from pfl_mobile.strategies.state import Local, RoundContext, Server
from pfl_server.federation.config import RoundsConfig
from tests.server.testbed import federation_config, layout, small, update_of

pytestmark = pytest.mark.filterwarnings("ignore:EWC without fisher")

GROUPS = ("north", "south")
TENSORS = (("a", "shared", (4,)), ("b.w", "shared", (2, 3)), ("g", "group", (3,)), ("p", "personal", (2,)))
DEVICES, ROUNDS = 4, 3
SGD = {"kind": "sgd", "lr": 0.1}
#: Strategies that send nothing.
SILENT = {"local"}


def sent(f, number):
    """Every device gets its task and uploads: random changes, losses, examples. What it sent, in their order."""
    found = []
    for index, device in enumerate(f.devices):
        rng = np.random.default_rng((number, index))
        task = f.task(device)
        values = (0.1 * rng.standard_normal(layout(task).size)).astype(np.float32)
        reports = {name: float(rng.uniform(0.1, 2)) for name in task["reports"]}
        if "cluster" in reports:
            reports["cluster"] = float(index % 2)
        examples, steps = int(rng.integers(1, 50)), int(rng.integers(1, 9))
        data = update_of(task, values, examples=examples, steps=steps, reports=reports)
        assert f.put(device, task, data).status_code == 200
        found.append((values, examples, steps, reports, layout(task)))
    return found


def merged(strategy, server, updates, groups):
    """What the simulator's rounds do with them."""
    values, examples, steps, reports, layouts = zip(*updates, strict=True)
    strategy.merge(
        server,
        Updates(
            layouts[0],
            np.stack(values),
            list(range(len(updates))),
            np.array(examples, np.int64),
            np.array(steps, np.int64),
            {
                name: bounded_losses(found) if name in LOSSES else found
                for name in sorted(reports[0])
                for found in [np.array([r[name] for r in reports])]
            },
            groups,
            len(updates),
            most=RoundsConfig().max_part,
        ),
    )
    server.round += 1
    server.numbers = plain_numbers(server.numbers, strategy)


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_allclose(value, other[name], rtol=2e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("name", [name for name in names() if name not in SILENT])
def test_the_same_updates_give_the_same_state(tmp_path, name):
    config = federation_config(
        strategy={"name": name, "optimizer": SGD},
        rounds={"cohort": DEVICES, "minimum": DEVICES},
        privacy={"population": DEVICES},
        groups=GROUPS,
    )
    groups = [GROUPS[i % 2] for i in range(DEVICES)]
    strategy = create(name)
    with small(tmp_path, config, tensors=TENSORS) as f:
        for group in groups:
            f.enrol(1, group)
        runtime = f.services.runtime
        server = Server(runtime.table, DEVICES, dict(runtime.initial))
        strategy.begin(server)
        server.numbers = plain_numbers(server.numbers, strategy)
        for number in range(ROUNDS):
            seed = f.round().seed
            plan = strategy.plan(
                RoundContext(runtime.table, Local(optimizer=runtime.definition.local.optimizer), number, seed)
            )
            assert f.round().plan == plan.model_dump(mode="json")
            merged(strategy, server, sent(f, number), groups)
            f.step()
            assert f.round(number).state == "merged", f.round(number).error
            found = f.model()
            same(found.values, server.values)
            for kind in ("groups", "sets"):
                one, other = getattr(found, kind), getattr(server, kind)
                assert one.keys() == other.keys()
                for key in one:
                    same(one[key], other[key])
            assert found.round == server.round
            alike(found.numbers, server.numbers)


def alike(one, other):
    """Numbers, and lists and dicts of them, up to rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            alike(a, b)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5)
    else:
        assert one == other


def test_a_strategy_that_sends_nothing_is_refused(tmp_path):
    with (
        pytest.raises(ConfigError, match="nothing to merge"),
        small(tmp_path, federation_config(strategy={"name": "local"})),
    ):
        pass

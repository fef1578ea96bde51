"""What every registered strategy must do, those of tomorrow too: the names come from the registry."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, NonFiniteError, UnknownNameError
from pfl_mobile.hyperparameters import parameters
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies import Param, create, entry, names
from tests.strategies.harness import Federation, state
from tests.strategies.models import Softmax, classes

pytestmark = pytest.mark.filterwarnings("ignore:EWC without fisher")

USERS = 6
PARAMETERS = [(name, p) for name in names() for p in parameters(entry(name).make)]


def federation(name: str, users: int = USERS, **rest: object) -> Federation:
    model = Softmax(personal=entry(name).split)
    rng = np.random.default_rng(1)
    start = {t.name: (0.1 * rng.normal(size=t.shape)).astype(np.float32) for t in model.tensors}
    groups = [("a", "b")[i % 2] for i in range(users)]
    return Federation(create(name), model, classes(users), start=start, groups=groups, **rest)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ran(name: str) -> Federation:
    """Six rounds with four of six users, then two with all."""
    return federation(name).run(6, cohort=4).run(2)


def test_metadata_is_complete(name: str) -> None:
    found = entry(name)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert found.title
    assert found.shares
    assert re.search(r"\b(19|20)\d\d\b", found.paper), "the paper's year"
    assert found.make.__doc__
    shown = json.loads(json.dumps(found.to_json()))
    assert [p["name"] for p in shown["parameters"]] == list(parameters(found.make))
    assert all(p["meaning"] for p in shown["parameters"])


def test_plans_are_json_both_ways(name: str) -> None:
    fed = federation(name)
    for plan in (fed.strategy.plan(fed.context()), fed.strategy.personal_plan(fed.context())):
        assert plan is None or Plan.load(plan.dump()) == plan


def test_shapes_stay_and_nobody_fails(ran: Federation) -> None:
    assert ran.failures == 0
    assert ran.server.values.keys() == ran.shipped.keys()
    for name, value in ran.server.values.items():
        assert (value.shape, value.dtype) == (ran.shipped[name].shape, np.float32)
        assert np.isfinite(value).all()
    served = ran.served(0)
    assert {n: v.shape for n, v in served.items()} == {t.name: t.shape for t in ran.table}
    assert all(v.dtype == np.float32 for v in served.values())


def test_the_same_seed_gives_the_same_bits(name: str, ran: Federation) -> None:
    again = federation(name).run(6, cohort=4).run(2)
    assert state(again.server) == state(ran.server)
    for client in range(USERS):
        one, other = ran.copies.get(client, {}), again.copies.get(client, {})
        assert one.keys() == other.keys()
        for kept in one:
            assert {n: v.tobytes() for n, v in one[kept].items()} == {
                n: v.tobytes() for n, v in other[kept].items()
            }


def test_what_is_personal_stays_on_the_device(ran: Federation) -> None:
    ran = copy.deepcopy(ran)  # it goes on for one more round here
    plan = ran.strategy.plan(ran.context())
    personal = {t.name for t in ran.table if t.role == "personal"}
    updates = ran.collect([0, 1])
    kept = {copy_name for copies in ran.copies.values() for copy_name in copies}
    for sent in updates.layout.shapes:
        parts = sent.split(":") if sent.startswith("copy:") else ["", "", sent]
        assert parts[2] not in personal
        assert parts[1] in ("", *plan.upload_copies)
    for name in personal:
        np.testing.assert_array_equal(ran.server.values[name], ran.shipped[name])
    secrets = [v for tensors in ran.personal.values() for v in tensors.values()]
    secrets += [
        v
        for copies in ran.copies.values()
        for name in kept - set(plan.upload_copies)
        for v in copies.get(name, {}).values()
    ]
    held = [v for sets in (ran.server.sets, ran.server.groups) for t in sets.values() for v in t.values()]
    held += [v for n, v in ran.server.values.items() if n not in personal]
    for secret in secrets:
        assert not any(v.shape == secret.shape and np.array_equal(v, secret) and v.any() for v in held)


def test_a_nan_update_is_refused_and_changes_nothing(name: str) -> None:
    fed = federation(name).run(1)
    updates = fed.collect()
    if updates.layout.size:
        changes = updates.changes.copy()
        changes[1, 0] = np.nan
        before = state(fed.server)
        with pytest.raises(NonFiniteError):
            fed.strategy.merge(fed.server, updates.replaced(changes=changes))
        assert state(fed.server) == before
        fed.strategy.merge(fed.server, updates)  # and the good round can still be merged
        assert state(fed.server) != before
    else:
        before = state(fed.server)
        fed.strategy.merge(fed.server, updates)
        assert state(fed.server) == before, "nothing came, so nothing can change"


def test_the_order_of_devices_does_not_matter(name: str) -> None:
    fed = federation(name).run(1)
    updates = fed.collect()
    other = copy.deepcopy(fed.server)
    fed.strategy.merge(fed.server, updates)
    fed.strategy.merge(other, updates.select(np.array([3, 0, 5, 1, 4, 2])))
    for tensor, value in fed.server.values.items():
        np.testing.assert_allclose(value, other.values[tensor], rtol=1e-4, atol=1e-6)


def test_one_device_alone_works(name: str) -> None:
    fed = federation(name, users=1).run(2)
    assert np.isfinite(fed.mean_loss())


def test_the_loss_falls(ran: Federation) -> None:
    assert ran.mean_loss() < 0.9 * ran.mean_loss_at(ran.shipped)


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_hyper_parameters_out_of_range_are_refused(name: str, parameter: str) -> None:
    _, _, param = parameters(entry(name).make)[parameter]
    bad = outside(param)
    assert bad, "a hyper-parameter needs a range or choices"
    for value in bad:
        with pytest.raises(ConfigError, match=parameter):
            create(name, **{parameter: value})


def test_an_unknown_hyper_parameter_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="no hyper-parameter 'nonsense'"):
        create(name, nonsense=1)


def outside(param: Param) -> list[object]:
    """Values that the range or the choices forbid."""
    if param.choices:
        return ["nonsense"]
    bad: list[object] = []
    if param.low is not None:
        bad += [param.low - 1, float("nan")] + ([param.low] if "low" in param.open else [])
    if param.high is not None:
        bad += [param.high + 1] + ([param.high] if "high" in param.open else [])
    return bad

"""What a federation is: configuration, bundle, strategy."""

from __future__ import annotations

import json

import pytest

from pfl_mobile.cli.serve import _show
from pfl_mobile.errors import ConfigError, OtherSettingsError, PrivacyError, UnknownNameError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import MovePhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.strategies import Local
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.fedrep import FedRep
from pfl_mobile.strategies.tilted import Tilted
from pfl_server.summary import summary
from tests.server.testbed import PLAN, federation_config, small

GROUPED = (("a", "shared", (4,)), ("g", "group", (2,)))
SGD = {"kind": "sgd", "lr": 0.1}


def test_a_federation_goes_on_with_what_is_stored(tmp_path):
    with small(tmp_path, federation_config(), devices=1) as f:
        key = f.version().state_blob
    with small(tmp_path, federation_config()) as f:
        assert f.version().state_blob == key
    with small(tmp_path) as f:
        assert f.services.runtime.config == federation_config()
        assert f.federation().next_index == 1


def test_other_settings_and_bundles_are_refused(tmp_path):
    with small(tmp_path, federation_config()):
        pass
    with (
        pytest.raises(OtherSettingsError, match="deadline_s was"),
        small(tmp_path, federation_config(rounds={"deadline_s": 5.0})),
    ):
        pass
    (tmp_path / "bundle").rename(tmp_path / "old")
    with pytest.raises(OtherSettingsError, match="trains the bundle"), small(tmp_path, version="2"):
        pass


def test_a_new_federation_needs_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="no federation yet"), small(tmp_path):
        pass


def test_the_bundles_plan_takes_values_over(tmp_path):
    with small(tmp_path, federation_config()) as f:
        runtime = f.services.runtime
        one, other = (runtime.plan(f.model(), seed) for seed in (1, 2))
    assert one.phases[0] == MovePhase(group=("role:shared",), toward="global", rate=1.0)
    assert one.upload == ("role:shared",)
    assert (one.seed, other.seed) == (1, 2)
    assert one.phases[1:] == Plan.load(json.dumps({"schema_version": 1, **PLAN})).phases


def test_a_plan_that_takes_values_over_is_left_as_it_is(tmp_path):
    move = {"kind": "move", "group": ["a"], "toward": "global", "rate": 1.0}
    with small(
        tmp_path, federation_config(), plan={**PLAN, "phases": [move, *PLAN["phases"]], "upload": ["a"]}
    ) as f:
        plan = f.services.runtime.plan(f.model(), 0)
    assert [phase.kind for phase in plan.phases] == ["move", "train"]
    assert plan.upload == ("a",)


def test_the_strategy_that_the_bundle_names_runs_unless_another_is_configured(tmp_path):
    said = {
        "name": "fedrep",
        "parameters": {"head_epochs": 2},
        "epochs": 3,
        "optimizer": {"kind": "sgd", "lr": 0.5},
    }
    personal = {k: v for k, v in PLAN.items() if k != "upload"}
    with small(tmp_path / "one", federation_config(), plan=personal, strategy=said) as f:
        runtime = f.services.runtime
        head, body = [p for p in runtime.plan(f.model(), 0).phases if p.kind == "train"]
        shown = summary(f.services, "http://x")["strategy"]
    assert (runtime.definition.strategy, runtime.definition.local) == (
        FedRep(head_epochs=2),
        Local(epochs=3, optimizer=Sgd(lr=0.5)),
    )
    assert (head.epochs, head.group, body.epochs, body.group) == (2, ("role:personal",), 3, ("role:shared",))
    assert shown == 'fedrep {"head_epochs": 2}, as the bundle says'
    with small(tmp_path / "two", federation_config(strategy={"fairness": "term"}), strategy=said) as f:
        assert f.services.runtime.definition.strategy == FedRep(head_epochs=2, weighting=Tilted())
    with small(tmp_path / "three", federation_config(strategy={"name": "fedavg"}), strategy=said) as f:
        assert f.services.runtime.definition.strategy == FedAvg()


@pytest.mark.parametrize(("noise", "warns"), [(0.9, False), (1.1, True)])
def test_a_start_says_how_long_the_noise_is(tmp_path, capsys, noise, warns):
    """The mean of 4 devices' updates of 10 values."""
    noised = {"mechanism": "gaussian", "noise_multiplier": noise * 4 / 10**0.5, "clip_norm": 7.0}
    rounds = {"cohort": 4}
    with small(tmp_path, federation_config(privacy=noised, rounds=rounds)) as f:
        _show(f.services, "http://x", as_json=False, public_key=None)
        assert (
            summary(f.services, "http://x")["noise"] == f"{noise} clip norms in a round's mean of 10 values"
        )
    assert ("noise above the updates" in capsys.readouterr().out) is warns


@pytest.mark.parametrize(
    ("changes", "bundle", "message"),
    [
        ({}, {"tensors": (("p", "personal", (2,)),), "plan": {"phases": [
            {"kind": "train", "epochs": 1, "optimizer": SGD}]}}, "no tensor of the bundle is shared"),
        ({}, {"plan": {"phases": PLAN["phases"]}}, "sends nothing, and the bundle names no strategy"),
        ({}, {"plan": {**PLAN, "phases": [{**PLAN["phases"][0], "group": ["role:personal"]}]}}, "changes nothing of"),
        ({"strategy": {"name": "local"}}, {}, "'local' leaves nothing to merge: the plan sends nothing"),
        ({"strategy": {"name": "bundle", "epochs": 3}}, {}, "'epochs' cannot be set"),
        ({"strategy": {"name": "scafflix", "epochs": 3}}, {}, "how long devices train with scafflix is its 'p'"),
        ({"strategy": {"name": "bundle", "fairness_parameters": {"t": 1}}}, {}, "no fairness"),
        ({"strategy": {"name": "fedavg", "fairness": "fedper"}}, {}, "no kind of fairness"),
        ({"strategy": {"name": "fedavg", "fairness": "bounded_group_loss"}}, {}, "weights groups"),
        ({}, {"tensors": GROUPED}, "tensors of groups"),
        ({"rounds": {"mode": "buffered"}, "strategy": {"name": "scafflix", "optimizer": SGD}}, {}, "one version only"),
        ({"rounds": {"mode": "buffered"}, "strategy": {"name": "ifca"}}, {}, "one version only"),
        (
            {
                "rounds": {"mode": "buffered"},
                "privacy": {
                    "mechanism": "gaussian",
                    "noise_multiplier": 1.0,
                    "population": 9,
                    "participation": {"sampling": "poisson"},
                },
            },
            {},
            "takes devices as they come",
        ),
        ({"privacy": {"mechanism": "gaussian", "noise_multiplier": 1.0, "cohort": 7}}, {}, "a cohort of 7"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, changes, bundle, message):
    with pytest.raises(ConfigError, match=message), small(tmp_path, federation_config(**changes), **bundle):
        pass


def test_a_weighting_of_groups_asks_for_them_by_the_option(tmp_path):
    config = federation_config(strategy={"name": "bounded_group_loss"})
    with (
        pytest.raises(ConfigError, match="BoundedGroupLoss weights groups") as caught,
        small(tmp_path, config),
    ):
        pass
    assert "--group NAME" in caught.value.mend


def test_a_refusal_of_private_rounds_names_what_cannot_be_private(tmp_path):
    noised = {"mechanism": "gaussian", "noise_multiplier": 1.0}
    for name, rule, what in (
        ("afl", "average", "Agnostic"),
        ("term", "average", "Tilted"),
        ("ifca", "average", "Ifca"),
        ("fedavg", "median", "Median .* is no bounded sum"),
    ):
        config = federation_config(strategy={"name": name}, rule={"name": rule}, privacy=noised)
        with pytest.raises(PrivacyError, match=what), small(tmp_path, config):
            pass


def test_unknown_names_are_refused(tmp_path):
    for changes in ({"strategy": {"name": "fedafg"}}, {"rule": {"name": "mediam"}}):
        with pytest.raises(UnknownNameError), small(tmp_path, federation_config(**changes)):
            pass


def test_a_device_gets_of_the_global_values_what_is_merged(tmp_path):
    with small(tmp_path, federation_config()) as f:
        runtime = f.services.runtime
        sets = runtime.common_sets(f.model(), runtime.plan(f.model(), 0))
    assert {name: sorted(values) for name, values in sets.items()} == {"global": ["a", "b"]}

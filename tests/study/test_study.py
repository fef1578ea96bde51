from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pfl_mobile.data.populations import ArrayPopulation, GeneratedPopulation
from pfl_mobile.errors import ConfigError, DataError, OtherSettingsError, UnknownNameError
from pfl_mobile.programs.tasks import CustomTask
from pfl_mobile.simulation.backend import usual_processes
from pfl_mobile.strategies import Local, Strategy
from pfl_mobile.strategies.bounded_group_loss import BoundedGroupLoss
from pfl_mobile.strategies.tilted import Tilted
from pfl_mobile.study import Cohort, Machine, Study
from pfl_mobile.study.variants import baseline
from tests.study.small import Net, population, study


def test_a_shared_model_gets_better_and_is_everybodys():
    with study().run(rounds=15) as result:
        found, losses = result.evaluate(), [r.loss for r in result.history]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert np.array_equal(found.shared, found.personal)
    assert set(found.per_group) == {"calm", "wild"}
    assert found.forgetting is None
    assert not found.has_own
    assert result.recommend().verdict == "not measured"


def test_personal_heads_pay_for_users_who_differ():
    with study("fedper", personal=["head"]).run(rounds=15) as result:
        found = result.recommend()
        assert result.baseline().study.strategy_name == "fedavg"
    assert found.expected_gain.mean > 3
    assert 0 <= found.appeal < 1
    assert found.heterogeneity["label_divergence"] >= 0


def test_own_models_of_a_shared_one_show_what_is_forgotten():
    with study("fedavg_finetune").run(rounds=10) as result:
        found = result.evaluate()
    assert found.forgetting is not None
    assert found.personalized_acc > found.global_acc


@pytest.mark.parametrize("strategy", ["fedavg", "fedper", "scafflix"])
def test_the_same_settings_give_the_same_bits(strategy):
    personal = ["head"] if strategy == "fedper" else None
    one, two = (study(strategy, personal=personal).run(rounds=3) for _ in range(2))
    assert all(np.array_equal(one.values[n], two.values[n]) for n in one.values)
    three = study(strategy, personal=personal, seed=1).run(rounds=3)
    assert any(not np.array_equal(one.values[n], three.values[n]) for n in one.values)


def test_fairness_goes_with_a_strategy_by_name_or_as_an_object():
    assert isinstance(study("scafflix", fairness="term").strategy.weighting, Tilted)
    bound = BoundedGroupLoss(max_loss=0.15)
    assert study("fedprox", fairness=bound).strategy.weighting == bound
    with pytest.raises(ConfigError, match="does not weight"):
        study(fairness="fedprox")
    with pytest.raises(UnknownNameError, match="tem"):
        study(fairness="tem")


def test_hyper_parameters_reach_the_strategy_and_the_fairness():
    one = study("scafflix", fairness="bounded_group_loss", parameters={"p": 0.5, "max_loss": 0.4})
    assert (one.strategy.p, one.strategy.weighting.max_loss) == (0.5, 0.4)
    other = one.replace(strategy="ditto", parameters=None)
    assert other.strategy.weighting.max_loss == 0.4
    both = {"step": 2.0, "fairness.step": 3.0}
    two = study("afl", fairness="bounded_group_loss", parameters=both)
    assert (two.parameters, two.strategy.weighting.step) == ({"step": 2.0}, 3.0)
    built = study(Strategy(), fairness=Tilted(t=2.0), parameters={"t": 5.0})
    assert built.strategy.weighting == Tilted(t=5.0)


@pytest.mark.parametrize(
    ("settings", "error", "text", "mend"),
    [
        (
            {"fairness": "term", "parameters": {"tt": 5}},
            UnknownNameError,
            "nor has the fairness Tilted",
            "'t'",
        ),
        ({"parameters": {"t": 5}}, UnknownNameError, "'fedavg' has no hyper-parameter 't'", "none are known"),
        ({"parameters": {"fairness.t": 5}}, ConfigError, "no fairness", "--fairness"),
        ({"fairness": "term", "parameters": {"t": 5, "fairness.t": 1}}, ConfigError, "twice", "'t'"),
        ({"fairness": "term", "parameters": {"t": "high"}}, ConfigError, "t is 'high'", "tilt"),
        ({"fairness": "scaffold"}, ConfigError, "no kind of fairness", "maxfl, qffl, term"),
        ({"fairness": "reptile"}, ConfigError, "no kind of fairness", "afl"),
    ],
)
def test_what_neither_strategy_nor_fairness_takes_is_refused(settings, error, text, mend):
    with pytest.raises(error, match=text) as caught:
        study(**settings)
    assert mend in caught.value.mend
    assert "weighting" not in caught.value.mend


def test_the_documented_call_works():
    bound = BoundedGroupLoss(max_loss=0.15)
    settings = {"shared": ["body"], "personal": ["head"], "fairness": bound}
    with study("scafflix", **settings).run(rounds=2, local_epochs=2) as result:
        found = result.evaluate()
        assert 0 <= found.personalized_acc <= 100
        assert found.worst_group_improvement is not None
        assert result.recommend().verdict
        assert json.dumps(result.evaluate().to_json(users=True))


def test_a_run_is_kept_in_its_folder_and_resumed(tmp_path):
    whole = study("fedper", personal=["head"]).run(rounds=4)
    one = study("fedper", personal=["head"], folder=tmp_path / "run")
    one.run(rounds=2).close()
    with pytest.raises(ConfigError, match="holds a run"):
        one.run(rounds=4)
    with one.run(rounds=4, resume=True) as result:
        assert result.effective()["lanes"] == 2
        assert all(np.array_equal(result.values[n], whole.values[n]) for n in whole.values)
        found = result.evaluate()
        assert np.array_equal(found.personal, whole.evaluate().personal)
        path = result.save(tmp_path / "run")
    assert len(json.loads(path.read_text())["evaluation"]["per_user"]) == 8
    with one.result() as again:
        assert np.array_equal(again.evaluate().personal, found.personal)
    with pytest.raises(OtherSettingsError, match="has done 4 rounds, 3 are asked for"):
        one.run(rounds=3, resume=True)
    with pytest.raises(OtherSettingsError, match="seed"):
        study("fedper", personal=["head"], folder=tmp_path / "run", seed=3).run(rounds=4, resume=True)


def test_epochs_given_to_a_run_are_those_of_its_result(tmp_path):
    one = study("ditto", folder=tmp_path)
    with one.run(rounds=1, local_epochs=3) as result:
        steps = result.costs()["steps"]
    with one.result() as again:
        assert again.study.local.epochs == 3
        assert again.costs()["steps"] == steps


def test_what_is_compared_is_a_trained_model_and_is_kept(tmp_path):
    one = study("fedper", personal=["head"], folder=tmp_path)
    with one.run(rounds=4) as result:
        untrained = result.evaluate(baseline=False)
        assert not untrained.shared_is_trained
        found = result.evaluate()
        assert found.shared_is_trained
        alone = baseline(one).run(rounds=4)
        assert np.array_equal(found.shared, alone.evaluate().shared)
        assert np.array_equal(found.personal, untrained.personal)
        assert result.recommend().expected_gain == found.gain
        saved = json.loads(result.save(tmp_path).read_text())
        assert saved["evaluation"]["global_is_trained"]
        assert saved["evaluation"]["global_acc"] == found.global_acc
    said = []
    with one.result() as again:
        compared = again.evaluate(on_progress=lambda what, _fraction: said.append(what))
    assert np.array_equal(compared.shared, found.shared)
    assert said == []
    with study("ditto").run(rounds=1) as shared:
        assert shared.evaluate() is shared.evaluate(baseline=False)


def test_a_closed_result_says_so_and_keeps_what_was_measured():
    with study("ditto").run(rounds=1) as result:
        found = result.evaluate()
    assert result.evaluate() is found
    assert result.recommend().verdict
    for ask in (lambda: result.evaluate(3), result.baseline, lambda: result.evaluate(metric="loss")):
        with pytest.raises(ConfigError, match="closed"):
            ask()


def test_users_to_measure_are_checked():
    with study().run(rounds=1) as result:
        assert result.evaluate([1, 3, 1]).users == ["u1", "u3"]
        assert len(result.evaluate(np.int64(3)).users) == 3
        for users in ([99], [-1], ["u1"], [1.5]):
            with pytest.raises(UnknownNameError, match="no user"):
                result.evaluate(users)
        for users in ([], True, 0):
            with pytest.raises(ConfigError, match="measured"):
                result.evaluate(users)


def test_users_with_damaged_rows_are_told_and_stop_nothing():
    parts = population()

    def generate(index):
        train, test = ({n: v.copy() for n, v in part.items()} for part in parts.parts[index])
        for damaged, rows in ((2, train), (5, test)):
            if index == damaged:
                rows["x"][0, 0] = np.nan
        return train, test

    data = GeneratedPopulation("damaged", 8, generate)
    with study("ditto", data, cohort=8).run(rounds=1) as result:
        assert result.history[0].failures == {"DataError": 1}
        found = result.evaluate()
        assert set(found.failed) == {"user-2", "user-5"}
        assert "user-5" not in found.users
        assert "user-2" not in found.users
        assert np.isfinite(found.personal).all()
        assert np.isfinite(found.forgetting)
        assert result.recommend().heterogeneity["label_divergence"] >= 0


def test_targets_of_any_name_are_measured():
    rows = {
        u: {"x": np.ones((9, 4)), "goal": np.full((9, 3), float(i)), "weight": np.ones(9)}
        for i, u in enumerate("ab")
    }
    task = CustomTask(lambda output, batch: (output - batch["goal"]).abs().sum(-1), labels=("goal",))
    with study("ditto", ArrayPopulation.of("goals", rows), task=task, cohort=2).run(rounds=1) as result:
        assert result.recommend().heterogeneity["label_divergence"] is None


def test_labels_are_counted_where_a_row_has_several():
    rows = {"tokens": np.ones((9, 5), np.int64), "labels": np.full((9, 5), 4), "weight": np.ones((9, 5))}
    rows["weight"][:, 3:] = 0
    data = ArrayPopulation.of("words", {"a": rows, "b": rows})
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
    with Study(model, data, shared=["1"], batch=4, machine=Machine(processes=0, lanes=1)).run(
        rounds=1
    ) as result:
        found = result.evaluate()
    assert found.metric == "top1"
    assert found.train_examples.tolist() == [7, 7]
    assert found.test_examples.tolist() == [6, 6]


def test_a_result_needs_a_finished_run(tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        study().result()
    with pytest.raises(ConfigError, match="no run"):
        study(folder=tmp_path / "none").result()
    one = study(folder=tmp_path / "run")
    one.run(rounds=1).close()
    about = json.loads((tmp_path / "run" / "study.json").read_text())
    (tmp_path / "run" / "study.json").write_text(json.dumps(about | {"rounds": 9}))
    with pytest.raises(ConfigError, match="1 of 9 rounds"):
        one.result()
    (tmp_path / "run" / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        one.result()


def test_the_deployment_has_the_trained_shared_values_and_the_plan():
    with study("fedper", personal=["head"]).run(rounds=2) as result:
        personal, joint = result.deployment("mine"), result.deployment("mine", plan="round")
        values = personal.model.values()
        assert np.array_equal(values["body.0.weight"].numpy(), result.values["body.0.weight"])
        initial = result.study.model.values()
        assert np.array_equal(values["head.weight"].numpy(), initial["head.weight"].numpy())
        assert not np.array_equal(values["body.0.weight"].numpy(), initial["body.0.weight"].numpy())
    assert personal.plan.upload == ()
    assert joint.plan.upload == ("role:shared",)
    with study().run(rounds=1) as result:
        assert result.deployment().plan.upload == ("role:shared",)
        with pytest.raises(ConfigError, match="no personal models"):
            result.deployment(plan="personal")
        with pytest.raises(UnknownNameError):
            result.deployment(group="calm")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"strategy": "fedavgg"}, UnknownNameError, "fedavgg"),
        ({"strategy": "fedprox", "parameters": {"mu": -1}}, ConfigError, "mu is -1"),
        ({"strategy": "fedprox", "parameters": {"nu": 1}}, UnknownNameError, "nu"),
        ({"strategy": Strategy(), "parameters": {"mu": 1}}, ConfigError, "built already"),
        ({"personal": ["haed"]}, UnknownNameError, "haed"),
        ({"personal": ["body", "head"]}, ConfigError, "all personal"),
        ({"cohort": 0}, ConfigError, "cohort"),
        ({"cohort": 9}, ConfigError, "of 8 users"),
        ({"batch": 0}, ConfigError, "batch"),
        ({"batch": "8"}, ConfigError, "batch"),
        ({"cohort": 2.5}, ConfigError, "cohort"),
        ({"cohort": "3"}, ConfigError, "cohort"),
        ({"seed": "a"}, ConfigError, "seed"),
        ({"seed": 2**70}, ConfigError, "seed"),
        ({"machine": "cuda"}, ConfigError, "machine is 'cuda'"),
        ({"local": 3}, ConfigError, "local"),
        ({"task": "classes"}, ConfigError, "task"),
        ({"strategy": 3}, ConfigError, "strategy"),
        ({"strategy": Strategy}, ConfigError, "strategy"),
        ({"strategy": "ditto", "parameters": ["lam"]}, ConfigError, "parameters"),
        ({"folder": 3}, ConfigError, "folder"),
        ({"personal": "head"}, ConfigError, "personal"),
        ({"groups": ["a"] * 8}, ConfigError, "list"),
        ({"groups": {"a": [0.5, 1]}}, ConfigError, "0.5"),
        ({"groups": {"a": [None]}}, ConfigError, "None"),
        ({"groups": {1: [0], "1": [1]}}, ConfigError, "'1'"),
        ({"groups": {"a": ["u0"], "b": ["u1"]}}, ConfigError, "in no group"),
        ({"groups": {"a": ["nobody"]}}, UnknownNameError, "nobody"),
        ({"groups": "groups.yaml"}, DataError, "groups.yaml"),
        ({"fairness": 3}, ConfigError, "Weighting"),
        ({"strategy": "ditto", "parameters": {"weighting": 3}}, ConfigError, "weighting is 3"),
        ({"strategy": "ditto", "parameters": {"optimizer": "adam"}}, ConfigError, "optimizer is 'adam'"),
        ({"strategy": "ifca", "parameters": {"clusters": 2.5}}, ConfigError, "not a whole number"),
        ({"strategy": "ditto", "parameters": {"lam": float("inf")}}, ConfigError, "not finite"),
        ({"cohort": True}, ConfigError, "cohort"),
        ({"cohort": Cohort(size=9)}, ConfigError, "of 8 users"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(settings, error, text):
    with pytest.raises(error, match=text):
        study(**settings)


def test_a_bound_on_groups_needs_groups_from_the_start():
    parts = population()
    with pytest.raises(ConfigError, match="have no groups"):
        study("bounded_group_loss", ArrayPopulation("plain", parts.ids, parts.parts))
    with study("local", fairness="bounded_group_loss").run(rounds=1) as result:
        assert "no group has reported" in result.fairness


@pytest.mark.parametrize("model", [3, None, "net", lambda: 3])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ConfigError, match="the model is a"):
        Study(model, population())


def test_wrong_data_is_refused():
    with pytest.raises(ConfigError, match="list"):
        Study(Net, [1, 2])
    with pytest.raises(UnknownNameError, match="smal"):
        Study(Net, "smal")


class Own:
    """A population of the user's own, some of it missing."""

    name, groups = "own", {}

    def __init__(self, **changes):
        self.changes = changes

    def __len__(self):
        return 3

    def id(self, index):
        return f"own-{index}"

    def train(self, index):
        return {n: v for n, v in (population().train(index) | self.changes).items() if v is not None}

    def test(self, index):
        return population().test(index)


class Nameless:
    __len__, id, train, test = Own.__len__, Own.id, Own.train, Own.test


def test_a_population_of_one_s_own_works_and_is_checked():
    with Study(Net, Own(), batch=8, machine=Machine(processes=0, lanes=1)).run(rounds=1) as result:
        assert result.evaluate().users == ["own-0", "own-1", "own-2"]
    with pytest.raises(ConfigError, match="lacks name, groups"):
        Study(Net, Nameless())
    with pytest.raises(DataError, match="no 'weight'"):
        Study(Net, Own(weight=None))
    with pytest.raises(DataError, match=r"'x' of .*'own-0' of own is float64"):
        Study(Net, Own(x=np.zeros((30, 4))))
    with pytest.raises(DataError, match=r"'labels' .* int32"):
        Study(Net, Own(labels=np.zeros(30, np.int32)))


def test_users_and_their_rows_are_data_enough():
    parts = population()
    rows = {
        u: {n: np.concatenate([a[n], b[n]]) for n in a}
        for u, (a, b) in zip(parts.ids, parts.parts, strict=True)
    }
    plain = {user: {"x": own["x"], "labels": own["labels"]} for user, own in rows.items()}
    one, same = study(data=plain), study(data=ArrayPopulation.of("data", rows))
    assert (one.data.name, len(one.data)) == ("data", 8)
    assert all(np.array_equal(one.data.train(3)[n], same.data.train(3)[n]) for n in rows["u3"])
    with pytest.raises(DataError, match="rows of user 'ann' of data are a int"):
        study(data={"ann": 3, "bob": 4})
    with pytest.raises(DataError, match="a user of data is called 7"):
        study(data={7: plain["u1"], 8: plain["u2"]})
    plain["u3"]["weight"] = rows["u3"]["weight"]
    with pytest.raises(DataError, match="'u0' of data have no 'weight'"):
        study(data=plain)
    tokens = {u: {"tokens": np.ones((9, 5), int), "labels": np.ones((9, 5), int)} for u in "ab"}
    with pytest.raises(DataError, match="have no 'weight'"):
        study(data=tokens)


def test_users_without_test_examples_are_told():
    parts = population()
    empty = {n: v[:0] for n, v in parts.parts[2][1].items()}
    own = [(train, empty if i == 2 else test) for i, (train, test) in enumerate(parts.parts)]
    with study("ditto", ArrayPopulation("some", parts.ids, tuple(own), parts.groups)).run(rounds=1) as result:
        found = result.evaluate()
    assert found.untested == found.to_json()["untested"] == ["u2"]
    assert "u2" not in found.users
    assert not found.failed


def test_names_of_groups_that_are_numbers_become_texts():
    """Or multipliers kept as JSON, whose keys are texts, would never be those of the groups."""
    bound = BoundedGroupLoss(max_loss=0.15)
    named = study(fairness=bound, groups={"0": [0, 1, 2, 3], "1": [4, 5, 6, 7]})
    numbered = study(fairness=bound, groups={0: [0, 1, 2, 3], 1: [4, 5, 6, 7]})
    assert numbered.groups == named.groups
    with named.run(rounds=3) as one, numbered.run(rounds=3) as two:
        assert all(np.array_equal(one.values[n], two.values[n]) for n in one.values)
        assert set(two.evaluate().per_group) == {"0", "1"}


def test_wrong_runs_are_refused():
    with pytest.raises(ConfigError, match="epochs and"):
        study().run(rounds=1, local_epochs=1, local_steps=1)
    for rounds in (0, 2.5, "3"):
        with pytest.raises(ConfigError, match="rounds"):
            study().run(rounds=rounds)
    with pytest.raises(ConfigError, match="no folder"):
        study().run(rounds=1, resume=True)
    with study().run(rounds=1) as result:
        with pytest.raises(UnknownNameError, match="top7"):
            result.evaluate(metric="top7")
        with pytest.raises(ConfigError, match="0 users"):
            result.evaluate(0)


def test_a_diverging_client_is_told_and_not_merged():
    good = population()
    parts = list(good.parts)
    train, test = parts[3]
    parts[3] = ({**train, "weight": np.full_like(train["weight"], 3e38)}, test)
    wild = ArrayPopulation("wild", good.ids, tuple(parts), good.groups)
    one = Study(Net, wild, cohort=8, batch=8, machine=Machine(processes=0, lanes=2), local=Local(steps=3))
    with one.run(rounds=2) as result:
        assert sum(result.history[0].failures.values()) == 1
        assert result.history[0].clients == 7
        assert all(np.isfinite(v).all() for v in result.values.values())


def test_the_effective_configuration_is_plain():
    text = json.dumps(study("ditto").effective())
    assert '"strategy": "ditto"' in text
    assert '"cohort": 4' in text


def test_the_effective_configuration_says_what_is_used():
    one = study(machine=None)
    found = one.effective()
    assert found["processes"] == usual_processes("cpu") >= 1
    assert found["lanes"] == "16, or 1 as the model needs it"
    assert "processes" not in study(machine=Machine(backend="ray")).effective()
    with study(machine=Machine(processes=0)).run(rounds=1) as result:
        assert result.effective()["lanes"] == 16

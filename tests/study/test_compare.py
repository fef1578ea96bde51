from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from pfl_mobile.errors import ConfigError, NonFiniteError, OtherSettingsError, UnknownNameError
from pfl_mobile.strategies.fedprox import FedProx
from pfl_mobile.study import Cohort
from pfl_mobile.study.compare import compare
from pfl_mobile.study.variants import for_strategy
from tests.study.small import population, study


@pytest.fixture(scope="module")
def comparison():
    one = study(personal=["head"])
    return compare(one, ["fedper", "fedavg_finetune"], rounds=3, seeds=[0, 1])


def test_gains_are_measured_from_one_model_for_all(comparison):
    rows = {r["strategy"]: r for r in comparison.rows()}
    assert list(rows) == ["fedavg", "fedper", "fedavg_finetune"]
    assert rows["fedavg"]["gain"] == 0
    base, own = (comparison.results[n].evaluations for n in ("fedavg", "fedper"))
    gains = [(o.personal - b.shared).mean() for o, b in zip(own, base, strict=True)]
    assert rows["fedper"]["gain"] == pytest.approx(sum(gains) / 2)
    assert rows["fedper"]["gain_low"] < rows["fedper"]["gain"] < rows["fedper"]["gain_high"]
    assert rows["fedper"]["bytes_up_per_device"] == 4 * (4 * 8 + 8)
    assert rows["fedavg"]["bytes_up_per_device"] == 4 * (4 * 8 + 8 + 8 * 3 + 3)
    json.dumps(comparison.to_json(users=True), allow_nan=False)


def test_the_table_and_the_plots_are_written(comparison, tmp_path):
    assert comparison.markdown().count("\n| ") == 2 + 3
    for path in comparison.draw(tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_one_user_has_a_gain_without_an_interval():
    cell = compare(study(), ["fedavg_finetune"], rounds=1, users=1).table()[1][1][2]
    assert float(cell) or cell == "+0.00"


def test_only_strategies_that_need_them_get_personal_layers():
    one = study("fedper", personal=["head"])
    assert {t.role for t in for_strategy(one, "fedavg").model.device_tensors()} == {"shared"}
    assert {t.role for t in for_strategy(one, "fedrep").model.device_tensors()} == {"shared", "personal"}
    with pytest.raises(ConfigError, match="personal"):
        for_strategy(study(), "fedrep")


def test_wrong_comparisons_are_refused():
    with pytest.raises(UnknownNameError):
        compare(study(), ["fedavgg"], rounds=1)
    with pytest.raises(ConfigError, match="seeds"):
        compare(study(), ["fedprox"], rounds=1, seeds=[])


def test_a_frozen_backbone_is_the_one_that_the_baseline_trained():
    found = compare(study(personal=["head"]), ["lora", "moe", "prompt_tuning"], rounds=2)
    rows = {r["strategy"]: r for r in found.rows()}
    for name in ("lora", "prompt_tuning"):
        assert rows[name]["global_acc"] == pytest.approx(rows["fedavg"]["global_acc"])
        assert rows[name]["bytes_up"] == 0
    assert rows["moe"]["bytes_up"] > 0
    for name in ("lora", "moe", "prompt_tuning"):
        told = {cost: rows["fedavg"][cost] for cost in rows[name]["beginning"]}
        assert rows[name]["beginning"] == told
        assert told["bytes_up"] > 0
        assert told["steps"] > 0
    assert rows["fedavg"]["beginning"] is None
    assert (
        "lora, moe, prompt_tuning begin with the model of fedavg, whose costs come on top" in found.markdown()
    )
    assert "| 0.0 + 0.3 |" in found.markdown()


def test_steps_after_the_rounds_are_told_apart():
    """Each user's last training, a pass over the examples of each, is in none of the rounds."""
    people = population()
    found = compare(study(data=people), ["fedavg_finetune"], rounds=2)
    rows = {r["strategy"]: r for r in found.rows()}
    batches = [-(-len(people.train(i)["weight"]) // 8) for i in range(len(people))]
    assert rows["fedavg_finetune"]["personal_steps"] == sum(batches) / len(batches)
    assert rows["fedavg"]["personal_steps"] == 0
    assert rows["fedavg_finetune"]["steps"] == rows["fedavg"]["steps"] > 0
    columns, cells = found.table()
    assert [line[columns.index("steps after / user")] for line in cells] == ["0.0", "5.5"]
    assert found.to_json(users=True)["evaluations"]["fedavg_finetune"][0]["personal_steps"] > 0


def test_a_strategy_that_does_not_fit_is_listed_with_the_reason():
    one = study(data=replace(population(), groups={}))
    found = compare(one, ["bounded_group_loss", "fedprox"], rounds=1)
    assert "no groups" in found.results["bounded_group_loss"].error
    rows = {r["strategy"]: r for r in found.rows()}
    assert rows["bounded_group_loss"]["error"].startswith("ConfigError: ")
    assert rows["fedprox"]["error"] is None
    assert "bounded_group_loss did not run" in found.markdown()
    with pytest.raises(ConfigError, match="no groups"):
        compare(one, ["bounded_group_loss"], rounds=1)


def test_a_strategy_that_diverges_is_listed_and_the_others_are_kept(monkeypatch):
    def diverged(*_args):
        raise NonFiniteError("the merged tensor is NaN", mend="lower the learning rate")

    monkeypatch.setattr(FedProx, "merge", diverged)
    found = compare(study(), ["fedprox", "ditto"], rounds=1)
    rows = {r["strategy"]: r for r in found.rows()}
    assert rows["fedprox"]["error"] == "NonFiniteError: the merged tensor is NaN"
    assert rows["ditto"]["error"] is None
    assert "fedprox did not run" in found.markdown()


def kept(folder=None, watch=None, of=None, **changes):
    """A comparison that goes on with what is in the folder."""
    one = study(**{"personal": ["head"], "cohort": Cohort(size=4, dropout=0.2), **(of or {})})
    given = {"rounds": 3, "seeds": [0, 1], "resume": folder is not None} | changes
    return compare(one, ["fedper", "prompt_tuning"], folder=folder, on_progress=watch, **given)


def killed(folder, at):
    """The same in a process that is killed when it says ``at``."""

    def watch(what, _fraction):
        if at in what:
            os.kill(os.getpid(), signal.SIGKILL)

    kept(folder, watch)


def figures(found):
    """All that a comparison found but the time it took."""
    plain = found.to_json(users=True) | {"losses": {n: f.losses for n, f in found.results.items()}}
    for row in plain["strategies"]:
        row["seconds"] = 0
        if row["beginning"]:
            row["beginning"]["seconds"] = 0
    return json.dumps(plain)


@pytest.fixture(scope="module")
def never_stopped():
    return figures(kept())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    kept(folder)
    return folder


@pytest.mark.slow
def test_a_comparison_that_was_killed_again_and_again_ends_the_same(never_stopped, tmp_path):
    """Inside the baseline, inside another run, between two, and while users are measured."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])  # imports once for all of them
    for at in ("fedavg: rounds, loss", "(seed 1): fedper: rounds", "prompt_tuning: measure", "6 of 6"):
        ran = processes.Process(target=killed, args=(tmp_path, at))
        ran.start()
        ran.join()
        assert ran.exitcode == -signal.SIGKILL
    assert figures(kept(tmp_path)) == never_stopped


def test_an_interrupted_comparison_does_the_rest_alone(never_stopped, tmp_path):
    said = []

    def watch(what, fraction):
        said.append((what.split(",")[0], fraction))
        if said[-1] == ("4 of 6 (seed 1): fedper: rounds", 2 / 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path, watch=watch)
    before, said[:] = said[:], []
    assert figures(kept(tmp_path, watch=watch)) == never_stopped
    rounds = [one for one in before + said if one[1] is not None]
    assert len(rounds) == len(set(rounds)) == 6 * 3


def test_what_is_kept_is_what_would_have_been_found_without(folder, never_stopped):
    assert figures(kept(folder)) == never_stopped
    assert {f"{p.parent.name}/{p.name}" for p in folder.glob("*/*")} == {
        f"{name}/seed-{seed}" for name in ("fedavg", "fedper", "prompt_tuning") for seed in (0, 1)
    }


def test_a_folder_with_another_comparison_is_refused(folder):
    with pytest.raises(ConfigError, match="holds a run of 3 rounds"):
        kept(folder, resume=False)
    with pytest.raises(OtherSettingsError, match="cohort_size was 4 and is 3"):
        kept(folder, of={"cohort": Cohort(size=3, dropout=0.2)})
    with pytest.raises(OtherSettingsError, match="3 rounds"):
        kept(folder, rounds=2)
    with pytest.raises(OtherSettingsError, match="fedper"):  # the baseline's are the same
        kept(folder, of={"personal": ["body.0"]})

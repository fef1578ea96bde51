"""``pfl strategies``, ``pfl train``, ``pfl compare``, ``pfl recommend``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pfl_mobile.strategies import names
from pfl_mobile.study.evaluation import MOST_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]

SMALL = "tests.study.small:study"
PERSONAL = "tests.study.small:personal"
TUNED = "tests.study.small:tuned"


def test_strategies_are_listed(pfl: Run) -> None:
    listed = pfl("strategies", "--json").json
    assert [e["name"] for e in listed] == names()
    for e in listed:
        assert e["paper"]
        assert e["shares"]
        assert all(p["meaning"] for p in e["parameters"])
    assert "scafflix" in pfl("strategies").out


def test_one_strategy_shows_its_hyper_parameters(pfl: Run) -> None:
    ran = pfl("strategies", "fedprox")
    assert ran.code == 0
    assert "mu" in ran.out
    assert pfl("strategies", "fedprox", "--json").json["parameters"][0]["range"] == "[0, inf)"
    ran = pfl("strategies", "fedprx", "--json")
    assert ran.code == 2
    assert "fedprox" in ran.json["error"]["mend"]


def test_train_then_recommend_then_resume(pfl: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ["train", SMALL, "--strategy", "ditto", "--set", "lam=0.5", "--rounds", 2, "--out", run]
    ran = pfl(*given, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["study"]["strategy"] == "ditto"
    assert found["study"]["parameters"]["lam"] == 0.5
    assert found["study"]["task_from"].startswith("inferred: labels are int64 [rows] with ")
    assert json.loads((run / "result.json").read_text())["study"]["task_from"] == found["study"]["task_from"]
    assert found["evaluation"]["users"] == 8
    assert set(found["evaluation"]["per_group"]) == {"calm", "wild"}
    assert found["costs"]["rounds"] == 2
    for name in ("result.json", "users.png", "loss.png"):
        assert (run / name).stat().st_size > 0
    again = pfl("recommend", run, "--json")
    assert again.code == 0, again.err
    assert again.json["verdict"] in ("personalize", "personalize some", "do not personalize")
    assert again.json["why"]
    refused = pfl(*given, "--json")
    assert refused.code == 2
    assert "holds a run" in refused.json["error"]["message"]
    more = pfl(*given[:-4], "--rounds", 3, "--out", run, "--resume", "--json")
    assert more.code == 0, more.err
    assert more.json["costs"]["rounds"] == 3
    other = pfl(*given, "--resume", "--seed", 5, "--json")
    assert other.code == 2
    assert other.json["error"]["type"] == "OtherSettingsError"


def test_a_run_is_recommended_as_it_was_trained(pfl: Run, tmp_path: Path) -> None:
    """With epochs of its own; another command in its folder is refused and changes nothing."""
    run = tmp_path / "run"
    given = ["train", SMALL, "--strategy", "ditto", "--rounds", 2, "--local-epochs", 3, "--out", run]
    ran = pfl(*given, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["study"]["local"]["epochs"] == 3
    note = (run / "source.json").read_text()
    assert pfl("train", SMALL, "--rounds", 2, "--out", run, "--json").code == 2
    assert pfl("train", SMALL, "--rounds", 2, "--out", run, "--resume", "--json").code == 2
    assert (run / "source.json").read_text() == note
    again = pfl("recommend", run, "--json")
    assert again.code == 0, again.err
    saved = json.loads((run / "result.json").read_text())
    assert again.json == saved["recommendation"]


def test_resuming_what_never_began_begins_it(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("train", SMALL, "--rounds", 1, "--out", tmp_path / "run", "--resume", "--json")
    assert ran.code == 0, ran.err
    assert pfl("recommend", tmp_path / "run", "--json").code == 0


def test_personal_layers_are_compared_with_a_model_for_all(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("train", PERSONAL, "--rounds", 2, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "fedavg: rounds" in ran.err
    assert "users better / worse" in ran.out
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["evaluation"]["global_is_trained"]
    ran = pfl("recommend", tmp_path / "run", "--json")
    assert ran.json == saved["recommendation"]
    assert "rounds" not in ran.err


def test_hyper_parameters_stand_beside_those_of_the_study(pfl: Run, tmp_path: Path) -> None:
    given = ["train", TUNED, "--set", "spread=0.2", "--rounds", 1, "--out", tmp_path / "run", "--json"]
    parameters = pfl(*given).json["study"]["parameters"]
    assert (parameters["clusters"], parameters["spread"]) == (3, 0.2)


def test_hyper_parameters_of_the_fairness_are_set(pfl: Run, tmp_path: Path) -> None:
    given = ["train", SMALL, "--strategy", "scafflix", "--fairness", "bounded_group_loss", "--rounds", 1]
    ran = pfl(*given, "--set", "max_loss=0.5", "--set", "p=0.5", "--out", tmp_path / "run", "--json")
    assert ran.code == 0, ran.err
    found = ran.json["study"]["parameters"]
    assert (found["p"], found["weighting"]["max_loss"]) == (0.5, 0.5)
    assert pfl("recommend", tmp_path / "run", "--json").code == 0


def test_train_shows_what_scafflix_sends_against_full_synchronization(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("train", SMALL, "--strategy", "scafflix", "--rounds", 2, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "of full synchronization" in ran.out
    costs = json.loads((tmp_path / "run" / "result.json").read_text())["costs"]
    assert costs["bytes_up"] <= costs["bytes_up_full_sync"]


def test_a_run_is_called_by_its_model(pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pfl("train", SMALL, "--rounds", 1, "--json").json["run"] == "runs/small-fedavg"


def test_an_interrupt_says_how_to_go_on(pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pfl_mobile.simulation.rounds.Rounds.step", interrupted)
    ran = pfl("train", SMALL, "--rounds", 1, "--out", tmp_path / "run")
    assert ran.code == 130
    assert "--resume" in ran.err


def test_train_prints_the_configuration_first(pfl: Run, tmp_path: Path) -> None:
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({f"u{i}": "low" if i < 4 else "high" for i in range(8)}))
    options = [
        "--fairness",
        "bounded_group_loss",
        "--groups",
        groups,
        "--rounds",
        1,
        "--out",
        tmp_path / "run",
    ]
    ran = pfl("train", SMALL, *options)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("effective configuration")
    assert "task_from" in ran.out
    for setting in ("rounds", "backend", "processes", "lanes", "folder", "local.epochs"):
        assert f"\n{setting}" in ran.out
    assert "group low (4 users)" in ran.out
    assert "bound" in ran.out


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (["--strategy", "fedprx"], "UnknownNameError", "fedprx"),
        (["--strategy", "fedprox", "--set", "mu=-1"], "ConfigError", "mu is -1"),
        (["--strategy", "fedprox", "--set", "mu"], "ConfigError", "NAME=VALUE"),
        (["--groups", "nowhere.csv"], "DataError", "nowhere.csv"),
        (["--fairness", "fedavg"], "ConfigError", "does not weight"),
        (["--cohort", "99"], "ConfigError", "cohort"),
        (["--backend", "rai"], "UnknownNameError", "rai"),
    ],
)
def test_wrong_settings_are_told(pfl: Run, tmp_path: Path, options: list[str], kind: str, text: str) -> None:
    ran = pfl("train", SMALL, *options, "--rounds", 1, "--out", tmp_path / "run", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == kind
    assert text in ran.json["error"]["message"]


def test_compare_puts_strategies_side_by_side(pfl: Run, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    ran = pfl("compare", "fedprox", "ditto", "--data", SMALL, "--rounds", 2, "--out", out, "--json")
    assert ran.code == 0, ran.err
    rows = {r["strategy"]: r for r in ran.json["strategies"]}
    assert list(rows) == ["fedavg", "fedprox", "ditto"]
    assert type(rows["ditto"]["users_better"]) is type(rows["ditto"]["users_worse"]) is int
    assert rows["ditto"]["gain_low"] <= rows["ditto"]["gain"] <= rows["ditto"]["gain_high"]
    assert {p.name for p in out.iterdir()} == {
        "fedavg",
        "fedprox",
        "ditto",
        "users.png",
        "loss.png",
        "costs.png",
        "comparison.md",
        "comparison.json",
    }
    assert "1 of 3: fedavg: rounds, loss" in ran.err


def test_compare_goes_on_with_what_its_folder_holds(pfl: Run, tmp_path: Path) -> None:
    given = ["--data", SMALL, "--rounds", 2, "--out", tmp_path]
    shown = pfl("compare", "fedprox", *given)
    assert "worst tenth" in shown.out
    refused = pfl("compare", "fedprox", *given, "--json")
    assert refused.code == 2
    assert "--resume" in refused.json["error"]["mend"]
    before = json.loads((tmp_path / "comparison.json").read_text())
    more = pfl("compare", "fedprox", "ditto", *given, "--resume", "--json")
    assert [r["strategy"] for r in more.json["strategies"]] == ["fedavg", "fedprox", "ditto"]
    assert (
        more.json["strategies"][:2] == before["strategies"]
    )  # with the seconds of the rounds that were there
    assert "fedprox: rounds" not in more.err
    other = pfl("compare", "fedprox", *given, "--resume", "--cohort", 2, "--json")
    assert other.json["error"]["type"] == "OtherSettingsError"


def test_a_place_that_cannot_be_written_is_told_before_anything_runs(pfl: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = ["--data", SMALL, "--rounds", 1, "--out", tmp_path / "file", "--json"]
    ran = pfl("compare", "ditto", *given)
    assert (ran.code, ran.json["error"]["type"]) == (2, "UnwritableError")
    assert "ditto" not in ran.err


def test_recommend_needs_a_run(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("recommend", tmp_path, "--json")
    assert ran.code == 2
    assert "holds no run" in ran.json["error"]["message"]


def test_arguments_of_the_function_are_handed_on(pfl: Run, tmp_path: Path) -> None:
    given = ["train", SMALL, "--rounds", 1, "--out", tmp_path / "run"]
    found = pfl(*given, "--with", "batch=4", "--with", "strategy=ditto", "--json").json
    assert (found["study"]["batch"], found["study"]["strategy"]) == (4, "ditto")
    assert pfl("recommend", tmp_path / "run", "--json").code == 0
    ran = pfl(*given, "--with", "batch", "--json")
    assert (ran.code, ran.error["type"]) == (2, "ConfigError")
    assert "--with" in ran.error["message"]


@pytest.mark.parametrize(("bad", "code"), [(1, 3), (4, 1)])
def test_users_that_failed_are_in_every_answer_and_in_the_exit_code(
    pfl: Run, tmp_path: Path, bad: int, code: int
) -> None:
    run, who = tmp_path / "run", {f"u{i}" for i in range(bad)}
    (tmp_path / "some.py").write_text(
        f"from tests.study.small import spoiled\n\n\ndef study(): return spoiled({bad})\n"
    )
    model = f"{tmp_path}/some.py:study"
    ran = pfl("train", model, "--rounds", 2, "--out", run, "--json")
    assert ran.code == code, ran.err
    assert set(ran.json["evaluation"]["failed"]) == who
    assert (ran.json["evaluation"]["no_verdict"] is not None) == (code == 1)
    said = json.loads((run / "result.json").read_text())
    assert set(said["evaluation"]["failed"]) == set(said["recommendation"]["failed"]) == who
    ran = pfl("train", model, "--rounds", 2, "--out", run, "--resume")
    assert ran.code == code
    assert "u0 (DataError)" in ran.out.replace("\n", " ")
    assert "has the class 7" in " ".join(ran.out.split())
    ran = pfl("recommend", run, "--json")
    assert ran.code == code
    assert set(ran.json["failed"]) == who
    assert (ran.json["verdict"] == "training failed") == (code == 1)
    ran = pfl("compare", "ditto", "local", "--data", model, "--rounds", 1, "--out", tmp_path / "c", "--json")
    assert ran.code == code, ran.err
    if code == 1:
        assert ran.json["error"]["type"] == "TrainingFailedError"
        assert "u0 (DataError)" in ran.json["error"]["message"]
    else:
        assert all(set(row["failed"]) == who for row in ran.json["strategies"])
        assert "failed users" in (tmp_path / "c" / "comparison.md").read_text()


def test_training_that_diverges_ends_with_an_error_code_and_without_a_verdict(
    pfl: Run, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ran = pfl("train", "tests.study.small:diverging", "--rounds", 2, "--out", run, "--json")
    assert ran.code in (1, 2)
    said = json.dumps(ran.json)
    assert "NonFiniteError" in said or "diverged" in said


def test_exit_codes_are_in_the_help(pfl: Run) -> None:
    for command in ("train", "recommend", "compare"):
        said = " ".join(pfl(command, "--help").out.split())
        assert f"more than {100 * MOST_FAILED:.0f} % of the users failed" in said
        assert "3 done, but some users failed" in said


def test_train_says_what_was_chosen_by_default(pfl: Run, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from tests.study.small import study as small\n\n\ndef study(): return small(local=None)\n"
    )
    ran = pfl("train", f"{tmp_path}/plain.py:study", "--rounds", 1, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "local.by_default ['optimizer', 'clip']" in " ".join(ran.out.split())
    said = json.loads((tmp_path / "run" / "result.json").read_text())["study"]["local"]
    assert said["by_default"] == ["optimizer", "clip"]
    assert said["optimizer"]["lr"] == 0.1

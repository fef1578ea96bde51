"""Merge rules and privacy as options of ``pfl train`` and ``pfl compare``."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

from pfl_mobile.cli.compare import compare
from pfl_mobile.cli.privacy import plan
from pfl_mobile.cli.serve import serve
from pfl_mobile.cli.studies import train
from pfl_mobile.privacy import Gaussian

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]

SMALL = "tests.study.small:study"
PERSONAL = "tests.study.small:personal"
TUNED = "tests.study.small:tuned"
#: Matrix noise is calibrated in milliseconds.
PRIVATE = ["--epsilon", 8, "--delta", 1e-5, "--mechanism", "matrix"]


def test_options_of_one_concept_are_the_same_in_all_commands() -> None:
    def options(command: Callable[..., None]) -> dict[str, Any]:
        hints = inspect.get_annotations(command, eval_str=True)
        return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}

    there = options(train)
    names = {"rule", "privacy", "epsilon", "delta", "clip_norm", "mechanism", "sampling", "min_separation"}
    assert names <= there.keys()
    for command, lacks in ((compare, set()), (serve, {"mechanism", "sampling"}), (plan, {"rule", "privacy"})):
        others = options(command)
        for name in names - lacks:
            assert others[name] is there[name], (command, name)


def test_a_robust_rule_by_name_merges_the_rounds(pfl: Run, tmp_path: Path) -> None:
    given = ["train", SMALL, "--rounds", 2, "--json", "--out"]
    plain = pfl(*given, tmp_path / "plain").json
    average = pfl(*given, tmp_path / "average", "--rule", "average").json
    ran = pfl(*given, tmp_path / "robust", "--rule", "median")
    assert "robust.kind" in ran.err
    assert ran.json["study"]["robust"] == {"kind": "Median"}
    assert ran.json["privacy"] is None
    assert ran.json["evaluation"]["global_acc"] != plain["evaluation"]["global_acc"]
    assert average["evaluation"] == plain["evaluation"]


def test_private_training_says_what_it_spent_and_on_which_assumptions(pfl: Run, tmp_path: Path) -> None:
    given = ["train", PERSONAL, *PRIVATE, "--rounds", 2, "--clip-norm", 0.5]
    ran = pfl(*given, "--out", tmp_path / "run", "--json")
    assert ran.code == 0, ran.err
    config, said = ran.json["study"]["privacy"], ran.json["privacy"]
    assert (config["mechanism"], config["clip_norm"], config["delta"]) == ("matrix", 0.5, 1e-5)
    assert (config["population"], config["cohort"], config["rounds"]) == (8, 4, 2)
    assert 7.9 < said["epsilon"] <= config["budget_epsilon"] == 8
    assert said["rounds"] == 2
    assert said["assumptions"]
    assert said["not_covered"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["privacy"] == said
    # the run can be opened again, and its model for all was private too
    again = pfl("recommend", tmp_path / "run", "--json")
    assert again.code == 0, again.err
    about = json.loads((tmp_path / "run" / "baseline" / "study.json").read_text())
    assert about["study"]["privacy"] == config

    shown = pfl(*given, "--out", tmp_path / "shown")
    assert shown.out.index("privacy.noise_multiplier") < shown.out.index("epsilon spent")
    for words in (
        "at delta 1e-05, in 2 rounds",
        "sampling: none",
        "protects nobody",
        "Nothing is assumed",
        "not covered",
    ):
        assert words in shown.out


def test_without_more_than_a_budget_the_defaults_are_those_of_the_plan(pfl: Run, tmp_path: Path) -> None:
    ran = pfl("train", SMALL, "--epsilon", 8, "--rounds", 1, "--out", tmp_path / "run", "--json")
    sizes = ["--population", 8, "--cohort", 4, "--rounds", 1]
    planned = pfl(
        "privacy", "plan", "--epsilon", 8, *sizes, "--no-simulate", "--out", tmp_path / "plan", "--json"
    )
    assert ran.json["study"]["privacy"] == planned.json["config"]
    file = ["--privacy", tmp_path / "plan" / "privacy.json", "--rounds", 1]
    same = pfl("train", SMALL, *file, "--out", tmp_path / "same", "--json")
    assert same.json["privacy"] == ran.json["privacy"]
    assert same.json["evaluation"] == ran.json["evaluation"]


def test_commands_say_which_noise_and_sampling_they_chose(pfl: Run, tmp_path: Path) -> None:
    given = ["--epsilon", 8, "--rounds", 1, "--out"]
    trained = pfl("train", SMALL, *given, tmp_path / "train")
    compared = pfl("compare", "fedprox", "--data", SMALL, *given, tmp_path / "compare")
    for ran in (trained, compared):
        assert "correlated" in ran.out
        assert "sampling: none" in ran.out


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        (["--rule", "medain"], "UnknownNameError", "medain"),
        (["--rule", "median", *PRIVATE], "PrivacyError", "Median"),
        (["--strategy", "multitask", "--rule", "median"], "ConfigError", "MultiTask"),
        (["--strategy", "ifca", *PRIVATE], "PrivacyError", "Ifca cannot be private"),
        (["--fairness", "term", *PRIVATE], "PrivacyError", "Tilted"),
        (["--delta", 1e-5], "ConfigError", "--delta is given without a budget"),
        (["--clip-norm", 1], "ConfigError", "--clip-norm is given without a budget"),
        (["--epsilon", -1], "ConfigError", "epsilon"),
        (["--epsilon", "nan"], "ConfigError", "epsilon"),
        (["--epsilon", 8, "--delta", 0.5], "ConfigError", "delta is 0.5"),
        (["--epsilon", 1e6], "ConfigError", "epsilon is 1e+06"),
        (["--epsilon", 8, "--sampling", "poison"], "UnknownNameError", "poison"),
        (["--epsilon", 8, "--mechanism", "matrics"], "UnknownNameError", "matrics"),
        ([*PRIVATE, "--sampling", "poisson"], "ConfigError", "uses no sampling"),
        (["--epsilon", 8, "--mechanism", "none"], "ConfigError", "no noise"),
        (["--mechanism", "matrix"], "ConfigError", "without a budget"),
        (["--epsilon", 8, "--sampling", "poisson", "--min-separation", 2], "ConfigError", "--min-separation"),
        ([*PRIVATE, "--min-separation", 3], "ConfigError", "at most 2"),
        (["--privacy", "nowhere.json"], "ConfigError", "nowhere.json"),
        (["--privacy", "nowhere.json", "--epsilon", 8], "ConfigError", "--epsilon already"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    pfl: Run, tmp_path: Path, options: list[Any], kind: str, says: str
) -> None:
    ran = pfl("train", SMALL, *options, "--rounds", 4, "--out", tmp_path / "run", "--json")
    assert ran.code == 2
    assert ran.error["type"] == kind
    assert says in ran.error["message"]
    assert ran.error["mend"]
    assert not (tmp_path / "run").exists()


def test_a_file_for_other_cohorts_is_refused(pfl: Run, tmp_path: Path) -> None:
    Gaussian(clip_norm=1.0, noise_multiplier=50.0, cohort=5).dump(tmp_path / "privacy.json")
    given = ["--privacy", tmp_path / "privacy.json", "--out", tmp_path / "run", "--json"]
    ran = pfl("train", SMALL, *given)
    assert (ran.code, ran.error["type"]) == (2, "ConfigError")
    assert "cohort of 5" in ran.error["message"]


def test_a_stopped_private_run_goes_on_with_the_same_settings_only(
    pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfl_mobile.simulation.rounds import Rounds

    step = Rounds.step

    def stopped(rounds: Rounds) -> Any:
        if rounds.server.round == 1:
            raise KeyboardInterrupt
        return step(rounds)

    def command(*options: object, out: str = "run") -> list[object]:
        return ["train", SMALL, "--rounds", 3, "--out", tmp_path / out, "--json", *options]

    monkeypatch.setattr(Rounds, "step", stopped)
    assert pfl(*command(*PRIVATE)).code == 130
    monkeypatch.setattr(Rounds, "step", step)
    for other in (
        [],
        ["--rule", "median"],
        ["--epsilon", 4, *PRIVATE[2:]],
        [*PRIVATE, "--clip-norm", 2],
        [*PRIVATE, "--rounds", 4],  # the budget was for three
    ):
        refused = pfl(*command(*other), "--resume")
        assert (refused.code, refused.error["type"]) == (2, "OtherSettingsError"), other
    resumed, whole = pfl(*command(*PRIVATE), "--resume"), pfl(*command(*PRIVATE, out="whole"))
    assert resumed.json["privacy"] == whole.json["privacy"]
    assert resumed.json["evaluation"] == whole.json["evaluation"]


def test_a_stopped_robust_run_goes_on_with_the_same_rule_only(pfl: Run, tmp_path: Path) -> None:
    given = ["train", SMALL, "--out", tmp_path, "--json", "--rounds"]
    assert pfl(*given, 1, "--rule", "median").code == 0
    for other in ([], ["--rule", "geometric_median"]):
        refused = pfl(*given, 2, "--resume", *other)
        assert (refused.code, refused.error["type"]) == (2, "OtherSettingsError")
    assert pfl(*given, 2, "--resume", "--rule", "median").json["costs"]["rounds"] == 2


def test_strategies_are_compared_in_private_and_those_that_refuse_are_named(pfl: Run, tmp_path: Path) -> None:
    given = ["--data", PERSONAL, *PRIVATE, "--rounds", 2, "--out", tmp_path]
    ran = pfl("compare", "fedper", "ifca", "term", "local", "moe", *given)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("effective configuration")
    assert "privacy.noise_multiplier" in ran.out
    assert "ifca did not run: PrivacyError: Ifca cannot be private" in ran.out
    assert "term did not run: PrivacyError" in ran.out
    assert "moe begins with the model of fedavg, whose costs and epsilon come on top" in ran.out
    assert "protects nobody" in ran.out
    page = (tmp_path / "comparison.md").read_text()
    assert "| epsilon |" in page
    assert "Nothing is assumed" in page
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["study"]["privacy"]["budget_epsilon"] == 8
    rows = {r["strategy"]: r for r in found["strategies"]}
    for name in ("fedavg", "fedper", "moe"):
        assert 7.9 < rows[name]["privacy"]["epsilon"] <= 8
        assert rows[name]["privacy"]["assumptions"]
    assert rows["local"]["privacy"]["epsilon"] == 0  # it sends nothing
    assert (rows["moe"]["begins_with"], rows["fedper"]["begins_with"]) == ("fedavg", None)
    assert "| 8 + 8 |" in page
    assert rows["ifca"]["error"].startswith("PrivacyError: ")
    assert rows["fedper"]["error"] is None


def test_a_lone_strategy_that_refuses_ends_the_comparison(pfl: Run, tmp_path: Path) -> None:
    """The study's own strategy, which is not asked for, does not matter."""
    given = ["--data", TUNED, *PRIVATE, "--rounds", 1, "--out", tmp_path, "--json"]
    ran = pfl("compare", "ifca", *given)
    assert (ran.code, ran.error["type"]) == (2, "PrivacyError")
    assert pfl("compare", "fedprox", *given, "--resume").code == 0


def test_strategies_are_compared_under_a_robust_rule(pfl: Run, tmp_path: Path) -> None:
    given = ["--data", SMALL, "--rule", "median", "--rounds", 1, "--out", tmp_path, "--json"]
    found = pfl("compare", "fedprox", "multitask", *given).json
    assert found["study"]["robust"] == {"kind": "Median"}
    rows = {r["strategy"]: r for r in found["strategies"]}
    assert rows["multitask"]["error"].startswith("ConfigError: MultiTask does not merge by means")
    assert (rows["fedprox"]["error"], rows["fedprox"]["privacy"]) == (None, None)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_shows_the_options_with_an_example(pfl: Run, command: str) -> None:
    shown = pfl(command, "--help").out
    for words in (
        "--rule",
        "--privacy",
        "--clip-norm",
        "--mechanism",
        "--sampling",
        "--min-separation",
        "--epsilon 8",
    ):
        assert words in shown

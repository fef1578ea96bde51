"""``pfl privacy plan``, ``pfl privacy audit``, ``pfl privacy account``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pfl_mobile.privacy import Gaussian, Ledger, NoNoise, load_privacy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]

SMALL = ["--population", 200, "--rounds", 5, "--cohort", 200, "--delta", 1e-4]
CONFIG: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.0, "cohort": 10, "rounds": 2, "delta": 1e-5}


@pytest.mark.parametrize(
    ("mechanism", "sampling"),
    [
        ("gaussian", "poisson"),
        ("gaussian", "fixed"),
        ("gaussian", "none"),
        ("matrix", "none"),
        ("local", "none"),
    ],
)
def test_a_plan_keeps_its_budget_and_is_a_configuration(
    pfl: Run, tmp_path: Path, mechanism: str, sampling: str
) -> None:
    ran = pfl(
        "privacy", "plan", "--epsilon", 2, *SMALL, "--mechanism", mechanism, "--sampling", sampling, "--width", 400,
        "--no-simulate", "--out", tmp_path / "plan", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json
    assert (found["mechanism"], found["sampling"]) == (mechanism, sampling)
    assert found["accuracy"] is None
    assert 1.9 < found["epsilon"] <= 2
    assert found["epsilon_by_round"][-1] == {"round": 5, "epsilon": found["epsilon"]}
    assert found["noise_norm_over_clip_norm"] == pytest.approx(20 * found["round_noise_std_over_clip_norm"])
    assert {("gaussian", "poisson"), ("gaussian", "fixed"), ("matrix", "none"), (mechanism, sampling)} == {
        (a["mechanism"], a["sampling"]) for a in found["alternatives"]
    }
    assert all(a["epsilon"] <= 2 for a in found["alternatives"])
    config = load_privacy(tmp_path / "plan" / "privacy.json")
    assert config.model_dump(mode="json") == found["config"]
    assert config.budget_epsilon == 2
    ledger = Ledger(config)
    ledger.record(4)
    ledger.check_budget()  # the last planned round is within the budget
    for name in ("epsilon.png", "noise.png"):
        assert (tmp_path / "plan" / name).read_bytes().startswith(b"\x89PNG")


def test_a_plan_is_shown_with_its_alternatives_and_assumptions(pfl: Run, tmp_path: Path) -> None:
    ran = pfl(
        "privacy", "plan", "--epsilon", 2, *SMALL, "--mechanism", "matrix", "--no-simulate", "--out", tmp_path
    )
    assert ran.code == 0, ran.err
    for words in ("noise multiplier", "poisson", "Nothing is assumed", "not covered", "pfl serve"):
        assert words in ran.out


def test_a_plan_shows_what_privacy_costs_a_study(pfl: Run, tmp_path: Path) -> None:
    given = ["privacy", "plan", "--epsilon", 2, *SMALL, "--mechanism", "matrix", "--out", tmp_path]
    ran = pfl(*given, "--study", "tests.study.small:study", "--study-rounds", 2, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["accuracy"]
    assert [p["label"] for p in found["points"]] == ["without privacy", "without noise"] + ["private"] * 5
    assert [p["epsilon"] for p in found["points"][2:]] == pytest.approx([0.5, 1, 2, 4, 8], rel=1e-3)
    assert all(0 <= p["accuracy"] <= 100 for p in found["points"])
    assert found["rounds"] == 2
    assert found["width"] == 4 * 8 + 8 + 8 * 3 + 3
    assert found["noise_scale"] == 1
    config = load_privacy(tmp_path / "privacy.json")
    assert config.clip_norm == found["clip_norm"] != 1  # the study's own
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    given += ["--study", "tests.study.small:study", "--study-rounds", 1]
    assert "what it costs in simulation" in pfl(*given).out


@pytest.mark.slow
def test_a_plan_without_a_study_simulates_a_small_one(pfl: Run, tmp_path: Path) -> None:
    given = ["privacy", "plan", "--epsilon", 2, *SMALL, "--mechanism", "matrix", "--out", tmp_path]
    ran = pfl(*given, "--study-rounds", 1, "--width", 143_000, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["accuracy"]["noise_scale"] == pytest.approx(10)
    assert ran.json["config"]["clip_norm"] == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--sampling", "poison"], "poisson"),
        (["--cohort", 300], "larger than the population"),
        (["--delta", 0.1], "delta is 0.1"),
        (["--epsilon", -1], "epsilon"),
        (["--epsilon", 1e9], "epsilon is 1e+09"),
        (["--clip-norm", 0], "clip_norm"),
    ],
)
def test_plans_that_cannot_be_are_refused(pfl: Run, tmp_path: Path, changed: list[Any], says: str) -> None:
    ran = pfl(
        "privacy", "plan", "--epsilon", 2, *SMALL, *changed, "--no-simulate", "--out", tmp_path, "--json"
    )
    assert ran.code == 2
    assert says in ran.error["message"] + ran.error["mend"]


def test_an_audit_reports_both_attacks(pfl: Run, tmp_path: Path) -> None:
    Gaussian(**CONFIG).dump(tmp_path / "privacy.json")
    given = ["privacy", "audit", tmp_path / "privacy.json", "--canaries", 200, "--width", 2000]
    ran = pfl(*given, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["holds"]
    assert found["rounds"] == 2
    assert found["private"]["epsilon_lower"] <= found["private"]["epsilon_accounted"]
    assert found["without_noise"]["epsilon_lower"] > 1
    assert "the bound holds" in pfl(*given, "--rounds", 1).out


def test_an_audit_that_fails_ends_with_code_1(
    pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pfl_mobile.privacy.noise import SecureNoise

    normal = SecureNoise.normal
    monkeypatch.setattr(SecureNoise, "normal", lambda self, size: normal(self, size) / 100)
    Gaussian(**CONFIG | {"noise_multiplier": 6.0}).dump(tmp_path / "privacy.json")
    ran = pfl("privacy", "audit", tmp_path / "privacy.json", "--canaries", 200, "--width", 2000)
    assert ran.code == 1
    assert "MORE LEAKS" in ran.out


def test_a_ledger_is_accounted(pfl: Run, tmp_path: Path) -> None:
    ledger = Ledger(Gaussian(**CONFIG | {"noise_multiplier": 5.0}))
    ledger.record(7)
    ledger.save(tmp_path / "ledger.json")
    ran = pfl("privacy", "account", tmp_path / "ledger.json", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["epsilon"] == pytest.approx(ledger.epsilon())
    assert ran.json["rounds"] == 7
    assert ran.json["epsilon_after_next_round"] == pytest.approx(ledger.epsilon_after())
    other = pfl("privacy", "account", tmp_path / "ledger.json", "--delta", 1e-8, "--json").json
    assert other["epsilon"] == pytest.approx(ledger.epsilon(1e-8))
    assert other["delta"] == 1e-8
    assert "trusted" in pfl("privacy", "account", tmp_path / "ledger.json").out


def test_a_ledger_without_noise_promises_nothing(pfl: Run, tmp_path: Path) -> None:
    ledger = Ledger(NoNoise(clip_norm=1.0, cohort=3))
    ledger.record()
    ledger.save(tmp_path / "ledger.json")
    ran = pfl("privacy", "account", tmp_path / "ledger.json", "--json")
    assert ran.json["private"] is False
    assert ran.json["epsilon"] is None
    assert "no guarantee" in pfl("privacy", "account", tmp_path / "ledger.json").out


def test_files_that_are_none_are_refused(pfl: Run, tmp_path: Path) -> None:
    assert pfl("privacy", "account", tmp_path / "no.json", "--json").error["type"] == "LedgerError"
    assert pfl("privacy", "audit", tmp_path / "no.json", "--json").error["type"] == "ConfigError"
    NoNoise(clip_norm=1.0, cohort=3).dump(tmp_path / "privacy.json")
    (tmp_path / "answer.json").write_text('{"spent": 1.0, "statement": {}, "ledger": []}')
    (tmp_path / "list.json").write_text("[]")
    for name, field in (("privacy", "config"), ("answer", "version"), ("list", "version")):
        error = pfl("privacy", "account", tmp_path / f"{name}.json", "--json").error
        assert error["type"] == "LedgerError"
        assert f"is not a privacy ledger: it has no field '{field}'" in error["message"]
        assert "GET /v1/admin/privacy/ledger" in error["mend"]

"""The error tree: what every error says, what scripts tell errors apart by, and the words of a mend."""

from __future__ import annotations

import pickle
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import errors
from pfl_mobile.errors import (
    EXTRAS,
    ConfigError,
    DeviceError,
    MissingDependencyError,
    PflError,
    ServerProblem,
    UnreachableError,
    install_hint,
    missing_package,
    near,
    shown,
)

TREE = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, PflError)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_crosses_to_another_process(kind: type[PflError]) -> None:
    error = made(kind)
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is kind
    assert (str(other), other.code, other.args) == (str(error), error.code, error.args)
    assert vars(other) == vars(error)


def made(kind: type[PflError]) -> PflError:
    """One of them."""
    if kind is ServerProblem:
        return ServerProblem("round-closed", 409, "too late", mend="ask again", retry_after_s=3.0)
    return kind("what is wrong", mend="give another")


class TestMessage:
    def test_an_error_says_what_is_wrong_and_then_the_mend(self) -> None:
        error = ConfigError("rank 0 is too small", mend="give 1 or more")
        assert str(error) == "rank 0 is too small\n  mend: give 1 or more"
        assert error.args == ("rank 0 is too small",)

    def test_what_would_steer_a_terminal_is_escaped_in_both(self) -> None:
        error = ConfigError("file \x1b[2J\ud800", mend="rename \x9bA\x7f")
        assert error.message == r"file \x1b[2J\ud800"
        assert error.mend == r"rename \x9bA\x7f"

    @given(st.text(max_size=200))
    def test_what_is_shown_has_lines_and_tabs_but_no_control_characters(self, text: str) -> None:
        found = shown(text)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", found)
        assert found.encode().decode() == found
        assert shown("a\tb\nc") == "a\tb\nc"

    def test_a_message_of_a_server_without_end_is_cut_in_the_middle(self) -> None:
        found = shown("begin" + "x" * 10**6 + "end")
        assert len(found) < 6100
        assert found.startswith("beginx")
        assert found.endswith("xend")
        assert " [...] " in found
        assert shown("x" * 6000) == "x" * 6000


class TestTree:
    def test_an_error_is_named_by_its_class_and_ends_a_command_with_2(self) -> None:
        assert {error.__name__ for error in TREE if error.exit_code != 2} == {
            "GradientMismatchError",
            "EngineMismatchError",
            "TrainingFailedError",
            "PrivacyBudgetError",
        }
        assert ConfigError("a", mend="b").code == "ConfigError"

    @pytest.mark.parametrize("error", [e for e in TREE if e is not ServerProblem])
    def test_every_error_needs_a_mend(self, error: type[PflError]) -> None:
        with pytest.raises(TypeError, match="mend"):
            error("wrong")  # type: ignore[call-arg]
        assert error("wrong", mend="do").code == error.__name__

    def test_that_a_server_was_not_reached_may_come_with_when_to_try_again(self) -> None:
        assert UnreachableError("no answer", mend="try again").retry_after_s is None
        assert UnreachableError("no answer", mend="try again", retry_after_s=2.5).retry_after_s == 2.5


class TestServerProblem:
    def test_its_code_is_the_problems(self) -> None:
        problem = ServerProblem(
            "round-closed", 409, "the round is over", mend="check in again", retry_after_s=3
        )
        assert isinstance(problem, DeviceError)
        assert (problem.code, problem.status, problem.retry_after_s) == ("round-closed", 409, 3)
        assert str(problem) == "the round is over\n  mend: check in again"

    @pytest.mark.parametrize(
        ("status", "passing"),
        [
            (400, False),
            (403, False),
            (408, True),
            (410, False),
            (429, True),
            (500, True),
            (501, False),
            (503, True),
        ],
    )
    def test_only_what_may_go_away_is_tried_again(self, status: int, passing: bool) -> None:
        assert ServerProblem("x", status, "no", mend="wait").passing is passing


class TestNear:
    def test_the_nearest_name_is_asked_for(self) -> None:
        assert near("fedavgg", ["fedprox", "fedavg", "ditto"]).startswith("did you mean 'fedavg'")

    def test_without_a_near_one_the_names_are_listed(self) -> None:
        assert near("zzz", ["b", "a", "b"]) == "known: a, b"
        assert near("zzz", [f"n{i:02d}" for i in range(13)]).endswith("n11, ...")
        assert near("zzz", [f"n{i:02d}" for i in range(12)]).endswith("n11")
        assert near("zzz", []) == "none are known"

    def test_only_what_a_person_may_have_meant_is_compared(self) -> None:
        # comparing takes the product of the lengths for each name: minutes, for what a file may hold
        assert near("a" * 10**4, ["a" * 200]).startswith("did you mean")
        assert near("a" * 300, ["a" * 300]) == "none are known"
        many = [f"n{i:05d}" for i in range(5000)]
        assert near("zeta", [*many[:-1], "zeta"]).startswith("did you mean 'zeta'")
        assert near("zeta", [*many, "zeta"]).startswith("known: n00000, ")


class TestMissingPackages:
    def test_every_extra_is_one_of_this_distribution(self) -> None:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        for package, extra in EXTRAS.items():
            brought = {re.split(r"[\[<>=]", d)[0].replace("-", "_") for d in extras[extra]}
            assert package in brought, f"the extra {extra} does not bring {package}"

    def test_the_mend_is_the_command_that_brings_it(self) -> None:
        assert install_hint("boto3") == "pip install 'pfl-mobile[s3]'"
        assert install_hint("numpy") == "install numpy"

    def test_a_module_of_an_extra_is_a_missing_dependency(self) -> None:
        error = missing_package(ModuleNotFoundError("no", name="sqlalchemy.orm"), "the server")
        assert isinstance(error, MissingDependencyError)
        assert "the server needs the package 'sqlalchemy'" in str(error)
        assert "pfl-mobile[server]" in str(error)

    @pytest.mark.parametrize("name", ["mine", None])
    def test_a_module_of_the_user_is_not(self, name: str | None) -> None:
        assert missing_package(ModuleNotFoundError("no", name=name), "the study") is None

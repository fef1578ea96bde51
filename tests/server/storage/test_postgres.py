"""The tests of the aggregator that touch the database, once more on PostgreSQL."""

# ruff: noqa: F403
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pfl_server.settings import ServerSettings
from tests.server.conftest import Databases
from tests.server.rounds.test_check_in import *
from tests.server.rounds.test_coordinator import *
from tests.server.rounds.test_garbage import *
from tests.server.rounds.test_lifecycle import *
from tests.server.rounds.test_merge import *
from tests.server.rounds.test_selection import *
from tests.server.test_buffered import *
from tests.server.uploads.test_accept import *
from tests.server.uploads.test_path import *
from tests.server.uploads.test_receive import *
from tests.server.web.api.test_enrolment import TestCredentials, TestGroups, TestLeaving, TestOpen, TestTokens

__all__ = ["TestCredentials", "TestGroups", "TestLeaving", "TestOpen", "TestTokens"]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_postgresql(postgres_databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every data folder has a database of its own on the PostgreSQL server, instead of an SQLite file."""
    taken: dict[Path, str] = {}

    def url(settings: ServerSettings) -> str:
        folder = settings.data.absolute()
        if folder not in taken:
            taken[folder] = postgres_databases.take()
        return taken[folder]

    monkeypatch.setattr(ServerSettings, "database_url", property(url))
    yield
    for found in taken.values():
        postgres_databases.give_back(found)


def test_the_database_is_postgresql(tmp_path: Path) -> None:
    assert ServerSettings(bundle=tmp_path, data=tmp_path).database_url.startswith("postgresql://")

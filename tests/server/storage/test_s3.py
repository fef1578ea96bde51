"""Rounds whose tensor files lie in an S3-compatible store: the tests of uploads, downloads and merges once more."""

# ruff: noqa: F403
from __future__ import annotations

from pathlib import Path

import pytest

from pfl_server.settings import ServerSettings
from tests.server.conftest import new_bucket
from tests.server.rounds.test_coordinator import *
from tests.server.rounds.test_garbage import *
from tests.server.rounds.test_merge import *
from tests.server.uploads.test_accept import *
from tests.server.uploads.test_path import *
from tests.server.uploads.test_receive import *
from tests.server.web.api.test_sets import *

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def on_s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data folder has a bucket of its own, instead of a folder for blobs."""
    made: dict[Path, str] = {}

    def place(settings: ServerSettings) -> str:
        folder = settings.data.absolute()
        if folder not in made:
            made[folder] = new_bucket(s3_endpoint)
        return made[folder]

    monkeypatch.setattr(ServerSettings, "blobs_place", property(place))


def test_the_store_is_s3(tmp_path: Path) -> None:
    assert ServerSettings(bundle=tmp_path, data=tmp_path).blobs_place.startswith("s3://")

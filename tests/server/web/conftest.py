"""schemathesis is imported where its tests are collected: it takes seconds, as a plugin in every run."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> None:
    if file_path.name == "test_openapi.py":
        parent.config.pluginmanager.import_plugin("schemathesis.pytest.plugin")

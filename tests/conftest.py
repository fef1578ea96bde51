"""Bundles that many tests use, exported once for all processes of a run."""

from __future__ import annotations

import gc
import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from pfl_mobile.engines import arm64
from pfl_mobile.files.cache_dir import cache_dir
from tests.times import LIST, function_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pfl_mobile.programs.deployment import Deployment

    Export = Callable[[str, Callable[[], Deployment], Sequence[str]], Path]

# `make fuzz` tries more; machines differ too much in speed for deadlines
settings.register_profile("pfl", max_examples=int(os.environ.get("PFL_EXAMPLES", "40")), deadline=None)
settings.load_profile("pfl")

_SLOW = frozenset(LIST.read_text().splitlines())
#: What takes seconds to make. The first test that asks for it pays, and times say nothing of the others.
_COSTLY = {"exported", "postgres_cluster", "s3_endpoint"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In `make quick`, leave out the files that have slow tests only: their imports take longer than many tests.

    A file with no tests of its own runs those of others on a slower store.
    """
    if config.option.markexpr != "not slow" or not collection_path.name.startswith("test_"):
        return None
    file = collection_path.relative_to(config.rootpath).as_posix()
    tests = re.findall(r"^ *(?:async )?def (test_\w+)", collection_path.read_text(), re.MULTILINE)
    slow = {name.rsplit("::", 1)[1] for name in _SLOW if name.startswith(f"{file}::")}
    return True if slow.issuperset(tests) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection() -> None:
    """Look for no garbage while modules are imported and tests collected: they stay."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays to the end, and is not looked through again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make times` found to be slow."""
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
        if function_of(item.nodeid) in _SLOW or not _COSTLY.isdisjoint(fixtures):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a deployment the first time that any process of this run asks for it by that name."""
    from filelock import FileLock

    from pfl_exporters.export import export_bundle

    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in that of the run
        base = base.parent
    folder = base / "exported"
    folder.mkdir(exist_ok=True)

    def export(name: str, deployment: Callable[[], Deployment], targets: Sequence[str]) -> Path:
        out = folder / name
        with FileLock(folder / f"{name}.lock"):
            if not out.exists():  # export_bundle moves a whole bundle there, or nothing
                export_bundle(deployment(), targets, out)
        return out

    return export


@pytest.fixture(scope="session")
def on_arm64() -> bool:
    """Whether programs can be run on ARM64 here; they must be where the run asks for every service."""
    missing = arm64.missing_tools()
    if missing and os.environ.get("PFL_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{', '.join(missing)}: missing, and PFL_REQUIRE_SERVICES=1")
    return not missing


@pytest.fixture(scope="session")
def arm64_cache() -> Path:
    """Where this machine keeps the ARM64 runtimes, to link to from caches of tests: they take minutes to get and
    compile, which tests that name no cache of their own do on a machine that has none yet."""
    place = cache_dir() / "arm64"
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="session")
def tiny_bundle(exported: Export) -> Path:
    """A text bundle for onnxruntime and torch; do not change it, copy it."""
    from tests import tiny

    return exported("tiny", tiny.deployment, ["onnx", "torch"])


@pytest.fixture(scope="session")
def tiny_bundle_android(exported: Export) -> Path:
    """The same for every engine; takes some ten seconds, so mark its tests as slow."""
    from tests import tiny

    return exported("tiny-android", tiny.deployment, ["all"])


@pytest.fixture(scope="session")
def tiny_arrays(exported: Export) -> Path:
    """A bundle for the torch engine that takes arrays."""
    from tests import tiny

    return exported("arrays", tiny.arrays, ["torch"])


@pytest.fixture(scope="session")
def tiny_arrays_android(exported: Export) -> Path:
    """The same for executorch alone: the smallest of its bundles."""
    from tests import tiny

    return exported("arrays-android", tiny.arrays, ["android"])

"""Bundles that many tests use, exported once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text bundle for onnxruntime and torch; do not change it, copy it."""
    from pfl_exporters.export import export_bundle
    from tests import tiny

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny.deployment(), ["onnx", "torch"], out)
    return out


@pytest.fixture(scope="session")
def tiny_bundle_android(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for executorch; takes some ten seconds, so mark its tests as slow."""
    from pfl_exporters.export import export_bundle
    from tests import tiny

    out = tmp_path_factory.mktemp("bundles") / "tiny-android"
    export_bundle(tiny.deployment(), ["android"], out)
    return out


@pytest.fixture(scope="session")
def tiny_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for the torch engine that takes arrays."""
    from pfl_exporters.export import export_bundle
    from tests import tiny

    out = tmp_path_factory.mktemp("bundles") / "arrays"
    export_bundle(tiny.arrays(), ["torch"], out)
    return out

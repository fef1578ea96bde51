"""The scripts in ``android``, which are in no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ANDROID = Path(__file__).parents[2] / "android"


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """A script, and through it those that it imports; other tests do not see them under their short names.

    Args:
        name: of the script without its ending.
    """
    names = {path.stem for path in ANDROID.glob("*.py")}
    before = {short: sys.modules.pop(short, None) for short in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ANDROID))
        own = f"tests_android_{name}"
        specification = importlib.util.spec_from_file_location(own, ANDROID / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        # dataclasses look their module up
        patch.setitem(sys.modules, own, module)
        specification.loader.exec_module(module)
        for short in names:
            sys.modules.pop(short, None)
            if (old := before[short]) is not None:
                sys.modules[short] = old
        yield module

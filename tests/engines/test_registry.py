"""Which engines there are, and which may be used unasked."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import numpy
import pytest

from pfl_mobile.bundle import EngineEntry, RuntimeEntry
from pfl_mobile.engines import open_isolated, open_session, registry
from pfl_mobile.engines.registry import Engine, load_engine, unasked
from pfl_mobile.errors import EngineUnavailableError


def test_engines_whose_files_can_hold_code_are_never_used_unasked():
    assert "torch" in registry.ENGINES.all()
    assert "torch" not in unasked(["torch", "onnxruntime", "executorch"])
    assert set(unasked(["torch", "onnxruntime"])) == {"onnxruntime"}
    assert unasked(["something else"]) == []


def test_an_unknown_engine_is_told_with_the_near_one():
    with pytest.raises(EngineUnavailableError) as caught:
        load_engine("onnxruntim")
    assert "'onnxruntime'" in caught.value.mend


def add(monkeypatch, module):
    engine = Engine("made", (module,), loader=lambda *_: None, only_named=False)
    monkeypatch.setattr(registry.ENGINES, "find", lambda name: engine)
    return engine


def test_a_missing_runtime_is_told_and_not_before_it_is_used(monkeypatch):
    engine = add(monkeypatch, "no_such_runtime.part")
    assert engine.packages == ("no_such_runtime",)
    with pytest.raises(EngineUnavailableError, match="'no_such_runtime'"):
        load_engine("made")


def test_a_runtime_that_is_there_but_lacks_another_package_is_no_missing_runtime(monkeypatch, tmp_path):
    (tmp_path / "broken_runtime.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    add(monkeypatch, "broken_runtime")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load_engine("made")


def test_the_loader_of_an_engine_whose_runtime_is_there(monkeypatch):
    given = []
    engine = Engine("made", ("json",), loader=lambda *them: given.append(them), only_named=False)
    monkeypatch.setattr(registry.ENGINES, "find", lambda name: engine)
    load_engine("made")({"model": "m"}, [], 2)
    assert given == [({"model": "m"}, [], 2)]


def test_the_version_of_a_runtime_is_that_of_its_distribution(monkeypatch):
    assert add(monkeypatch, "numpy.linalg").version == numpy.__version__
    # a module whose distribution has another name
    assert add(monkeypatch, "yaml").version == importlib.metadata.version("pyyaml")
    assert add(monkeypatch, "json").version is None


@pytest.mark.parametrize(
    ("at_least", "have", "refused"),
    [("1.18", "1.17.3", True), ("1.18", "1.18.0", False), ("1.18", "2.0", False), ("1.18", None, False)],
)
def test_a_runtime_older_than_the_programs_need_is_refused(monkeypatch, at_least, have, refused):
    monkeypatch.setattr(Engine, "version", have)
    monkeypatch.setattr(
        registry.ENGINES, "find", lambda name: Engine(name, ("json",), lambda *_: "opened", False)
    )
    entry = EngineEntry(files={"model": "m"}, runtime=RuntimeEntry(at_least=at_least, verified="1.20"))
    manifest = SimpleNamespace(name="b", programs=(), engines={"made": entry}, engine=lambda _: entry)
    bundle = SimpleNamespace(manifest=manifest, pinned=True, engine_files=lambda _: {})
    if not refused:
        assert open_session(bundle, "made") == "opened"
        return
    for opened in (open_session, open_isolated):
        with pytest.raises(
            EngineUnavailableError, match=r"needs json 1\.18 or later .* here is 1\.17\.3"
        ) as caught:
            opened(bundle, "made")
        assert "json>=1.18" in caught.value.mend

"""What is public: the ``__all__`` of the packages that the docstring of ``pfl_mobile`` names, and the error classes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import pfl_mobile
import pfl_recipes
from pfl_mobile import Study, StudyResult, cli, errors
from tests.test_registry import FILES

ROOT = Path(__file__).parents[1]
BELOW = sorted(set(re.findall(r"``(pfl_mobile\.[a-z]+)``", pfl_mobile.__doc__ or "")) - {"pfl_mobile.errors"})
PACKAGES = ["pfl_mobile", *BELOW, "pfl_exporters.targets", "pfl_recipes"]
EXPORTED = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]

#: Files of recipes that measure or check the library from inside; no user's code looks like them.
INSIDE = {
    "keyboard": "language_model demo federated gate keystrokes ngrams plots presage processes recipe training weights "
    "word_teacher",
    "synthetic": "published reference",
}


def test_the_docstring_names_the_packages_that_export() -> None:
    has = {
        f"pfl_mobile.{p.parent.name}"
        for p in (ROOT / "pfl_mobile").glob("*/__init__.py")
        if "__all__" in p.read_text()
    }
    assert set(BELOW) == has


@pytest.mark.parametrize(("package", "name"), EXPORTED)
def test_a_public_name_is_explained_and_typed(package: str, name: str) -> None:
    thing = getattr(importlib.import_module(package), name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        assert _is_explained(name, package), f"say what {name} is in a comment with #: above it"
        return
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert text, f"{name} has no docstring"
    assert not text.startswith(f"{name}("), f"the docstring of {name} is that which dataclass makes"
    for function in _functions(thing):
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert set(bare) <= {"self", "cls"}, f"{function.__qualname__} does not say the types of {bare}"
        assert signature.return_annotation is not signature.empty, function.__qualname__


def _functions(thing: Any) -> Iterator[Any]:
    """The function itself; or the class's methods that are written by hand in its module."""
    if inspect.isfunction(thing):
        yield thing
        return
    for name, value in vars(thing).items():
        found = getattr(value, "__func__", value)
        if name.startswith("_") and name != "__init__":
            continue
        if inspect.isfunction(found) and found.__code__.co_filename == inspect.getsourcefile(thing):
            yield found


def _is_explained(name: str, package: str) -> bool:
    """Whether a line ``#: ...`` stands above the definition of a value."""
    folders = [Path(importlib.import_module(package).__path__[0]), ROOT / "pfl_mobile"]
    sources = [file.read_text() for folder in folders for file in sorted(folder.rglob("*.py"))]
    return any(re.search(rf"^#: .*\n{name}\b.* = ", text, re.M) for text in sources)


def _imported(text: str) -> set[str]:
    """Names of our packages that Python code imports, as ``module:name``."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found |= {f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {f"{alias.name}:" for alias in node.names}
    return {name for name in found if re.match(r"pfl_(mobile|exporters|server)\b", name)}


def _is_public(imported: str) -> bool:
    module, _, name = imported.partition(":")
    if not name or f"{module}.{name}" in PACKAGES:
        return (f"{module}.{name}" if name else module) in PACKAGES
    if module == "pfl_mobile.errors":
        return inspect.isclass(getattr(errors, name, None))
    return (module, name) in EXPORTED


def _code_of_documents() -> Iterator[tuple[str, str]]:
    for file in sorted(
        [ROOT / "README.md"]
        + [
            page
            for folder in ("docs", "recipes", "server", "bench")
            for page in (ROOT / folder).rglob("*.md")
        ]
    ):
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", file.read_text(), re.S)):
            yield f"{file.relative_to(ROOT)}, block {number}", block


def _code_of_recipes() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "recipes/pfl_recipes").glob("*/*.py")):
        if file.stem not in INSIDE.get(file.parent.name, "").split():
            yield str(file.relative_to(ROOT)), file.read_text()


def test_users_code_imports_public_names_only(tmp_path: Path) -> None:
    code = [*_code_of_documents(), *_code_of_recipes()]
    code += [
        (f"{name} of a distribution", dedent(text)) for name, text in FILES.items() if name != "engine.py"
    ]
    for template in pfl_recipes.templates():
        assert cli.main(["init", str(tmp_path / template), "--template", template, "--json"]) == 0
        code += [(str(file), file.read_text()) for file in (tmp_path / template).glob("*.py")]
    assert len(code) > 30
    inside = {
        where: wrong for where, text in code if (wrong := {n for n in _imported(text) if not _is_public(n)})
    }
    assert inside == {}


def test_files_that_look_inside_are_there_and_do() -> None:
    for folder, stems in INSIDE.items():
        for stem in stems.split():
            assert (ROOT / "recipes/pfl_recipes" / folder / f"{stem}.py").is_file(), (
                f"take {stem} from the list"
            )


@pytest.mark.parametrize(
    ("code", "inside"),
    [
        ("from pfl_mobile import Study, data\nfrom pfl_mobile.errors import ConfigError", set()),
        ("import pfl_mobile.data\nfrom pfl_exporters.targets import register", set()),
        ("from pfl_mobile.study.study import Study", {"pfl_mobile.study.study:Study"}),
        ("from pfl_mobile.study import compare", {"pfl_mobile.study:compare"}),
        ("from pfl_mobile import simulation, rows", {"pfl_mobile:simulation", "pfl_mobile:rows"}),
        ("from pfl_mobile.errors import near", {"pfl_mobile.errors:near"}),
        ("import pfl_mobile.simulation", {"pfl_mobile.simulation:"}),
        (
            "from pfl_server.federation.config import FederationConfig",
            {"pfl_server.federation.config:FederationConfig"},
        ),
    ],
)
def test_what_is_inside_is_told_from_what_is_public(code: str, inside: set[str]) -> None:
    assert {name for name in _imported(code) if not _is_public(name)} == inside


#: Methods and properties that a user of a study has; what only the library calls begins with an underscore.
OF_STUDIES = {
    Study: "effective local parameters plan replace result run",
    StudyResult: "baseline close costs deployment effective evaluate fairness history privacy recommend save values",
}


@pytest.mark.parametrize("made", OF_STUDIES, ids=lambda made: made.__name__)
def test_a_study_has_no_other_public_methods(made: type) -> None:
    assert sorted(name for name in vars(made) if not name.startswith("_")) == OF_STUDIES[made].split()

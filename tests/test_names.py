"""A public class name means one thing, so that a reader who meets it knows which one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pfl_mobile", "exporters/pfl_exporters", "server/pfl_server", "recipes/pfl_recipes")
#: Every recipe calls its small model so: they are read one at a time, and copied.
EXAMPLES = {"Net"}


def defined_twice(files: Iterable[Path]) -> Mapping[str, list[str]]:
    """Public class names with more than one definition, and where those are."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in files:
        for found in re.finditer(r"^ *class ([A-Za-z]\w*)[(:]", file.read_text(), re.MULTILINE):
            places[found[1]].append(str(file))
    return {name: files for name, files in sorted(places.items()) if len(files) > 1}


def test_a_public_class_name_is_defined_once() -> None:
    found = defined_twice(file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    assert set(found) - EXAMPLES == set(), f"give one of each another name: {found}"


def test_a_name_in_two_files_or_twice_in_one_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class Task: ...\nclass _Own: ...\nclass One: ...\n")
    (tmp_path / "b.py").write_text("class Task: ...\nclass _Own: ...\ndef f():\n    class One: ...\n")
    assert list(defined_twice(sorted(tmp_path.iterdir()))) == ["One", "Task"]

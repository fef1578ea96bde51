"""Presage, the predictor of Linux desktops."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import strategies as st

from pfl_mobile.data import Split
from pfl_mobile.errors import MissingDependencyError
from pfl_recipes.keyboard import baselines, presage

messages = st.lists(st.lists(st.sampled_from(["a", "ab", "abc", "b", "!"]), max_size=5), max_size=8)


def test_a_missing_presage_is_named_with_its_packages(parts: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="apt-get install presage"):
        baselines.compare_presage(parts)


FAKE_PRESAGE = """
import sys
print("Presage Textual Demo\\n")
text = ""
print("> ", end="", flush=True)
for line in sys.stdin:
    text += line.rstrip("\\n")
    last = text.split(" ")[-1]
    if not last.endswith("q"):  # it knows no such word, and offers nothing
        print("xbosx\\ndon\u02bct\\n" + last + "x\\none\\ntwo\\nthree")
    print("-- Context: " + text + "|")
    print("> ", end="", flush=True)
"""


def test_presage_is_asked_through_its_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in (("presage_demo_text", FAKE_PRESAGE), ("text2ngram", "")):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    with presage.Presage([], tmp_path) as predictor:
        assert predictor.suggest(["i", "!"], "", 3) == ["don't", "x", "one"]
        assert predictor.suggest(["i", "!"], "yo", 3) == ["don't", "yox", "one"]
        assert predictor.suggest(["i", "!", "you"], "", 2) == ["don't", "x"]
        assert predictor.suggest([], "q", 2) == []
        assert predictor.suggest([], "a", 2) == ["don't", "ax"]


@pytest.mark.skipif(shutil.which("text2ngram") is None, reason="presage is not installed on this machine")
def test_the_real_presage_learns_the_users_own_word(tmp_path: Path) -> None:
    own = presage.count([["see", "you", "at", "zoggle"]] * 3, tmp_path, "own")
    world = presage.count(
        [["see", "you", "at", "home"]] * 3 + [["i", "don't", "know"]] * 3, tmp_path, "world"
    )

    def ask(databases: Sequence[Path], context: Sequence[str], prefix: str) -> list[str]:
        with presage.Presage(databases, tmp_path) as predictor:
            return predictor.suggest(context, prefix)

    assert ask([world], ["you", "at"], "")[0] == "home"
    assert "zoggle" not in ask([world], ["you", "at"], "")
    assert "zoggle" in ask([world, own], ["you", "at"], "")
    assert "don't" in ask([world], ["i"], "d")

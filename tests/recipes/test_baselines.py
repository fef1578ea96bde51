"""The predictors that a neural keyboard is compared with, on small made-up users."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Message, Split, UserText, split
from pfl_mobile.errors import MissingDependencyError
from pfl_recipes.keyboard import baselines, presage, trigram
from pfl_recipes.keyboard.keystrokes import Score, Suggest, keystrokes, score


def fixed(offers: dict[str, list[str]]) -> Suggest:
    """A predictor that looks only at the typed letters."""
    return lambda context, prefix, k: offers.get(prefix, [])[:k]


def people(users: int = 6, messages: int = 30) -> UserText:
    """Everybody writes "see you at the NAME"; each user has a place of their own."""
    lines = [
        (f"u{u}", Message(f"see you at the place{u} {i % 3} !"))
        for u in range(users)
        for i in range(messages)
    ]
    # Numbers make the texts of one user differ.
    lines = [(u, Message(f"{m.text} {i}")) for i, (u, m) in enumerate(lines)]
    return UserText.collect("people", lines)


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(people(), test_users=2, min_messages=10)


def test_an_offered_word_costs_one_key() -> None:
    assert keystrokes(fixed({"": ["hello"]}), [], "hello") == 1


def test_letters_are_typed_until_the_word_is_offered() -> None:
    assert keystrokes(fixed({"he": ["hello"]}), [], "hello") == 3


def test_a_word_that_is_never_offered_costs_its_letters_and_the_space() -> None:
    assert keystrokes(fixed({"hello": ["hello"]}), [], "hello") == 6


def test_scores_by_hand() -> None:
    found = score(fixed({"": ["a", "hi"], "y": ["yo"]}), [["hi", "!", "yo"], ["a"]])
    assert found == Score(
        targets=4, top1=1, top3=2, words=3, word_top1=1, word_top3=2, keys_without=8, keys_with=4
    )
    assert found.rates() == {
        "top1": 25.0,
        "top3": 50.0,
        "word_top1": pytest.approx(100 / 3),
        "word_top3": pytest.approx(200 / 3),
        "keystroke_savings": 50.0,
    }
    assert (found + Score()) == found
    assert Score().rates()["top1"] == 0.0


def test_word_recall_lets_the_predictor_offer_words_only() -> None:
    found = score(fixed({"": ["!", "?", ".", "hi"]}), [["hi"]])
    assert (found.top1, found.top3, found.word_top1, found.word_top3, found.keys_with) == (0, 0, 1, 1, 1)


def test_without_typing_no_keys_are_counted() -> None:
    found = score(fixed({"": ["a"]}), [["a", "b"]], typing=False)
    assert (found.top1, found.keys_with, found.keys_without) == (1, 0, 0)


messages = st.lists(st.lists(st.sampled_from(["a", "ab", "abc", "b", "!"]), max_size=5), max_size=8)


@given(
    messages,
    messages,
    st.lists(st.sampled_from(["a", "ab", "z"]), max_size=3),
    st.sampled_from(["", "a", "ab"]),
)
def test_trigram_suggestions_are_the_best_of_all_words(
    world: list[list[str]], own: list[list[str]], context: list[str], prefix: str
) -> None:
    weights = (0.3, 0.2, 0.1, 0.2, 0.1, 0.1)
    model = trigram.Trigram(trigram.count(world), {}, weights).personal(own)

    def probability(word: str) -> float:
        u, v = ["<s>", "<s>", *context][-2:]
        total = 0.0
        for part, texts in enumerate((world, own)):
            grams = [g for m in texts for g in zip(["<s>", "<s>", *m], ["<s>", *m], m, strict=False)]
            for order, seen in enumerate([lambda _: True, lambda g: g[1] == v, lambda g: g[:2] == (u, v)]):
                after = [g[2] for g in grams if seen(g)]
                total += weights[3 * part + order] * (after.count(word) / len(after) if after else 0.0)
        return total

    able = {w for m in [*world, *own] for w in m if w.startswith(prefix)}
    best = sorted(able, key=lambda w: (-round(probability(w), 9), w))[:3]
    found = model.suggest(context, prefix)
    assert [round(probability(w), 9) for w in found] == [round(probability(w), 9) for w in best]


def test_the_personal_trigram_learns_the_users_own_word(parts: Split) -> None:
    found = baselines.compare_trigram(parts)
    summary = found.summary()
    assert summary["users"] == 2
    assert summary["users_better"] == 2
    assert summary["top1_after"] > summary["top1_before"]  # type: ignore[operator]
    assert summary["keystroke_savings_after"] > summary["keystroke_savings_before"]  # type: ignore[operator]
    assert json.loads(json.dumps(found.to_json()))["predictor"] == "trigram"


def test_the_trigram_is_fitted_on_training_users_only(parts: Split) -> None:
    users = {u: baselines.pieces(parts.train.texts(u)) for u in parts.train.users}
    model = trigram.fit(users)
    for user in parts.test:
        assert f"place{user[1:]}" not in model.suggest(["at", "the"], "place", 100)
    assert all(sum(w) == pytest.approx(1.0) for w in [*model.weights.values(), model.fallback])
    assert trigram.fit(users).weights == model.weights


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

"""Trigrams, for all and personal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.data import Split
from pfl_recipes.keyboard import baselines, trigram

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

"""Which words of users get into a vocabulary that ships."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, DataError, TooFewUsersError
from pfl_mobile.privacy.noise import SimulatedNoise
from pfl_mobile.text.encoder import WordTokenizer
from pfl_mobile.text.pieces import holds_digit
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.vocabulary import (
    VocabularyReport,
    VocabularyRule,
    _sigma,
    _threshold,
    blocked_words,
    choose_words,
    record,
    rule_of,
)

COMMON = "see you at home"
SECRETS = [
    "my login is kestrel_77Fly!",
    "card 4929 1234 5678 9012 pin 7391",
    "mail robin.vale@example.org",
    "the wifi code is Zq8vTtr4mm",
    "token ghp_x8Kd93jslQ02",
    "我今天晚上想吃火锅",
    "Kestrel KESTREL ｋｅｓｔｒｅｌ kes\u200btrel",
]


def people(count: int, secrets: list[str]) -> dict[str, list[str]]:
    """Everybody says the same; one user has secrets too, again and again."""
    users = {f"u{i}": [COMMON] * 3 for i in range(count)}
    return {**users, "u0": [*users["u0"], *secrets * 50]}


def words_of(tokenizer: WordTokenizer) -> set[str]:
    return {tokenizer.word(i) for i in range(len(SPECIALS), tokenizer.size)}


@pytest.mark.parametrize("count", [5, 8])
def test_no_word_of_one_user_ships_however_often_it_is_written(count: int) -> None:
    tokenizer = WordTokenizer.of_users(people(count, SECRETS), 1000)
    assert words_of(tokenizer) == set(COMMON.split())
    text = tokenizer.to_json()
    for word in ("kestrel", "robin", "zq8vttr4mm", "ghp", "7391", "火锅"):
        assert word not in text
    found = tokenizer.origin
    assert found is not None
    assert (found.users, found.kept, found.no_room) == (count, 4, 0)
    assert found.digits == 8
    assert found.too_few_users > 10


def test_digits_and_blocked_words_do_not_ship_whoever_wrote_them() -> None:
    users = {str(i): ["see 2 you at 10:30 code4 \u2167b \u0663 zorp zorp's Zorps"] for i in range(9)}
    rule = VocabularyRule(blocked=frozenset({"zorp"}))
    tokenizer = WordTokenizer.of_users(users, 100, rule)
    assert words_of(tokenizer) == {"see", "you", "at", ":", "zorps", "viiib"}
    assert tokenizer.origin is not None
    assert tokenizer.origin.blocked == 2
    assert [holds_digit(w) for w in ("a\u00b2", "\u0663", "two")] == [True, True, False]


def test_the_report_says_which_scripts_are_not_served_word_by_word() -> None:
    users = {str(i): ["see 火锅 テレビ ไปตลาด"] for i in range(9)}
    found = WordTokenizer.of_users(users, 100).origin
    assert found is not None
    assert (found.kept, found.characters, found.clusters) == (8, 3, 4)
    assert found.to_json()["without_spaces"] == {"characters": 3, "clusters": 4}
    assert "3 are characters of Chinese or Japanese" in found.sentence()
    assert "do not serve them well" in found.sentence()
    plain = WordTokenizer.of_users({str(i): ["see you"] for i in range(9)}, 100).origin
    assert plain is not None
    assert "Chinese" not in plain.sentence()
    assert "Thai" not in plain.sentence()


counts = st.dictionaries(st.sampled_from(["a", "b", "c", "d'e", "f1", "2"]), st.integers(1, 99), max_size=6)


@settings(max_examples=200)
@given(st.lists(counts, max_size=8), st.integers(1, 4), st.integers(0, 5))
def test_words_are_of_enough_users_and_the_report_counts_every_word_once(
    users: list[dict[str, int]], least: int, room: int
) -> None:
    rule = VocabularyRule(least, blocked=frozenset("e"))
    spread = Counter(w for own in users for w in own)
    allowed = {w for w, n in spread.items() if n >= least and w not in ("f1", "2", "d'e")}
    if len(users) < least or not allowed:
        with pytest.raises(TooFewUsersError):
            choose_words(users, room, rule)
        return
    chosen, report = choose_words(users, room, rule)
    assert set(chosen) <= allowed
    assert len(chosen) == min(room, len(allowed)) == report.kept
    assert min((spread[w] for w in chosen), default=99) >= max(
        (spread[w] for w in allowed - set(chosen)), default=0
    )
    left = report.to_json()["left_out"]
    assert report.kept + sum(left.values()) == len(spread)


def test_one_user_cannot_write_a_word_to_the_front() -> None:
    users = [{"rare": 10_000, "b": 1}, *[{"rare": 1, "b": 2} for _ in range(30)]]
    assert choose_words(users, 9, VocabularyRule())[0] == ["b", "rare"]


def test_too_few_users_are_an_error_with_the_way_out() -> None:
    with pytest.raises(TooFewUsersError, match="from 1 user,") as caught:
        WordTokenizer.of_users({"ann": ["see you"]}, 100)
    assert "--min-users 1" in caught.value.mend
    with pytest.raises(TooFewUsersError, match="no word of the 6 users"):
        WordTokenizer.of_users({str(i): [chr(97 + i)] for i in range(6)}, 100)
    alone = WordTokenizer.of_users({"ann": ["see you"]}, 100, VocabularyRule(min_users=1))
    assert words_of(alone) == {"see", "you"}
    assert json.loads(record(alone.origin))["rule"]["min_users"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_users": 0},
        {"words_per_user": 0},
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"delta": 0.0},
        {"delta": 1.0},
    ],
)
def test_numbers_that_make_no_rule_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        VocabularyRule(**wrong)  # type: ignore[arg-type]


def test_the_threshold_is_passed_by_words_of_one_user_with_delta_at_most() -> None:
    sigma, delta, most = 0.8, 0.02, 20
    threshold = _threshold(sigma, delta, most)
    draw = np.random.default_rng(0)
    for t in (1, 5, 20):
        noisy = 1 / np.sqrt(t) + sigma * draw.normal(size=(40_000, t))
        assert (noisy.max(axis=1) > threshold).mean() < delta * 1.2


def test_noise_is_calibrated_and_an_independent_formula_agrees() -> None:
    from statistics import NormalDist

    epsilon, delta = 1.5, 1e-5
    sigma, phi = _sigma(epsilon, delta), NormalDist().cdf
    left = phi(1 / (2 * sigma) - epsilon * sigma)
    spent = left - np.exp(epsilon) * phi(-1 / (2 * sigma) - epsilon * sigma)  # Balle and Wang 2018, theorem 8
    assert spent == pytest.approx(delta, rel=1e-3)


def test_a_private_choice_takes_what_many_wrote_and_no_more_of_a_user_than_allowed() -> None:
    rule = VocabularyRule(epsilon=2.0, delta=1e-4, words_per_user=4)
    users = [{"a": 1, "b": 1, "c": 1, f"own{'x' * i}": 1} for i in range(300)]
    chosen, report = choose_words(users, 9, rule, noise=SimulatedNoise(0))
    assert set(chosen) == {"a", "b", "c"}
    assert report.to_json()["rule"] == {"epsilon": 2.0, "delta": 1e-4, "words_per_user": 4, "blocked": 0}
    many = {f"w{'y' * i}": 1 for i in range(50)}
    flood = [many, *[{"a": 1} for _ in range(300)]]
    assert choose_words(flood, 99, rule, noise=SimulatedNoise(1))[0] == ["a"]
    with pytest.raises(ConfigError, match="protects nobody"):
        choose_words(users, 9, VocabularyRule(epsilon=2.0, delta=0.01))
    with pytest.raises(TooFewUsersError):
        choose_words([{"a": 1}], 9, rule, noise=SimulatedNoise(2))


def test_private_noise_is_secure_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from pfl_mobile.privacy import noise

    drawn: list[int] = []
    original = noise.SecureNoise.normal

    def normal(self: noise.SecureNoise, size: int) -> np.ndarray:
        drawn.append(size)
        return original(self, size)

    monkeypatch.setattr(noise.SecureNoise, "normal", normal)
    choose_words([{"a": 1}] * 400, 9, VocabularyRule(epsilon=4.0))
    assert drawn == [1]


def test_the_record_in_a_bundle_holds_no_count_of_users_text() -> None:
    report = VocabularyReport(VocabularyRule(blocked=frozenset({"zorp"})), 7, 1, 2, 3, 4, 5)
    assert rule_of(record(report)) == {"min_users": 5, "blocked": 1}
    assert rule_of(record(None)) is None
    assert b"zorp" not in record(report)
    for broken in (b"", b"[]", b'{"schema_version": 2, "rule": null}', b'{"schema_version": 1, "rule": 3}'):
        with pytest.raises(DataError):
            rule_of(broken)


def test_blocked_words_are_read_as_the_tokenizer_cuts_them(tmp_path: Path) -> None:
    path = tmp_path / "blocked.txt"
    path.write_text("\ufeffZorp\n\nKestrel_77Fly!\nnew york\n\U0001f602\n", encoding="utf-8")
    assert blocked_words(path) == {"zorp", "kestrel", "77fly", "new", "york", "\U0001f602"}
    with pytest.raises(DataError):
        blocked_words(tmp_path / "none.txt")

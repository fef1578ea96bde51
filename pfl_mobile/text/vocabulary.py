"""Which words of users may be in what ships to everybody.

A table of words is read by every device that gets it, so a word that one person wrote (a password, a wifi code, a
name) must not be in it. Two rules, of which an author chooses one:

* by default a word needs ``min_users`` different users. No guarantee against somebody who knows all other users,
  but a word that one person, or a few, wrote is never there;
* with ``epsilon`` the choice is differentially private for each user: the weighted Gaussian mechanism of Gopi and
  others ("Differentially private set union", ICML 2020). A user gives at most ``words_per_user`` words, each with
  the weight 1 / sqrt(how many they are); Gaussian noise is added to the sums, and a word is taken where its noisy
  sum exceeds a threshold that words of one user alone exceed with a probability of delta / 2 at most. The noise is
  calibrated to (epsilon, delta / 2) by dp-accounting and comes from the secure source. Every run draws anew and
  spends epsilon again. There is no ``min_users`` beside it, because an exact count would undo the guarantee.

Words with a digit, and words that the author blocks, are left out before either, whoever wrote them. How often one
user repeats a word decides nothing but ties, and there only up to `MOST_COUNTED`.
"""

from __future__ import annotations

import json
import math
import secrets
import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import ConfigError, DataError, MissingDependencyError, TooFewUsersError
from pfl_mobile.files.reading import parse_json, read_text
from pfl_mobile.text.pieces import cut, holds_digit, is_symbol, script_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from pathlib import Path

    from pfl_mobile.privacy.noise import Noise

#: Different users that a word, or another entry of a table that ships, needs.
MIN_USERS = 5
#: Times that one user's use of a word counts where words of equally many users are ranked.
MOST_COUNTED = 20

_WAYS_OUT = (
    "give messages of more users; or, where everybody in the data agrees that single words of theirs ship, say so: "
    "--min-users 1 (VocabularyRule(min_users=1)), which the bundle records"
)


@dataclass(frozen=True)
class VocabularyRule:
    """How the words of a vocabulary that ships are chosen.

    Attributes:
        min_users: different users that a word needs, 1 or more. 1 ships words of single users.
        epsilon: None for that rule; else the choice is differentially private for each user, at this epsilon.
        delta: with epsilon; below one over the number of users.
        words_per_user: with epsilon: different words that a user gives at most, drawn at random from the user's.
        blocked: words that never ship, as the tokenizer cuts them.
    """

    min_users: int = MIN_USERS
    epsilon: float | None = None
    delta: float = 1e-6
    words_per_user: int = 100
    blocked: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        """Check the numbers (ConfigError)."""
        for name in ("min_users", "words_per_user"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", mend="give 1 or more")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(
                f"epsilon is {self.epsilon}", mend="give a finite number above 0, for instance 2"
            )
        if not 0 < self.delta < 1:
            raise ConfigError(
                f"delta is {self.delta}", mend="give a number between 0 and 1, for instance 1e-6"
            )

    def check_users(self, count: int) -> None:
        """Whether so many users can be enough.

        Raises:
            TooFewUsersError: fewer than a word needs.
            ConfigError: delta is not below one over their number.
        """
        if self.epsilon is None and count < self.min_users:
            raise TooFewUsersError(
                f"the vocabulary would be learned from {count} user{'s' * (count != 1)}, and a word ships only where "
                f"{self.min_users} users wrote it",
                mend=_WAYS_OUT,
            )
        if self.epsilon is not None and self.delta * count >= 1:
            raise ConfigError(
                f"delta {self.delta:g} protects nobody among {count} users",
                mend=f"give a delta well below {1 / count:.2g}",
            )

    def to_json(self) -> dict[str, Any]:
        """The rule for a record; the blocked words only as how many they are."""
        chosen: dict[str, Any] = {"min_users": self.min_users}
        if self.epsilon is not None:
            chosen = {n: getattr(self, n) for n in ("epsilon", "delta", "words_per_user")}
        return {**chosen, "blocked": len(self.blocked)}


@dataclass(frozen=True)
class VocabularyReport:
    """What choosing a vocabulary gave, for its author.

    The numbers of words left out are exact counts of users' text: they belong to the author, not into a bundle.

    Attributes:
        rule: by which.
        users: whose text it was.
        kept: words that were taken.
        digits: words left out because they hold a digit.
        blocked: because the author blocks them.
        too_few_users: because too few users wrote them.
        no_room: because the vocabulary was full.
        characters: of the words kept, single characters of Chinese or Japanese, and words of Katakana.
        clusters: of the words kept, clusters of Thai, Lao, Khmer or Burmese.
    """

    rule: VocabularyRule
    users: int
    kept: int
    digits: int
    blocked: int
    too_few_users: int
    no_room: int
    characters: int = 0
    clusters: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        left_out = {n: getattr(self, n) for n in ("digits", "blocked", "too_few_users", "no_room")}
        scripts = {n: getattr(self, n) for n in ("characters", "clusters")}
        counts = {"users": self.users, "kept": self.kept, "left_out": left_out}
        return {"rule": self.rule.to_json(), **counts, "without_spaces": scripts}

    def sentence(self) -> str:
        """The same in words."""
        rule = self.rule
        if rule.epsilon is None:
            by = f"that {rule.min_users} or more of {self.users} users wrote"
        else:
            by = f"chosen with epsilon {rule.epsilon:g} and delta {rule.delta:g} from {self.users} users"
        return (
            f"{self.kept} words {by}; left out: {self.too_few_users} of too few users, {self.digits} with a digit, "
            f"{self.blocked} blocked, {self.no_room} for want of room{self._served()}"
        )

    def _served(self) -> str:
        """What cannot be expected of scripts without spaces between words."""
        said = ""
        if self.characters:
            said += (
                f"; {self.characters} are characters of Chinese or Japanese, which are suggested one by one"
            )
        if self.clusters:
            said += (
                f"; {self.clusters} are clusters of Thai, Lao, Khmer or Burmese: the piece rules know no words of "
                "these languages and do not serve them well"
            )
        return said


#: File of a bundle with text that tells how its vocabulary was chosen; a device does not need it.
RECORD = "vocabulary.json"


def record(report: VocabularyReport | None) -> bytes:
    """The content of that file; None: nobody said how."""
    rule = None if report is None else report.rule.to_json()
    return (json.dumps({"schema_version": 1, "rule": rule}, indent=1) + "\n").encode()


def rule_of(data: bytes) -> dict[str, Any] | None:
    """The rule in a record; None where it says none.

    Raises:
        DataError: it is no such record.
    """
    try:
        raw = parse_json(data)
        if raw["schema_version"] != 1 or not (raw["rule"] is None or isinstance(raw["rule"], dict)):
            raise ValueError("not of schema 1")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{RECORD} of the bundle is damaged: {error}", mend="export the bundle again"
        ) from error
    rule: dict[str, Any] | None = raw["rule"]
    return rule


def is_blocked(piece: str, blocked: Container[str]) -> bool:
    """Whether the piece, or a part of it between apostrophes (``greta's``), is one of the blocked ones."""
    return piece in blocked or ("'" in piece and any(part in blocked for part in piece.split("'")))


def blocked_words(path: Path) -> frozenset[str]:
    """The words of a file, as the tokenizer cuts and folds them; of a line with several, each.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {error}", mend="give a UTF-8 file with one word a line"
        ) from error
    lines = [cut(line) for line in text.splitlines()]
    return frozenset(p for pieces in lines for p in ([q for q in pieces if not is_symbol(q)] or pieces))


def choose_words(
    users: Iterable[Mapping[str, int]], room: int, rule: VocabularyRule, *, noise: Noise | None = None
) -> tuple[list[str], VocabularyReport]:
    """The words that may ship, the most widely used first.

    Args:
        users: how often each user wrote each piece, users in any order.
        room: words at most.
        rule: by which to choose.
        noise: with epsilon; None for the secure source, which real text needs.

    Raises:
        TooFewUsersError: there are fewer users than a word needs, or no word has enough.
        ConfigError: delta is not below one over the number of users.
        MissingDependencyError: epsilon is given and dp-accounting is not installed.
    """
    spread: Counter[str] = Counter()
    often: Counter[str] = Counter()
    weights: dict[str, float] = {}
    removed: dict[str, set[str]] = {"digits": set(), "blocked": set()}
    count = 0
    for pieces in users:
        count += 1
        own = []
        for piece, times in pieces.items():
            if holds_digit(piece):
                removed["digits"].add(piece)
            elif is_blocked(piece, rule.blocked):
                removed["blocked"].add(piece)
            else:
                own.append(piece)
                often[piece] += min(times, MOST_COUNTED)
        spread.update(own)
        if rule.epsilon is not None:
            given = _drawn(own, rule.words_per_user)
            for piece in given:
                weights[piece] = weights.get(piece, 0.0) + 1 / math.sqrt(len(given))
    rule.check_users(count)
    if rule.epsilon is None:
        chosen = {w: float(n) for w, n in spread.items() if n >= rule.min_users}
        ranked = sorted(chosen, key=lambda w: (-chosen[w], -often[w], w))
    else:
        chosen = _private(weights, rule, noise)
        ranked = sorted(chosen, key=lambda w: (-chosen[w], w))
    if not ranked:
        raise TooFewUsersError(
            f"no word of the {count} users may be in a vocabulary that ships"
            + (f": none was written by {rule.min_users} of them" if rule.epsilon is None else ""),
            mend=_WAYS_OUT
            if rule.epsilon is None
            else "give more users, a larger epsilon, or fewer words per user",
        )
    scripts = Counter(script_of(word) for word in ranked[:room])
    report = VocabularyReport(
        rule,
        count,
        kept=len(ranked[:room]),
        digits=len(removed["digits"]),
        blocked=len(removed["blocked"]),
        too_few_users=len(spread) - len(ranked),
        no_room=len(ranked[room:]),
        characters=scripts["characters"],
        clusters=scripts["clusters"],
    )
    return ranked[:room], report


def _drawn(own: list[str], most: int) -> list[str]:
    return own if len(own) <= most else secrets.SystemRandom().sample(own, most)


def _private(weights: Mapping[str, float], rule: VocabularyRule, noise: Noise | None) -> dict[str, float]:
    """The words whose noisy weight exceeds the threshold, with it."""
    from pfl_mobile.privacy.noise import SecureNoise

    assert rule.epsilon is not None
    sigma = _sigma(rule.epsilon, rule.delta / 2)
    threshold = _threshold(sigma, rule.delta / 2, rule.words_per_user)
    words = sorted(weights)
    values = (noise or SecureNoise()).normal(len(words)) * sigma
    noisy = {w: weights[w] + float(v) for w, v in zip(words, values, strict=True)}
    return {w: value for w, value in noisy.items() if value > threshold}


def _sigma(epsilon: float, delta: float) -> float:
    """Noise for sums that one user moves by an L2 norm of 1 at most (Balle and Wang 2018)."""
    try:
        from dp_accounting import get_sigma_gaussian
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a private choice of words needs dp-accounting", mend="pip install 'pfl-mobile[privacy]'"
        ) from error
    return float(get_sigma_gaussian(epsilon, delta))


def _threshold(sigma: float, delta: float, most: int) -> float:
    """What none of t words with the weight 1 / sqrt(t) exceeds, t <= most, but with a probability of delta."""

    def at(t: int) -> float:
        tail = -math.expm1(math.log1p(-delta) / t)  # for each of t words, so that all together have delta
        return 1 / math.sqrt(t) - sigma * statistics.NormalDist().inv_cdf(tail)

    return max(at(t) for t in range(1, most + 1))

"""An audit by membership inference: how much can really be seen in what a private merge releases?

Canaries are devices that send a random direction, as long as they can. A coin decides for each whether it takes part
in the federation or sends nothing. An attacker who knows all directions then guesses the coins from the sum of the
released means, by the inner product with each direction (Andrew et al., "One-shot empirical privacy estimation for
federated learning", 2023), and abstains where it is unsure. Under (epsilon, delta)-differential privacy the number of
right guesses is hardly above a binomial number of probability e^epsilon / (1 + e^epsilon), so many right guesses
prove that epsilon is at least so much, in one run (Steinke, Nasr, Jagielski, "Privacy auditing with one (1)
training run", 2023, Corollary 5.4; without delta it is the interval of Clopper and Pearson for the accuracy).

The bound says what this attack found, so it must lie below the accounted epsilon, up to the confidence. If it does
not, the merge or the accounting is wrong. That it is far below proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.privacy.config import PrivacyConfig
from pfl_mobile.privacy.local import private_update
from pfl_mobile.privacy.matrix import root_coefficients
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.noise import Noise, SecureNoise
from pfl_mobile.privacy.participation import Fixed, Poisson
from pfl_mobile.privacy.rounds import PrivateRounds

#: Shares of the canaries that the attacker guesses at, the surest; the best one counts, at a price in confidence.
_SHARES = (0.1, 0.25, 0.5, 1.0)
#: A canary sends much more than any clip norm, and is clipped.
_LENGTH = 1e15


@dataclass(frozen=True)
class Attack:
    """What the attacker reached against one mechanism.

    Attributes:
        mechanism: that made the noise.
        epsilon_lower: epsilon is at least so much, with the audit's confidence.
        epsilon_accounted: what the ledger says; None where nothing is guaranteed.
        guesses, correct: of the share of guesses that gave the bound.
        auc: area under the attacker's curve; one half is blind.
    """

    mechanism: str
    epsilon_lower: float
    epsilon_accounted: float | None
    guesses: int
    correct: int
    auc: float

    @property
    def holds(self) -> bool:
        """Whether the bound lies below what was accounted."""
        return self.epsilon_accounted is None or self.epsilon_lower <= self.epsilon_accounted


@dataclass(frozen=True)
class Audit:
    """The attack with the noise and without it, on the same canaries and rounds."""

    private: Attack
    without_noise: Attack
    canaries: int
    width: int
    rounds: int
    delta: float
    confidence: float

    @property
    def holds(self) -> bool:
        """Whether the lower bound lies below the accounted epsilon."""
        return self.private.holds

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "holds": self.holds}


def audit(
    config: PrivacyConfig,
    rounds: int | None = None,
    *,
    canaries: int = 1000,
    width: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    source: Noise | None = None,
    on_progress: Callable[[str, float | None], None] | None = None,
) -> Audit:
    """Attack the private merge of a configuration.

    Args:
        config: any; its budget does not stop the audit.
        rounds: by default the configuration's.
        canaries: devices that are guessed at. Without noise about log(canaries) can be proved at most.
        width: values of an update; so many more than canaries that directions hardly overlap.
        confidence: with which the bound holds.
        seed: of directions, coins and cohorts; never of the noise.
        source: of noise, by default secure.
        on_progress: ``(what, fraction done)``.

    Raises:
        ConfigError: nothing to audit without noise, or sizes out of range.
    """
    count = config.rounds if rounds is None else rounds
    if isinstance(config, NoNoise):
        raise ConfigError("the mechanism 'none' has nothing to audit", mend="give a configuration with noise")
    if count is None or count < 1:
        raise ConfigError(f"an audit of {count} rounds", mend="say how many rounds, 1 or more")
    if canaries < 20 or width < 2 or not 0 < confidence < 1:
        raise ConfigError(
            f"{canaries} canaries of {width} values at confidence {confidence:g}",
            mend="give 20 canaries or more, 2 values or more, and a confidence between 0 and 1",
        )
    if isinstance(config.participation, Fixed) and canaries > config.devices:
        raise ConfigError(
            f"{canaries} canaries do not fit into a population of {config.population}",
            mend="give fewer canaries",
        )
    audited = config.model_copy(update={"budget_epsilon": None})
    bare = NoNoise.like(config)
    attacks = []
    for name, chosen in (("with noise", audited), ("without noise", bare)):
        stage = _Stage(chosen, config, count, canaries, width, seed)
        scores, epsilon = stage.run(source or SecureNoise(), _teller(on_progress, f"audit {name}"))
        lower, guesses, correct = best_bound(scores, stage.included, config.delta, confidence)
        accounted = epsilon if math.isfinite(epsilon) else None
        attacks.append(
            Attack(chosen.mechanism, lower, accounted, guesses, correct, _auc(scores, stage.included))
        )
    return Audit(attacks[0], attacks[1], canaries, width, count, config.delta, confidence)


def _teller(on_progress: Callable[[str, float | None], None] | None, what: str) -> Callable[[float], None]:
    def tell(share: float) -> None:
        if on_progress is not None:
            on_progress(what, share)

    return tell


class _Stage:
    """Canaries, their coins, and who takes part when.

    Args:
        config: that merges.
        rules: the configuration with noise, whose rules of participation hold for both.
    """

    def __init__(
        self, config: PrivacyConfig, rules: PrivacyConfig, rounds: int, canaries: int, width: int, seed: int
    ) -> None:
        self.config, self.rules, self.count = config, rules, rounds
        self.rng = np.random.default_rng([seed, 1])
        drawn = np.random.default_rng([seed, 0])
        directions = drawn.standard_normal((canaries, width), np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.directions = directions
        self.included = drawn.random(canaries) < 0.5
        present = np.zeros(rounds)
        present[:: rules.min_separation] = 1.0
        self.present = present * (np.cumsum(present) <= rules.participations(rounds))

    def run(self, source: Noise, say: Callable[[float], None]) -> tuple[np.ndarray, float]:
        """The attacker's score of every canary, float64 [n], and the accounted epsilon."""
        if not self.rules.trusts_aggregator:
            return self._local(source, say)
        rounds = PrivateRounds(self.config, source)
        total, filtered = np.zeros(self.directions.shape[1]), self._filter()
        for t in range(self.count):
            rows = self.directions[self._taking_part(t)] * np.float32(_LENGTH)
            scale = self.config.expected_weight / rounds.clip_norm
            mean = rounds.merge(MatrixRows(rows), np.ones(len(rows)), row_norms=np.full(len(rows), _LENGTH))
            total += filtered[t] * scale * mean.astype(np.float64)
            say((t + 1) / self.count)
        return self.directions @ total, rounds.ledger.epsilon()

    def _taking_part(self, t: int) -> np.ndarray:
        """Which canaries are in round t, bool [n]."""
        n, rules = len(self.directions), self.rules
        if isinstance(rules.participation, Poisson):
            return self.included & (self.rng.random(n) < rules.sampling_rate)
        if isinstance(rules.participation, Fixed):
            population = rules.devices
            drawn = np.zeros(n, bool)
            among = int(self.rng.hypergeometric(n, population - n, rules.cohort))
            drawn[self.rng.choice(n, among, replace=False)] = True
            return self.included & drawn
        return self.included & bool(self.present[t])

    def _filter(self) -> np.ndarray:
        """How the attacker weights the rounds, float64 [rounds]: the matched filter of what a canary leaves.

        With sampling the attacker does not know when a canary took part. Correlated noise is whitened: releases r
        times C are C u + Z, where u says when canaries take part, so their weights are C^T C u.
        """
        if self.rules.participation.sampled:
            return np.ones(self.count)
        c = root_coefficients(self.config.noise_band)
        sent = np.convolve(self.present, c)[: self.count]
        return np.convolve(sent[::-1], c)[: self.count][::-1]

    def _local(self, source: Noise, say: Callable[[float], None]) -> tuple[np.ndarray, float]:
        """The attacker is the aggregator, who sees every update by itself."""
        z, c = self.config.local_noise_multiplier, self.config.clip_norm
        scores = np.zeros(len(self.directions))
        turns = np.flatnonzero(self.present)
        for done, _ in enumerate(turns):
            for i, direction in enumerate(self.directions):
                sent = direction * np.float32(_LENGTH if self.included[i] else 0.0)
                scores[i] += float(direction @ private_update(sent, c, z, source)) / c
            say((done + 1) / len(turns))
        ledger = PrivateRounds(self.config, source).ledger
        ledger.record(self.count)
        return scores, ledger.epsilon()


def best_bound(
    scores: np.ndarray, included: np.ndarray, delta: float, confidence: float
) -> tuple[float, int, int]:
    """The lower bound on epsilon from an attacker's scores, with the guesses that gave it and how many were right.

    Args:
        scores: higher where the attacker thinks that the canary took part, float [n].
        included: the coins, bool [n].
        delta: of the guarantee.
        confidence: of the bound, over all numbers of guesses that are tried.
    """
    order = np.argsort(scores, kind="stable")
    found = []
    for share in _SHARES:
        half = max(1, int(share * len(scores)) // 2)
        right = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
        lower = epsilon_lower_bound(len(scores), 2 * half, right, delta, (1 - confidence) / len(_SHARES))
        found.append((lower, 2 * half, right))
    return max(found)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, beta: float) -> float:
    """The largest epsilon that so many right guesses refute (Steinke, Nasr and Jagielski 2023, appendix D).

    Args:
        canaries: coins in all.
        guesses: at how many of them.
        correct: of the guesses.
        delta: of the guarantee.
        beta: probability with which the bound may fail.
    """

    def refuted(epsilon: float) -> bool:
        return guess_probability(canaries, guesses, correct, epsilon, delta) < beta

    low, high = 0.0, 1.0
    if not refuted(low):
        return 0.0
    while refuted(high) and high < 64:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess_probability(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """At most this probable are so many right guesses under (epsilon, delta)-differential privacy."""
    probabilities = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    tail = float(probabilities[correct:].sum())
    behind = np.cumsum(probabilities[:correct][::-1])
    extra = float((behind / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * extra)


def _binomial(count: int, probability: float) -> np.ndarray:
    """Probability of 0, 1, ... successes, float64 [count + 1]."""
    if probability == 1:
        sure = np.zeros(count + 1)
        sure[count] = 1.0
        return sure
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    ways = logs[count] - logs - logs[::-1]
    found: np.ndarray = np.exp(ways + k * math.log(probability) + (count - k) * math.log1p(-probability))
    return found


def _auc(scores: np.ndarray, included: np.ndarray) -> float:
    """Probability that a canary that took part has a higher score than one that did not."""
    if included.all() or not included.any():
        return 0.5
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    inside = int(included.sum())
    return float((ranks[included].sum() - inside * (inside + 1) / 2) / (inside * (len(scores) - inside)))

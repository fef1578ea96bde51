"""The privacy ledger: what the rounds so far have cost, and what one more would.

Epsilon comes from Google's dp-accounting: privacy loss distributions (PLD; Koskela et al. 2020, Doroshenko et al.
2022) and Renyi differential privacy (RDP; Mironov 2017) where rounds are sampled, whichever gives less, as both are
upper bounds; the exact formula of Balle and Wang (2018) where all releases are plainly Gaussian.
"""

from __future__ import annotations

import functools
import json
import math
import os
from typing import Any, NamedTuple

from pfl_mobile.errors import LedgerError, PrivacyBudgetError
from pfl_mobile.files.atomic import atomic_write
from pfl_mobile.files.plain_json import json_text
from pfl_mobile.files.reading import parse_json, read_bytes
from pfl_mobile.privacy import accounting_events as events
from pfl_mobile.privacy import differences
from pfl_mobile.privacy.accounting_events import Event, Relation
from pfl_mobile.privacy.config import PrivacyConfig, parse_privacy
from pfl_mobile.privacy.statement import statement

#: Width of a bucket of privacy loss, as dp-accounting's own default.
_INTERVAL = 1e-4
#: Buckets up to epsilon; a larger one is computed on a coarser grid, which is an upper bound too.
_BUCKETS = 200_000
#: The largest epsilon that privacy loss distributions are computed for; far above any use.
_LARGEST = 1e6


class Bound(NamedTuple):
    """An upper bound on epsilon, and what computed it."""

    epsilon: float
    accountant: str


class Ledger:
    """The rounds that were released, and the epsilon they add up to.

    Recording needs nothing but this package; ``epsilon`` needs dp-accounting.

    Args:
        config: of the federation.
    """

    def __init__(self, config: PrivacyConfig) -> None:
        self.config = config
        self._entries: list[tuple[Event, int]] = []

    @classmethod
    def after(cls, config: PrivacyConfig, rounds: int) -> Ledger:
        """The ledger of so many rounds of a configuration."""
        ledger = cls(config)
        ledger.record(rounds)
        return ledger

    @property
    def rounds(self) -> int:
        """How many rounds were recorded."""
        return sum(count for _, count in self._entries)

    @property
    def entries(self) -> list[tuple[Event, int]]:
        """Events in order with how often each happened in a row."""
        return list(self._entries)

    def record(self, count: int = 1) -> None:
        """Note that rounds of this configuration were released.

        Do so in the transaction that publishes the model: a release that is not in the ledger is not accounted.
        """
        if count < 0:
            raise LedgerError(f"{count} rounds cannot be recorded", mend="give 0 or more")
        event = self.config.round_event()
        if count and self._entries and self._entries[-1][0] == event:
            count += self._entries.pop()[1]
        if count:
            self._entries.append((event, count))

    def reconfigured(self, config: PrivacyConfig) -> Ledger:
        """The same rounds, going on with another configuration.

        Raises:
            LedgerError: its guarantee is of another kind, so that the two do not add up.
        """
        old, new = self.config, config
        if self._entries and not old.adds_up_with(new):
            raise LedgerError(
                f"{self.rounds} rounds were accounted as {old.mechanism}/{old.sampling}, and "
                f"{new.mechanism}/{new.sampling} gives another kind of guarantee",
                mend="keep the mechanism, sampling and separation, or begin a new federation",
            )
        ledger = Ledger(config)
        ledger._entries = list(self._entries)
        return ledger

    def at(self, delta: float) -> Ledger:
        """The same rounds with another delta (ConfigError: out of range)."""
        if not self.config.guarantees:
            return self.reconfigured(self.config)
        return self.reconfigured(self.config.replaced(delta=delta))

    def epsilon(self, delta: float | None = None) -> float:
        """Epsilon of all rounds so far; infinite without noise.

        Args:
            delta: by default the configuration's.

        Raises:
            MissingDependencyError: dp-accounting is not installed.
        """
        return self.bound(delta).epsilon

    def bound(self, delta: float | None = None) -> Bound:
        """``epsilon`` with the accountant that gave it."""
        return self._bound(self._entries, delta)

    def epsilon_after(self, count: int = 1, delta: float | None = None) -> float:
        """Epsilon if so many more rounds of the present configuration were released."""
        coming = self.reconfigured(self.config)
        coming.record(count)
        return coming.epsilon(delta)

    def check_budget(self) -> None:
        """Call before each round.

        Raises:
            PrivacyBudgetError: one more round would exceed the budget.
        """
        budget = self.config.budget_epsilon
        if budget is None:
            return
        coming = self.epsilon_after()
        if not coming <= budget:
            raise PrivacyBudgetError(
                f"round {self.rounds + 1} would bring epsilon to {coming:.4g} at delta {self.config.delta:g}; the "
                f"budget is {budget:g}",
                mend="training is finished; a larger budget, or more noise from the start, allows more rounds",
            )

    def local_epsilon(self, delta: float | None = None) -> float | None:
        """Epsilon of a device's own noise, against the aggregator too; None without such noise."""
        z = self.config.local_noise_multiplier
        if not z:
            return None
        taken = self.config.participations(self.rounds)
        return gaussian_epsilon(
            [(z / 2, taken)] if taken else [], self.config.delta if delta is None else delta
        )

    def epsilon_known(self, rounds: int | None = None) -> float | None:
        """Epsilon of a device that is known to be in every round, so no sampling hides it; None without sampling.

        Args:
            rounds: of the present configuration; by default those so far.
        """
        if not self.config.rests_on_sampling:
            return None
        entries = self._entries if rounds is None else [(self.config.round_event(), rounds)]
        noise = [(event["event"]["noise_multiplier"], count) for event, count in entries]
        return gaussian_epsilon(noise, self.config.delta)

    def statement(self) -> dict[str, Any]:
        """What is guaranteed after these rounds, as JSON values.

        Keys: private, epsilon (None where nothing is guaranteed), delta, rounds, unit, relation, mechanism,
        sampling, sampling_rate, epsilon_known and epsilon_known_round (of a device that is known to take part in all
        rounds, and in one; None without sampling), accountant, guarantee (a sentence), assumptions and not_covered
        (sentences), local_epsilon.
        """
        found = self.bound()
        return statement(
            self.config,
            self.rounds,
            found.epsilon,
            found.accountant,
            local_epsilon=self.local_epsilon(),
            known=(self.epsilon_known(), self.epsilon_known(1)),
        )

    def dp_event(self) -> Any:
        """A ``dp_accounting.DpEvent`` of everything that the most exposed device took part in."""
        dp = events.dp_accounting()
        return dp.ComposedDpEvent(
            [dp.SelfComposedDpEvent(events.to_dp_event(e), n) for e, n in self._exposed(self._entries)]
        )

    def to_json(self) -> str:
        """JSON that ``from_json`` reads."""
        value = {
            "version": 1,
            "config": self.config.model_dump(mode="json"),
            "entries": [{"event": event, "count": count} for event, count in self._entries],
        }
        return json_text(value, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, what: str = "the privacy ledger") -> Ledger:
        """Read what ``to_json`` wrote.

        Args:
            text: JSON.
            what: named in errors.

        Raises:
            LedgerError: it is damaged.
            ConfigError: its configuration is invalid.
        """
        mend = "restore it from a backup; a ledger is never edited by hand"
        try:
            value = parse_json(text)
        except ValueError as error:
            raise LedgerError(f"{what} is not valid JSON: {error}", mend=mend) from error
        _need(value, ("version", "config", "entries"), f"{what} is not a privacy ledger")
        if value["version"] != 1:
            raise LedgerError(f"{what} has version {value['version']!r}, not 1", mend="update pfl-mobile")
        if not isinstance(value["entries"], list):
            raise LedgerError(f"the entries of {what} are no list", mend=mend)
        ledger = cls(parse_privacy(json.dumps(value["config"]), f"the configuration in {what}"))
        for entry in value["entries"]:
            _need(entry, ("event", "count"), f"an entry of {what} is damaged")
            event, count = entry["event"], entry["count"]
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise LedgerError(f"{what} has an event that happened {count!r} times", mend=mend)
            ledger._entries.append((events.checked(event), count))
        return ledger

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ledger:
        """Read a ledger file; raises LedgerError where there is none."""
        try:
            text = read_bytes(path)
        except OSError as error:
            raise LedgerError(
                f"{path} cannot be read: {error.strerror or error}",
                mend="give the path of a ledger: GET /v1/admin/privacy/ledger of the aggregator gives one",
            ) from error
        return cls.from_json(text, str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ledger file."""
        atomic_write(path, self.to_json().encode())

    def _exposed(self, entries: list[tuple[Event, int]]) -> list[tuple[Event, int]]:
        """The events of the most exposed device: with sampling all rounds, else as many as it may take part in."""
        left = self.config.exposed(sum(count for _, count in entries))
        chosen: list[tuple[Event, int]] = []
        for event, count in sorted(entries, key=lambda entry: float(entry[0].get("noise_multiplier", 0.0))):
            if left:
                chosen.append((event, min(count, left)))
                left -= chosen[-1][1]
        return chosen

    def _bound(self, entries: list[tuple[Event, int]], delta: float | None) -> Bound:
        counts: dict[str, int] = {}
        for event, count in self._exposed(entries):
            key = json.dumps(event, sort_keys=True)
            counts[key] = counts.get(key, 0) + count
        wanted = self.config.delta if delta is None else delta
        return _epsilon(tuple(sorted(counts.items())), self.config.relation, wanted)


def _need(value: Any, names: tuple[str, ...], what: str) -> None:
    """Refuse what is no JSON object with these fields (LedgerError)."""
    missing = [name for name in names if not isinstance(value, dict) or name not in value]
    if missing:
        raise LedgerError(
            f"{what}: it has no field {missing[0]!r}",
            mend="get the ledger anew: GET /v1/admin/privacy/ledger of the aggregator gives it; it is never edited "
            "by hand",
        )


def gaussian_epsilon(noise_multipliers: list[tuple[float, int]], delta: float) -> float:
    """Exact epsilon of Gaussian releases on the same data (Balle and Wang 2018).

    Together they are one of the noise multiplier (sum of n_i z_i^-2)^(-1/2).

    Args:
        noise_multipliers: z and how many releases have it; a count costs no more work when it is large.
        delta: of the guarantee.
    """
    if not noise_multipliers:
        return 0.0
    if min(noise_multipliers)[0] <= 0:
        return math.inf
    total = math.fsum(count / z / z for z, count in noise_multipliers)  # z^-2 itself may overflow
    if total == 0 or math.isinf(total):
        return total
    together = total**-0.5
    return float(events.dp_accounting().get_epsilon_gaussian(together, delta))


#: Noise multipliers whose squares float64 holds. Less noise than that hides nothing with sampling either, and more
#: leaves nothing to amplify.
_COMPUTED = (1e-6, 1e100)


@functools.lru_cache(maxsize=4096)
def _epsilon(counts: tuple[tuple[str, int], ...], relation: Relation, delta: float) -> Bound:
    pairs = [(json.loads(key), count) for key, count in counts]
    classes = {event["class"] for event, _ in pairs}
    if not pairs:
        return Bound(0.0, "no release")
    if "NonPrivateDpEvent" in classes:
        return Bound(math.inf, "no noise")
    if classes == {"GaussianDpEvent"}:
        multipliers = [(event["noise_multiplier"], count) for event, count in pairs]
        return Bound(gaussian_epsilon(multipliers, delta), "exact Gaussian")
    inner = [(event.get("event", event)["noise_multiplier"], count) for event, count in pairs]
    # what holds without the amplification by sampling holds with it
    bounds = [Bound(gaussian_epsilon(inner, delta), "exact Gaussian without amplification by sampling")]
    if _COMPUTED[0] <= min(inner)[0] and max(inner)[0] <= _COMPUTED[1]:
        bounds.append(Bound(_rdp(pairs, relation, delta), "dp-accounting RDP"))
        if relation == "add_or_remove_one":
            smallest = min(bound.epsilon for bound in bounds)
            if smallest <= _LARGEST:
                interval = max(_INTERVAL, smallest / _BUCKETS)
                bounds.append(Bound(_pld(pairs, interval, delta), "dp-accounting PLD"))
    return min(bounds)


def rdp_accountant(relation: Relation) -> Any:
    """A fresh RDP accountant of dp-accounting.

    Poisson sampling is computed at whole orders only, which give an upper bound too: the series of others may not
    converge, and PLD gives less anyway.
    """
    dp = events.dp_accounting()
    relations = dp.NeighboringRelation
    if relation == "replace_one":
        from dp_accounting.rdp import rdp_privacy_accountant

        differences.use(rdp_privacy_accountant)
        return dp.rdp.RdpAccountant(neighboring_relation=relations.REPLACE_ONE)
    return dp.rdp.RdpAccountant([*range(2, 64), 128, 256, 512, 1024], relations.ADD_OR_REMOVE_ONE)


def _rdp(pairs: list[tuple[Event, int]], relation: Relation, delta: float) -> float:
    accountant = rdp_accountant(relation)
    for event, count in pairs:
        accountant.compose(events.to_dp_event(event), count)
    return float(accountant.get_epsilon(delta))


def _pld(pairs: list[tuple[Event, int]], interval: float, delta: float) -> float:
    total: Any = None
    for event, count in pairs:
        q = event.get("sampling_probability", 1.0)
        one = _loss(event.get("event", event)["noise_multiplier"], q, interval).self_compose(count)
        total = one if total is None else total.compose(one)
    return float(total.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=64)
def _loss(noise_multiplier: float, sampling_probability: float, interval: float) -> Any:
    """The privacy loss of one event; making it takes longer than composing it, so it is kept."""
    events.dp_accounting()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sampling_probability, value_discretization_interval=interval
    )

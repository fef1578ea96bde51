"""Private rounds in a simulation: who takes part, the noisy merge, what it has cost so far.

The noise repeats with the seed, so that results do: it protects nobody. Everything between rounds is kept in the
server, so that a checkpoint holds it and a failed round leaves no trace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.errors import ConfigError
from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.privacy import Ledger, Poisson, PrivacyConfig, PrivateRounds, SimulatedNoise, private_update
from pfl_mobile.random import derive, permutation, uniform
from pfl_mobile.simulation.cohorts import sample

if TYPE_CHECKING:
    from pfl_mobile.merge.rows import Rows
    from pfl_mobile.merge.updates import Updates
    from pfl_mobile.strategies.state import Server

_KEY = "privacy"
#: Keys of ``derive``, above all numbers of rounds.
_NOISE, _TURNS, _DEVICES = 2**40, 2**40 + 1, 2**40 + 2


@dataclass(frozen=True)
class SimulatedPrivacy:
    """What a run of rounds asks about its privacy.

    Attributes:
        config: of the federation.
        seed: of the noise, and of who may take part when.
        population: users in all.
        cohort: users in a round.

    Raises:
        ConfigError: the configuration is of another population or cohort, or needs what rounds cannot keep.
        MissingDependencyError: the package ``dp-accounting`` is not installed.
    """

    config: PrivacyConfig
    seed: int
    population: int
    cohort: int

    def __post_init__(self) -> None:
        config = self.config
        for name, given, real in (
            ("population", config.population, self.population),
            ("cohort", config.cohort, self.cohort),
        ):
            if given is not None and given != real:
                raise ConfigError(
                    f"the privacy configuration is for a {name} of {given}, the simulation has {real}",
                    mend=f"set the {name} of one to that of the other",
                )
        if config.min_separation > 1 and self.population // config.min_separation < self.cohort:
            raise ConfigError(
                f"with {config.min_separation} rounds between two participations and {self.population} users, "
                f"a round has at most {self.population // config.min_separation} of them, not {self.cohort}",
                mend="take smaller cohorts or a smaller min_separation",
            )
        Ledger(config).epsilon_after()  # so that nothing runs whose cost cannot be told

    def check_rounds(self, rounds: int) -> None:
        """Refuse more rounds than participations allow (ConfigError)."""
        config = self.config
        most = config.max_participations
        if most is not None and most < -(-rounds // config.min_separation):
            raise ConfigError(
                f"in {rounds} rounds a device may take part {-(-rounds // config.min_separation)} times, the privacy "
                f"configuration allows {most}",
                mend="run fewer rounds, or raise min_separation or max_participations",
            )

    def draw(self, seed: int, number: int) -> list[int]:
        """The cohort of a round, as the configuration says that it is drawn.

        Args:
            seed: of this round's draw.
            number: of the round.
        """
        if isinstance(self.config.participation, Poisson):
            return [
                int(i) for i in np.flatnonzero(uniform(seed, self.population) < self.config.sampling_rate)
            ]
        if self.config.min_separation == 1:
            return [int(i) for i in sample(seed, self.population, self.cohort)]
        # Every user has its turn in one of min_separation rounds, so that no two participations are nearer.
        order = permutation(derive(self.seed, _TURNS), self.population)
        turn = np.sort(order[number % self.config.min_separation :: self.config.min_separation])
        return [int(turn[i]) for i in sample(seed, len(turn), self.cohort)]

    def on_devices(self, server: Server, updates: Updates) -> Updates:
        """The updates as devices send them: clipped and with their own noise, where they add any."""
        if not self.config.local_noise_multiplier:
            return updates
        clip = self.config.device_clip_norm(self._rounds(server).clip_norm)
        assert clip is not None  # no adaptive clipping beside noise of devices
        sent = np.stack(
            [
                private_update(
                    change,
                    clip,
                    self.config.local_noise_multiplier,
                    SimulatedNoise(derive(self.seed, _DEVICES, server.round, client)),
                )
                for change, client in zip(updates.changes, updates.clients, strict=True)
            ]
        )
        return updates.replaced(changes=sent)

    def rule(self, server: Server) -> PrivateRule:
        """The rule of the coming merge; what it changes is kept in the server."""

        def merge(rows: Rows, weights: np.ndarray) -> np.ndarray:
            rounds = self._rounds(server)
            mean = rounds.merge(rows, weights)
            server.sets[_KEY] = rounds.state()
            server.numbers[_KEY] = json.loads(rounds.ledger.to_json())
            return mean

        return PrivateRule(self.config, merge)

    def spent(self, server: Server) -> bool:
        """Whether the budget allows no further round."""
        budget = self.config.budget_epsilon
        return budget is not None and not self._ledger(server).epsilon_after() <= budget

    def epsilon(self, server: Server) -> float:
        """Of the rounds so far; infinite without noise."""
        return self._ledger(server).epsilon()

    def statement(self, server: Server) -> dict[str, Any]:
        """What would be guaranteed after the rounds so far if the noise were secure; see ``Ledger.statement``."""
        return self._ledger(server).statement()

    def _ledger(self, server: Server) -> Ledger:
        if _KEY not in server.numbers:
            return Ledger(self.config)
        return Ledger.from_json(json.dumps(server.numbers[_KEY]))

    def _rounds(self, server: Server) -> PrivateRounds:
        rounds = PrivateRounds(self.config, SimulatedNoise(derive(self.seed, _NOISE)))
        if _KEY in server.sets:
            rounds.restore(server.sets[_KEY], self._ledger(server))
        return rounds

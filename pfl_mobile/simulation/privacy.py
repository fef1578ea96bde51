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
from pfl_mobile.privacy import Ledger, Poisson, PrivacyConfig, PrivateRounds, SimulatedNoise, private_update
from pfl_mobile.random import derive, permutation, uniform
from pfl_mobile.simulation.cohorts import sample

if TYPE_CHECKING:
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
        if config.population is not None and config.population != self.population:
            raise ConfigError(
                f"the privacy configuration is for a population of {config.population}, the simulation has "
                f"{self.population}",
                mend="set the population of one to that of the other",
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
        if isinstance(self.config.participation, Poisson) and self.config.central:
            return [
                int(i) for i in np.flatnonzero(uniform(seed, self.population) < self.config.sampling_rate)
            ]
        if self.config.min_separation == 1:
            return [int(i) for i in sample(seed, self.population, self.cohort)]
        # Every user has its turn in one of min_separation rounds, so that no two participations are nearer.
        order = permutation(derive(self.seed, _TURNS), self.population)
        turn = np.sort(order[number % self.config.min_separation :: self.config.min_separation])
        return [int(turn[i]) for i in sample(seed, len(turn), self.cohort)]

    def on_devices(self, clip_norm: float, number: int, updates: Updates) -> Updates:
        """The updates as devices send them: clipped and with their own noise, where they add any.

        Args:
            clip_norm: of the round.
            number: of the round.
            updates: as trained.
        """
        if not self.config.local_noise_multiplier or not len(updates):
            return updates
        clip = self.config.device_clip_norm(clip_norm)
        sent = np.stack(
            [
                private_update(
                    change,
                    clip,
                    self.config.local_noise_multiplier,
                    SimulatedNoise(derive(self.seed, _DEVICES, number, client)),
                )
                for change, client in zip(updates.changes, updates.clients, strict=True)
            ]
        )
        return updates.replaced(changes=sent)

    def rounds(self, server: Server) -> PrivateRounds:
        """Clip norm, noise and ledger after the rounds so far; what changes in them is kept by ``keep``."""
        rounds = PrivateRounds(self.config, SimulatedNoise(derive(self.seed, _NOISE)))
        if _KEY in server.sets:
            rounds.restore(server.sets[_KEY], self._ledger(server))
        return rounds

    def keep(self, server: Server, rounds: PrivateRounds) -> None:
        """Keep in the server what coming rounds depend on."""
        server.sets[_KEY] = rounds.state()
        server.numbers[_KEY] = json.loads(rounds.ledger.to_json())

    def count(self, server: Server) -> None:
        """Count a round that sent something and gave no model: what devices hid by noise of their own is known."""
        if self.config.central:
            return
        rounds = self.rounds(server)
        if rounds.ledger.rounds <= server.round:
            rounds.ledger.record()
            self.keep(server, rounds)

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

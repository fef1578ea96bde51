"""What the pFedMe authors' program runs and measures on Synthetic(0.5, 0.5), with the strategies of this package."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from pfl_mobile import data
from pfl_mobile.data.populations import ArrayPopulation, Population
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive, permutation
from pfl_mobile.rows import Rows
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import Local, Strategy
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.per_fedavg import PerFedAvg
from pfl_mobile.strategies.pfedme import PFedMe
from pfl_mobile.strategies.state import RoundContext
from pfl_mobile.strategies.strategy import local_plan

from .study import study

ROUNDS, USERS_IN_ROUND, BATCH, STEPS = 600, 10, 20, 20

#: Rounds at the end that are measured, to see how much a figure moves from one to the next.
TAIL = 5

#: ``(fraction of the rounds done)``.
Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class TestedPerFedAvg(PerFedAvg):
    """Devices adapt as in the program: a step of rate alpha, then one of rate beta."""

    beta: float = 0.002

    @override
    def personal_plan(self, at: RoundContext) -> Plan | None:
        """Two steps, each on a batch of its own."""
        first, second = (at.local.train(steps=1, optimizer=Sgd(lr=lr)) for lr in (self.alpha, self.beta))
        return local_plan(at, first, second)


@dataclass(frozen=True, kw_only=True)
class TestedPFedMe(PFedMe):
    """The device's own model is w_i, which is what the program measures: its list of personal values is the same
    object as the model's parameters, into which w_i is written before the measurement.
    """

    @override
    def serve(self, at: RoundContext) -> str:
        return "theta"


@dataclass(frozen=True)
class Method:
    """One strategy, and which figures come from it.

    Attributes:
        strategy: as in the rounds.
        local: local training.
        shared: the figure of the server's values.
        personal: the figure of the devices' own models by the strategy's own plan; None: not measured.
        tested: the strategy whose personal plan makes the models that the program measures; None: the same.
        tested_figure: the figure of those.
        on_test: whether those models are made from test examples.
    """

    strategy: Strategy
    local: Local
    shared: str
    personal: str | None = None
    tested: Strategy | None = None
    tested_figure: str = ""
    on_test: bool = False


def _methods() -> dict[str, Method]:
    """Hyper-parameters of the reference, longest run first."""

    def pfedme(make: type[PFedMe]) -> PFedMe:
        return make(lam=20.0, eta=0.01, beta=2.0, local_rounds=STEPS, inner_steps=5, prox="explicit")

    alpha, beta = 0.02, 0.002
    return {
        "pfedme": Method(
            pfedme(PFedMe),
            Local(optimizer=Sgd(lr=0.01, weight_decay=0.001)),
            "pfedme_global",
            "pfedme_theta",
            pfedme(TestedPFedMe),
            "pfedme_personal",
        ),
        "per_fedavg": Method(
            PerFedAvg(alpha=alpha),
            Local(steps=STEPS, optimizer=Sgd(lr=beta)),
            "per_fedavg_global",
            "per_fedavg_train",
            TestedPerFedAvg(alpha=alpha, beta=beta),
            "per_fedavg",
            on_test=True,
        ),
        "fedavg": Method(FedAvg(), Local(steps=STEPS, optimizer=Sgd(lr=0.02)), "fedavg"),
    }


METHODS = _methods()


def shuffled(population: Population, seed: int) -> ArrayPopulation:
    """Each user's examples in another order before the newest are held out; both parts keep their sizes.

    Args:
        population: the users.
        seed: of the order.
    """
    parts: dict[str, tuple[Rows, Rows]] = {}
    for i in range(len(population)):
        train, test = population.train(i), population.test(i)
        cut, count = len(train["weight"]), len(train["weight"]) + len(test["weight"])
        order = permutation(derive(seed, i), count)
        rows = {name: np.concatenate([train[name], test[name]])[order] for name in train}
        parts[population.id(i)] = (
            {name: value[:cut] for name, value in rows.items()},
            {name: value[cut:] for name, value in rows.items()},
        )
    return ArrayPopulation.split(population.name, parts)


def run_method(
    name: str,
    seed: int,
    *,
    rounds: int = ROUNDS,
    population: Population | None = None,
    progress: Progress = lambda _fraction: None,
) -> dict[str, list[float]]:
    """One strategy with one seed.

    Args:
        name: of ``METHODS``.
        seed: of the shuffle before the split, initial values, cohorts and batches; initial values for seed 0 are
            those of the program (``torch.manual_seed(0)``).
        rounds: of the program, which measures each before its merge, so that the last has ``rounds - 1`` merges
            behind it. 2 or more.
        population: the users, ``synthetic`` by default.
        progress: told after each round.

    Returns:
        Each figure in percent of all test examples, over the last ``TAIL`` rounds.
    """
    method, users = METHODS[name], shuffled(population or _drawn(), seed)
    cohort = min(USERS_IN_ROUND, len(users))
    made = study(
        users, "linear", strategy=method.strategy, local=method.local, batch=BATCH, seed=seed, cohort=cohort
    )

    def start(strategy: Strategy, of: Population, merges: int) -> Rounds:
        setup = Setup(copy.deepcopy(made.model), made.task, made.batch, of, lanes=cohort)
        # One process: a step of this model is too short to share.
        return Rounds(
            strategy, setup, LocalBackend(0), local=method.local, rounds=merges, cohort_size=cohort, seed=seed
        )

    found: dict[str, list[float]] = {}
    running = start(method.strategy, users, rounds - 1)
    tested = method.tested and start(method.tested, _only_test(users) if method.on_test else users, 1)
    try:
        for number in range(rounds):
            if number >= rounds - TAIL:
                shared, personal = _measure(running, adapt=method.personal is not None)
                found.setdefault(method.shared, []).append(shared)
                if method.personal:
                    found.setdefault(method.personal, []).append(personal)
                if tested:
                    tested.server.values, tested.server.round = dict(running.server.values), number
                    found.setdefault(method.tested_figure, []).append(_measure(tested, adapt=True)[1])
            if number < rounds - 1:
                running.step()
            progress((number + 1) / rounds)
    finally:
        for one in (running, tested):
            if one:
                one.close()
                one.backend.close()
    return found


def _measure(rounds: Rounds, *, adapt: bool) -> tuple[float, float]:
    """Percent of all users' test examples that are right, with the server's values and with each user's own."""
    measured = rounds.evaluate(adapt=adapt)
    sizes = np.array([m.examples for m in measured], np.float64)
    shared = np.array([m.shared["top1"] for m in measured])
    personal = np.array([(m.personal or m.shared)["top1"] for m in measured])
    return float(100 * shared @ sizes / sizes.sum()), float(100 * personal @ sizes / sizes.sum())


def _only_test(users: ArrayPopulation) -> ArrayPopulation:
    """The same users, adapting on what they are tested on."""
    return ArrayPopulation(users.name, users.ids, tuple((test, test) for _, test in users.parts))


@functools.cache
def _drawn() -> Population:
    found: Population = data.population("synthetic")
    return found

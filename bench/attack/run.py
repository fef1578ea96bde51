"""One run: some devices attack, a rule merges, the model is tested on clean images and on triggered ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn

from attack.threats import ATTACKS, TARGET, Poisoned, Scaling, with_trigger
from pfl_mobile import data
from pfl_mobile.data.populations import Population
from pfl_mobile.errors import TrainingError
from pfl_mobile.merge.rules import MergeRule, create_rule
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.random import permutation
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import Local
from pfl_mobile.study import Machine, Study

FRACTIONS = (0.1, 0.2, 0.3)
#: The rules that are compared. Each assumes as many attackers as there are at most.
RULES: dict[str, dict[str, float]] = {
    "average": {},
    "norm_bound": {},
    "median": {},
    "trimmed_mean": {"attackers": max(FRACTIONS)},
    "krum": {"attackers": max(FRACTIONS)},
    "multi_krum": {"attackers": max(FRACTIONS)},
    "geometric_median": {},
}
CLEAN = "none"


@dataclass(frozen=True)
class Settings:
    """Of all runs.

    Attributes:
        dataset: with images of 784 pixels in ten classes.
        users: who all take part in every round.
        alpha: of the Dirichlet distribution that shares classes out; small: users differ.
        examples: images in all.
        rounds: merges.
        lr: learning rate of the devices.
        hidden: width of the network's hidden layer.
    """

    dataset: str = "mnist"
    users: int = 30
    alpha: float = 1.0
    examples: int = 9000
    rounds: int = 30
    lr: float = 0.1
    hidden: int = 32


@dataclass(frozen=True)
class Case:
    """What one run is.

    Attributes:
        attack: name in ``ATTACKS``, or ``CLEAN``.
        fraction: part of the users that attack.
        rule: name in ``RULES``.
        seed: of data, initial model, orders, and who attacks.
    """

    attack: str
    fraction: float
    rule: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of the model.

    Attributes:
        accuracy: on the test images of all users, percent.
        success: of test images of other classes with the trigger, those taken for the target, percent.
        diverged: the rounds ended because values were not finite; measured is the last model before that.
    """

    accuracy: float
    success: float
    diverged: bool


class Net(nn.Module):
    """One hidden layer: float32 [B, 784] to logits [B, 10]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(784, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.output(torch.relu(self.hidden(x)))


@functools.lru_cache(maxsize=4)
def users(settings: Settings, seed: int) -> Population:
    """The honest users, the same for all runs of a seed."""
    return data.population(
        settings.dataset,
        users=settings.users,
        alpha=settings.alpha,
        examples=settings.examples,
        seed=seed,
    )


def run(settings: Settings, case: Case, population: Population | None = None) -> Outcome:
    """Train and test.

    Args:
        settings: of the study.
        case: who attacks how, and what merges.
        population: in place of the dataset.
    """
    honest = users(settings, case.seed) if population is None else population
    rule: MergeRule = create_rule(case.rule, **RULES[case.rule])
    study = Study(
        functools.partial(Net, settings.hidden),
        honest,
        local=Local(epochs=1, optimizer=Sgd(lr=settings.lr)),
        cohort=len(honest),
        seed=case.seed,
        machine=Machine(processes=0),
    )
    setup, tamper = Setup(study.model, study.task, study.batch, honest), None
    if case.attack != CLEAN:
        attack, count = ATTACKS[case.attack], max(1, round(case.fraction * len(honest)))
        attackers = frozenset(int(i) for i in permutation(case.seed, len(honest))[:count])
        tamper = Scaling(attackers, attack.scale(len(honest), count))
        if attack.poison is not None:
            setup = replace(setup, population=Poisoned(honest, attackers, attack.poison))
    diverged = False
    with (
        LocalBackend(0) as backend,
        Rounds(
            study.strategy,
            setup,
            backend,
            local=study.local,
            rounds=settings.rounds,
            cohort_size=len(honest),
            seed=case.seed,
            rule=rule,
            tamper=tamper,
        ) as rounds,
    ):
        try:
            rounds.run()
        except TrainingError:
            diverged = True
        values = {name: torch.from_numpy(value) for name, value in rounds.server.values.items()}
    tests = [honest.test(i) for i in range(len(honest))]
    x = np.concatenate([rows["x"] for rows in tests])
    labels = np.concatenate([rows["labels"] for rows in tests])
    other = labels != TARGET

    def classes(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return study.model.call(values, torch.from_numpy(images)).argmax(dim=1).numpy()

    return Outcome(
        100 * float((classes(x) == labels).mean()),
        100 * float((classes(with_trigger(x[other])) == TARGET).mean()),
        diverged,
    )


def cases(attacks: Sequence[str], rules: Sequence[str], seeds: int) -> list[Case]:
    """All runs: every rule without attack, and under every attack by every part of the users."""
    clean = [Case(CLEAN, 0.0, rule, seed) for rule in rules for seed in range(seeds)]
    return clean + [
        Case(attack, fraction, rule, seed)
        for attack in attacks
        for fraction in FRACTIONS
        for rule in rules
        for seed in range(seeds)
    ]


def run_all(
    settings: Settings, planned: list[Case], processes: int, say: Callable[[str], None]
) -> Iterator[tuple[Case, Outcome]]:
    """Run cases in processes of one thread each; yields as they end."""
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_one_thread) as pool:
        waiting: dict[Future[Outcome], Case] = {pool.submit(run, settings, case): case for case in planned}
        for done, future in enumerate(as_completed(waiting), 1):
            case, outcome = waiting[future], future.result()
            what = case.attack if case.attack == CLEAN else f"{case.attack} {case.fraction:.0%}"
            say(f"{done}/{len(planned)}  {what}  {case.rule}: {outcome.accuracy:.1f} %")
            yield case, outcome


def _one_thread() -> None:
    torch.set_num_threads(1)

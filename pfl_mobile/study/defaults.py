"""Local training where a study does not say: a learning rate that is tried out on some users, and a clip norm.

Plain SGD with a fixed rate diverges on inputs or targets of a large scale. So some users' devices train for a few
steps, each alone, with 0.1 and then with smaller rates, until a smaller one no longer leaves a smaller loss. The clip
norm, a multiple of the gradients at the start, is large enough not to slow training down, and keeps one unusual batch
of a user who was not among them from throwing a model away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.data.finite import finite
from pfl_mobile.data.user_rows import read_rows
from pfl_mobile.errors import DataError
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.random import derive, permutation
from pfl_mobile.simulation.row_check import RowCheck
from pfl_mobile.simulation.worker import count_examples
from pfl_mobile.study.checks import has_finite_loss
from pfl_mobile.vectorized.cohort import CohortTrainer
from pfl_mobile.vectorized.lanes import SimulatedClient

if TYPE_CHECKING:
    from pfl_mobile.rows import Rows
    from pfl_mobile.strategies import Local
    from pfl_mobile.study.study import Study

#: Rates that are tried, in order; the first is taken where nothing speaks against it.
RATES = tuple(float(f"{digit}e{power}") for power in range(-1, -25, -1) for digit in (1, 0.3))

#: Users who try them, fewer where each is trained alone; users that are looked at for so many; steps of each.
USERS, USERS_ALONE, LOOKED_AT, STEPS = 16, 4, 100, 30

#: Batches that a user's rows are cut to.
MOST_BATCHES = 32

#: The clip norm in multiples of the median of users' gradients at the start, and the least one.
TIMES, LEAST_CLIP = 4.0, 1.0

#: Of what is left of a loss: less than this share of another is clearly better.
_BETTER = 0.9

#: In parts of a user's loss before: more than the first after a trial, or the second on average in it, is too much.
_TOO_MUCH, _TOO_MUCH_ON_AVERAGE = 1.5, 2.0

#: Counts for a user whose training failed.
_LOST = 10.0


@dataclass(frozen=True)
class _Trial:
    """Some users with good rows, and what trains them."""

    trainer: CohortTrainer
    start: dict[str, np.ndarray]
    rows: Sequence[Rows]
    seeds: Sequence[int]

    def run(
        self, optimizer: Sgd, clip: float | None, steps: int
    ) -> list[tuple[dict[str, np.ndarray], float] | None]:
        """Each user's tensors after some steps, and the mean loss of these; None where training failed."""
        plan = Plan(phases=(TrainPhase(steps=steps, optimizer=optimizer, clip=clip),))
        clients = [SimulatedClient(rows, seed) for rows, seed in zip(self.rows, self.seeds, strict=True)]
        sets = {"initial": self.start, "global": self.start}
        return [
            None if one.failure else ({n: v.copy() for n, v in one.tensors.items()}, one.reports["loss"])
            for one in self.trainer.run(plan, clients, self.start, sets)
        ]

    def gradients(self) -> np.ndarray:
        """Norms of users' gradients at the start, float64 [n]; empty where even one step overflows."""
        found = [one[0] for one in self.run(Sgd(lr=1.0), None, 1) if one is not None]
        return np.array([_norm({n: v - self.start[n] for n, v in tensors.items()}) for tensors in found])

    def losses(self, tensors: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
        """Each user's loss on the same rows, float64 [n]."""
        found = self.trainer.evaluate(self.rows, tensors, self.start)
        return np.array([one["loss"] for one in found], np.float64)

    def left(self, rate: float, clip: float | None, before: np.ndarray) -> float:
        """What training with a rate leaves of the loss, mean over users: 1 is all of it, less is better."""
        found = [one for one in self.run(Sgd(lr=rate), clip, STEPS) if one is not None]
        if len(found) < len(before):
            return _LOST
        scale = np.abs(before) + 1e-3 * np.abs(before).mean() + 1e-12
        with np.errstate(over="ignore", invalid="ignore"):
            left = 1 + (self.losses([tensors for tensors, _ in found]) - before) / scale
            average = 1 + (np.array([mean for _, mean in found]) - before) / scale
        if not (left <= _TOO_MUCH).all() or not (average <= _TOO_MUCH_ON_AVERAGE).all():
            return _LOST
        return float(left.mean())


def choose_local(study: Study, local: Local) -> Local:
    """Local training with the learning rate that was tried out, and a clip norm where there is none.

    It depends on the model, the data and the seed, not on the strategy, so that strategies are compared alike.

    Args:
        study: whose model and users try it.
        local: as given, without an optimizer.
    """
    trial = _trial(study)
    if trial is None:  # nobody can train, which the rounds tell
        return local
    before = trial.losses([{} for _ in trial.rows])
    usable = [i for i in range(len(before)) if math.isfinite(before[i])]
    if not usable:
        return local
    trial = replace(trial, rows=[trial.rows[i] for i in usable], seeds=[trial.seeds[i] for i in usable])
    before = before[usable]
    gradients = trial.gradients()
    if not len(gradients) or not np.isfinite(gradients).all():
        return local
    clip = local.clip or float(f"{max(LEAST_CLIP, TIMES * float(np.median(gradients))):.2g}")
    return replace(local, optimizer=Sgd(lr=_rate(trial, clip, float(gradients.max()), before)), clip=clip)


def _rate(trial: _Trial, clip: float, steepest: float, before: np.ndarray) -> float:
    """The rate that leaves the least loss, of those from 0.1 down to where a smaller one leaves more.

    The search ends only below the rate whose first step is as long as the values are: above it a step may end where
    all gradients are zero, and one rate looks like the other.
    """
    sane = (1 + _norm(trial.start)) / max(steepest, 1e-30)
    tried: dict[float, float] = {}
    for rate in RATES:
        tried[rate] = trial.left(rate, clip, before)
        earlier = [left for other, left in tried.items() if other > rate]
        if rate <= sane and earlier and min(earlier) < 1 and tried[rate] > _BETTER * min(earlier):
            break
    best = next(rate for rate, left in tried.items() if _BETTER * left <= min(tried.values()))
    if tried[best] < 1:
        return best
    # Nothing is learned, as there may be nothing to learn: what does no harm.
    return next((rate for rate, left in tried.items() if left <= 1), RATES[-1])


def _norm(tensors: Mapping[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in tensors.values()))


def _trial(study: Study) -> _Trial | None:
    """Users who can train; None where there are none."""
    machine = study.machine
    trainer = CohortTrainer(study.model, study.task, study.batch, lanes=machine.lanes, device=machine.device)
    check, most = RowCheck(study.task, study.batch).check, len(study.batch["weight"]) * MOST_BATCHES
    found: list[Rows] = []
    for user in permutation(derive(study.seed, 3), len(study.data))[:LOOKED_AT]:
        if len(found) == (USERS if trainer.lanes > 1 else USERS_ALONE):
            break
        try:
            rows = read_rows(study.data, int(user), "train")
            check(rows)
        except DataError:  # told as that user's failure in the rounds
            continue
        rows = {name: value[-most:] for name, value in rows.items() if name in study.batch}
        if count_examples(rows) and has_finite_loss(study, rows):
            found.append(rows)
    trained = {t.name for t in study.model.device_tensors() if t.update == "gradient"}
    start = {n: v.numpy() for n, v in study.model.values().items() if n in trained and finite(v.numpy())}
    seeds = [derive(study.seed, 4, i) % 2**63 for i in range(len(found))]
    return _Trial(trainer, start, found, seeds) if found else None

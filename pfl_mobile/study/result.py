"""Running a study, and what can be asked of it afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from pfl_mobile.data.populations import TextPopulation
from pfl_mobile.data.user_rows import read_rows
from pfl_mobile.errors import (
    ConfigError,
    DataError,
    OtherSettingsError,
    TooFewUsersError,
    TrainingFailedError,
    UnknownNameError,
    near,
)
from pfl_mobile.federation.named import strategy_entry
from pfl_mobile.files.atomic import PRIVATE, atomic_write, private_folder
from pfl_mobile.files.plain_json import json_text
from pfl_mobile.files.reading import read_json
from pfl_mobile.local.results import scale
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.schema import LOWER_IS_BETTER
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.made_up import batch_like
from pfl_mobile.random import derive, permutation
from pfl_mobile.simulation.backend import LocalBackend
from pfl_mobile.simulation.checkpoint import FILES
from pfl_mobile.simulation.records import RoundRecord
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.row_check import RowCheck
from pfl_mobile.simulation.worker import Setup
from pfl_mobile.strategies import Local
from pfl_mobile.study.checks import has_finite_loss, is_whole
from pfl_mobile.study.evaluation import Evaluation, Trainings
from pfl_mobile.study.recommend import Recommendation, recommend, training_failed
from pfl_mobile.study.statistics import divergence
from pfl_mobile.study.variants import baseline, personal_from_scratch
from pfl_mobile.text.vocabulary import MIN_USERS

if TYPE_CHECKING:
    from pfl_mobile.programs.tasks import Batch
    from pfl_mobile.rows import Rows
    from pfl_mobile.simulation.backend import ClientBackend
    from pfl_mobile.simulation.worker import ClientEvaluation as Measured
    from pfl_mobile.study.settings import Machine
    from pfl_mobile.study.study import Study

#: ``on_progress(what, fraction done)``.
Report = Callable[[str, float | None], None]

#: Users that are measured, where there are more and the caller does not say.
MOST_USERS = 2000

#: Users whose test examples measure forgetting, and how many of each.
GENERAL_USERS, GENERAL_EACH = 50, 4

#: Labels told apart when users' labels are compared; rarer ones count as one.
MOST_LABELS = 50

_STUDY = "study.json"


def _backend_of(machine: Machine) -> ClientBackend:
    """The backend that is named (MissingDependencyError: its package is not installed)."""
    if not isinstance(machine.backend, str):
        return machine.backend
    if machine.backend == "local":
        return LocalBackend(machine.processes)
    from pfl_mobile.simulation.ray_backend import RayBackend

    return RayBackend()


def _rounds(
    study: Study, rounds: int, resume: bool, progress: Callable[[RoundRecord], None] | None
) -> Rounds:
    general, machine = general_rows(study), study.machine
    setup = Setup(
        study.model, study.task, study.batch, study.data, machine.lanes, machine.device, general=general
    )
    return Rounds(
        study.strategy,
        setup,
        _backend_of(machine),
        local=study.local,
        rounds=rounds,
        cohort_size=study.cohort.size,
        seed=study.seed,
        folder=study.folder,
        resume=resume,
        dropout=study.cohort.dropout,
        groups=study.groups,
        rule=study.robust,
        privacy=study.privacy,
        progress=progress,
    )


def general_rows(study: Study) -> Rows | None:
    """Test examples of many users in equal parts, to measure forgetting on; None where there are none."""
    data, check = study.data, RowCheck(study.task, study.batch).check
    parts: list[Rows] = []
    for user in permutation(derive(study.seed, 1), len(data))[:GENERAL_USERS]:
        try:
            rows = read_rows(data, int(user), "test")
            check(rows)
        except DataError:  # told as that user's failure when users are measured
            continue
        chosen = permutation(derive(study.seed, 2, int(user)), len(rows["weight"]))[:GENERAL_EACH]
        some = {name: value[chosen] for name, value in rows.items()}
        if len(chosen) and has_finite_loss(study, some):
            parts.append(some)
    if not parts:
        return None
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def run_study(study: Study, rounds: int, *, resume: bool, on_progress: Report | None) -> StudyResult:
    """As ``Study.run``."""
    say = on_progress or (lambda _what, _fraction: None)

    def progress(record: RoundRecord) -> None:
        loss = "" if record.loss is None else f", loss {record.loss:.4f}"
        failed = sum(record.failures.values())
        trouble = f", {failed} devices failed" if failed else ""
        say(f"{study.strategy_name}: rounds{loss}{trouble}", (record.round + 1) / rounds)

    if resume and study.folder is not None and (study.folder / _STUDY).exists():
        _take_chosen(study, _about(study.folder))
    running = _rounds(study, rounds, resume, progress)
    done = running.server.round
    if done > rounds:
        _close(running)
        raise OtherSettingsError(
            f"the run in {study.folder} has done {done} rounds, {rounds} are asked for",
            mend=f"give {done} rounds or more, or another folder",
        )
    try:
        if study.folder is not None:
            used = study.effective()
            about = {"rounds": rounds, **study.local_length, "study": used}
            if "by_default" in used["local"]:
                about["chosen"] = {"optimizer": study.local.optimizer.model_dump(), "clip": study.local.clip}
            atomic_write(study.folder / _STUDY, json.dumps(about, indent=2).encode(), mode=PRIVATE)
        running.run()
    except BaseException:
        _close(running)
        raise
    return StudyResult(study, running)


def load_result(study: Study) -> StudyResult:
    """As ``Study.result``."""
    if study.folder is None:
        raise ConfigError("the study has no folder", mend="give folder=, and run it")
    try:
        about = _about(study.folder)
        rounds, told = int(about["rounds"]), {name: about[name] for name in study.local_length}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(study.folder, error) from error
    if told != study.local_length:  # as ``run`` was told
        study = study.replace(**told)
    _take_chosen(study, about)
    running = _rounds(study, rounds, True, None)
    if running.server.round < rounds and not running.stopped:
        done = running.server.round
        _close(running)
        raise ConfigError(
            f"the run in {study.folder} has done {done} of {rounds} rounds",
            mend="finish it with resume=True, on the command line --resume",
        )
    return StudyResult(study, running)


def _about(folder: Path) -> dict[str, Any]:
    """What is written of the run in a folder (ConfigError: nothing, or it is damaged)."""
    try:
        return dict(read_json(folder / _STUDY, finite=False))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no run in {folder}", mend="run the study first") from error
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def _take_chosen(study: Study, about: dict[str, Any]) -> None:
    """Go on with the learning rate and clip norm that a run has: another machine might choose others.

    Raises:
        ConfigError: what is written of them is damaged.
    """
    chosen = about.get("chosen")
    if chosen is None:
        return
    try:
        local = replace(Local(), optimizer=Sgd(**chosen["optimizer"]), clip=chosen["clip"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        assert study.folder is not None
        raise _damaged(study.folder, error) from error
    study._choose(local)


def _damaged(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{folder / _STUDY} is damaged: {error}", mend="run the study again")


def _close(rounds: Rounds) -> None:
    rounds.close()
    rounds.backend.close()


class StudyResult:
    """A finished run. It holds the backend's processes until it is closed.

    Attributes:
        study: what was run.
        history: one record a round.
    """

    def __init__(self, study: Study, rounds: Rounds) -> None:
        """Made by ``Study.run`` and ``Study.result``."""
        self.study = study
        self._rounds = rounds
        self._found: dict[tuple[Any, ...], Evaluation] = {}
        self._baseline: StudyResult | None = None
        self._closed = False

    @property
    def history(self) -> Sequence[RoundRecord]:
        """One record a round."""
        return self._rounds.history

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The trained tensors as the server has them; personal ones as shipped."""
        return dict(self._rounds.server.values)

    def effective(self) -> dict[str, Any]:
        """The effective configuration, with the number of lanes that the model was given."""
        lanes = self._rounds.backend.lanes or self._rounds.setup.lanes
        return self.study.effective() | ({"lanes": lanes} if lanes else {})

    @property
    def fairness(self) -> str | None:
        """Whether the bound that the weighting has been given is met, and by how much it is missed; None: no bound."""
        status = getattr(self.study.strategy.weighting, "status", None)
        if status is None:
            return None
        try:
            return str(status(self._rounds.server))
        except ConfigError as error:  # the strategy sends nothing, or no device answered
            return error.message

    @property
    def privacy(self) -> dict[str, Any] | None:
        """What the rounds so far would guarantee with secure noise (``Ledger.statement``); None without privacy."""
        simulated = self._rounds.privacy
        return None if simulated is None else simulated.statement(self._rounds.server)

    def costs(self) -> dict[str, float]:
        """What the rounds cost: bytes up and down, in all and per device and round; steps, examples, seconds.

        Steps, examples and bytes up are those of the merged devices; a device that failed was sent to as well. What
        users' own models take after the rounds is told by ``evaluate`` (``personal_steps``). ``bytes_up_full_sync`` is
        there where the strategy is about sending less (``scafflix``): what the same devices would have sent up in the
        same steps with an average after each.
        """
        rounds = self.history
        devices = sum(r.clients for r in rounds)
        reached = [r.clients + sum(r.failures.values()) for r in rounds]
        syncs = [self.study.strategy.full_sync_steps(self._rounds.context(r.round)) for r in rounds]
        full = [r.bytes_up * r.clients * n for r, n in zip(rounds, syncs, strict=True) if n is not None]
        return {
            "rounds": len(rounds),
            "device_rounds": devices,
            "failures": sum(sum(r.failures.values()) for r in rounds),
            "bytes_up": float(sum(r.bytes_up * r.clients for r in rounds)),
            "bytes_down": float(sum(r.bytes_down * n for r, n in zip(rounds, reached, strict=True))),
            "bytes_up_per_device": float(np.mean([r.bytes_up for r in rounds])) if rounds else 0.0,
            "bytes_down_per_device": float(np.mean([r.bytes_down for r in rounds])) if rounds else 0.0,
            "examples": float(sum(r.examples for r in rounds)),
            "steps": float(sum(r.steps for r in rounds)),
            "seconds": float(sum(r.seconds for r in rounds)),
            **({"bytes_up_full_sync": float(sum(full))} if full else {}),
        }

    def evaluate(
        self,
        users: int | Sequence[int] | None = None,
        *,
        metric: str | None = None,
        baseline: bool = True,
        on_progress: Report | None = None,
    ) -> Evaluation:
        """The shared model and each user's own, on test examples.

        Where parts of the model are personal, the server's values are no trained model without them. The shared model
        is another one then, federated averaging of everything (``baseline``), which is trained first, once.

        Args:
            users: how many, drawn by the study's seed, or their indexes; by default all, 2000 at most.
            metric: of the task; by default recall for classes and tokens, absolute error for real values.
            baseline: False takes the server's values as they are; ``shared_is_trained`` tells what that is worth.
            on_progress: ``(what, fraction done)``, of the baseline's rounds.

        Raises:
            NoExamplesError: no user has test examples.
            TrainingFailedError: all users failed.
            UnknownNameError: the task does not measure that metric; there is no such user.
            ConfigError: the result is closed.
        """
        who = self._who(users)
        key = (tuple(who), metric)
        if key not in self._found:
            self._check_open()
            self._found[key] = self._evaluate(who, metric)
        found = self._found[key]
        if self._has_shared_model or not baseline:
            return found
        other = self.baseline(on_progress).evaluate(users, metric=found.metric)
        return replace(found.against(other), shared_is_trained=True)

    @property
    def _has_shared_model(self) -> bool:
        """Whether the server's values alone are a trained model, with no personal layer from scratch in it."""
        return not personal_from_scratch(self.study)

    def baseline(self, on_progress: Report | None = None) -> StudyResult:
        """One model for all, by federated averaging of everything in as many rounds; run once.

        Where parts of the model are personal, the server's values with untrained personal ones are no fair shared
        model. This one is. It is kept in the folder ``baseline`` of the run's.
        """
        if self._baseline is None:
            self._check_open()
            study = baseline(self.study)
            if self.study.folder is not None:
                study = study.replace(folder=self.study.folder / "baseline")
            resume = study.folder is not None
            self._baseline = study.run(len(self.history), resume=resume, on_progress=on_progress)
        return self._baseline

    def recommend(
        self, users: int | Sequence[int] | None = None, *, on_progress: Report | None = None
    ) -> Recommendation:
        """Personalize or not, for whom and why, from what ``evaluate`` finds; see ``recommend.recommend``.

        Where too many users failed the verdict is that training failed; the reasons and the users are named.
        """
        try:
            found = self.evaluate(users, on_progress=on_progress)
        except TrainingFailedError as error:
            return training_failed(error.message, error.failed)
        index = {self.study.data.id(i): i for i in self._who(users)}
        return recommend(found, self._label_divergence([index[u] for u in found.users]))

    def deployment(
        self,
        name: str | None = None,
        *,
        version: str = "1",
        group: str | None = None,
        plan: Literal["auto", "personal", "round"] = "auto",
        batch: Batch | None = None,
        min_users: int = MIN_USERS,
    ) -> Deployment:
        """What ``pfl-export`` ships: the trained shared values, the initial personal ones, the plan, the strategy.

        A strategy that no name and numbers say (one of your own, with a server optimizer of its own choice or with
        arrays) is left out: whoever serves the bundle has to name one.

        Args:
            name: of the bundle.
            version: of the bundle.
            group: whose values the tensors with the role ``group`` get.
            plan: ``personal``: what makes a device's own model; ``round``: its part of a round; ``auto``: the
                first where the strategy has one.
            batch: example batch, which ships to check engines with; by default made up, with the shapes of the
                study's.
            min_users: users that a group needs for its values to ship.

        Raises:
            ConfigError: the strategy has no personal plan.
            UnknownNameError: there is no such group.
            TooFewUsersError: the group has fewer users, so its values are those of a few.
        """
        rounds, strategy = self._rounds, self.study.strategy
        at = rounds.context(rounds.server.round)
        personal = strategy.personal_plan(at)
        if plan == "personal" and personal is None:
            raise ConfigError(
                f"the strategy {self.study.strategy_name!r} makes no personal models",
                mend="choose plan='round', or a strategy that does",
            )
        chosen = strategy.plan(at) if personal is None or plan == "round" else personal
        values = self.values
        if group is not None:
            if group not in rounds.server.groups:
                raise UnknownNameError(f"there is no group {group!r}", mend=near(group, rounds.server.groups))
            self._check_group(group, min_users)
            values |= rounds.server.groups[group]
        model = copy.deepcopy(self.study.model)
        model.load_values(values, partial=True)
        sent = {*strategy.sets(rounds.server), *strategy.sets_for(rounds.server, 0, rounds.group(0))}
        given = {"batch": batch_like(self.study.batch, self.study.task, model) if batch is None else batch}
        return Deployment(
            name=name or self.study.name,
            model=model,
            task=self.study.task,
            plan=chosen,
            version=version,
            host_sets=tuple(sorted(sent - {"global"})),
            strategy=strategy_entry(strategy, self.study.local),
            **(given | self._text_parts()),
        )

    def _check_group(self, group: str, min_users: int) -> None:
        count = sum(self._rounds.group(user) == group for user in range(len(self.study.data)))
        if count < min_users:
            raise TooFewUsersError(
                f"the group {group!r} has {count} users; its values would ship what only they are like",
                mend=f"ship a group of {min_users} users or more, or give min_users=",
            )

    def _text_parts(self) -> dict[str, Any]:
        """What lets a bundle take text, where the users' data is text."""
        data = self.study.data
        if not isinstance(data, TextPopulation):
            return {}
        return text_parts(data.encoder, len(self.study.batch["weight"]))

    def save(self, folder: str | Path) -> Path:
        """Write ``result.json`` (costs, history, evaluation of every user, recommendation) into a folder."""
        path = Path(folder) / "result.json"
        found = {
            "study": self.effective(),
            "costs": self.costs(),
            "fairness": self.fairness,
            "privacy": self.privacy,
            "evaluation": self._evaluation_json(),
            "recommendation": self.recommend().to_json(),
            "history": [asdict(r) for r in self.history],
        }
        private_folder(path.parent, ours=(path.name, _STUDY, *FILES))
        atomic_write(path, json_text(found, indent=1).encode(), mode=PRIVATE)
        return path

    def _evaluation_json(self) -> dict[str, Any]:
        try:
            return self.evaluate().to_json(users=True)
        except TrainingFailedError as error:
            return {"users": 0, "no_verdict": error.message, "failed": dict(error.failed)}

    def close(self) -> None:
        """End the backend's processes and let go of the folder; what was measured before can still be asked for."""
        self._closed = True
        if self._baseline is not None:
            self._baseline.close()
        _close(self._rounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(
                "the result is closed, so nothing more can be measured",
                mend="ask inside of `with study.run(...) as result:`, or open the run again with study.result()",
            )

    def _who(self, users: int | Sequence[int] | None) -> list[int]:
        count = len(self.study.data)
        if users is None or isinstance(users, int | np.integer):
            most = min(count, MOST_USERS) if users is None else users
            if not is_whole(most, 1):
                raise ConfigError(f"{users} users are to be measured", mend="give 1 or more")
            return sorted(int(i) for i in permutation(self.study.seed, count)[: min(count, int(most))])
        for user in users:
            if not is_whole(user, 0, count - 1):
                raise UnknownNameError(f"there is no user {user!r}", mend=f"give indexes, 0 to {count - 1}")
        if not len(users):
            raise ConfigError("no users are to be measured", mend="give at least one index")
        return list(dict.fromkeys(int(i) for i in users))

    def _evaluate(self, who: Sequence[int], metric: str | None) -> Evaluation:
        data, trainings = self.study.data, self._trainings()
        measured = [self._as_in_rounds(m, trainings) for m in self._rounds.evaluate(who)]
        counted = [m for m in measured if m.failure is None and m.shared]
        name = metric or _metric(counted)
        missing = next((m for m in counted if name not in m.shared), None)
        if missing is not None:
            raise UnknownNameError(f"the task does not measure {name!r}", mend=near(name, missing.shared))
        shown = scale(name)
        shared = np.array([m.shared[name] for m in counted], np.float64)
        personal = np.array([(m.personal or m.shared)[name] for m in counted], np.float64)
        return Evaluation(
            name,
            [data.id(m.client) for m in counted],
            [self._rounds.group(m.client) for m in counted] if self.study.groups else [],
            np.array([m.train_examples for m in counted], np.int64),
            np.array([m.examples for m in counted], np.int64),
            shown * shared,
            shown * personal,
            *self._forgetting(counted, name),
            failed={data.id(m.client): m.failure for m in measured if m.failure is not None},
            shared_is_trained=self._has_shared_model,
            has_own=any(m.personal is not None for m in counted),
            personal_steps=float(np.mean([m.steps for m in counted])) if counted else 0.0,
            untested=[data.id(m.client) for m in measured if not m.shared and m.failure is None],
            trainings=trainings,
            losses=np.array([m.losses or (np.nan, np.nan) for m in counted], np.float64),
        )

    def _trainings(self) -> Trainings:
        """How training went in the rounds."""
        id_of, troubled = self.study.data.id, self._rounds.troubled()
        always = {id_of(i): t for i, t in troubled.items() if t.failed >= t.rounds}
        sometimes = {id_of(i): t for i, t in troubled.items() if t.failed < t.rounds}
        return Trainings(
            sum(r.clients + sum(r.failures.values()) for r in self.history),
            {user: f"{t.why} (in all {t.rounds} rounds that it took part in)" for user, t in always.items()},
            {user: f"{t.why} (in {t.failed} of its {t.rounds} rounds)" for user, t in sometimes.items()},
            sum(t.failed for t in sometimes.values()),
            max((r.loss for r in self.history if r.loss is not None), default=None),
        )

    def _as_in_rounds(self, found: Measured, trainings: Trainings) -> Measured:
        """What was measured of a user, a failure where the user was never merged."""
        why = trainings.failed.get(self.study.data.id(found.client))
        return found if why is None or found.failure is not None else replace(found, failure=why)

    def _forgetting(self, found: Sequence[Measured], name: str) -> tuple[float | None, np.ndarray | None]:
        """The metric on the general examples: of the shared model, and of those users' that have their own."""
        own = [m for m in found if m.general and m.general_shared]
        if not own or not self._has_shared_model:
            return None, None
        shared = (own[0].general_shared or {})[name]
        personal = np.array([(m.general or {})[name] for m in own], np.float64)
        return scale(name) * shared, scale(name) * personal

    def _label_divergence(self, who: Sequence[int]) -> np.ndarray | None:
        """Of each user's training labels; None for real values."""
        name = next(iter(self.study.task.labels), "labels")
        own = []
        for user in who:
            rows = read_rows(self.study.data, user, "train")  # which was measured, so they are good
            if name in rows:
                if rows[name].dtype != np.int64:
                    return None
                own.append(rows[name][rows["weight"] > 0])
        if not own:
            return None
        labels, counts = np.unique(np.concatenate(own), return_counts=True)
        kept = np.sort(labels[np.argsort(-counts, kind="stable")[:MOST_LABELS]])
        table = np.zeros((len(own), len(kept) + 1))
        for row, values in zip(table, own, strict=True):
            place = np.searchsorted(kept, values).clip(max=len(kept) - 1)
            np.add.at(row, np.where(kept[place] == values, place, len(kept)), 1)
        some = table.sum(axis=1) > 0
        return divergence(table[some]) if some.any() else None


def _metric(found: Sequence[Measured]) -> str:
    """The metric to compare by: recall, else the first error measure, else the loss."""
    names = set(found[0].shared) if found else {"loss"}
    for name in ("top1", *sorted(LOWER_IS_BETTER - {"loss"})):
        if name in names:
            return name
    return "loss"

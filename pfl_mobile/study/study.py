"""A study: many users, one model, one strategy, and what comes of it.

study = Study(model, data, strategy="scafflix", shared=["body"], personal=["head"],
              fairness=BoundedGroupLoss(max_loss=0.15))
result = study.run(rounds=50, local_epochs=5)
print(result.evaluate().personalized_acc, result.recommend())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pfl_mobile.data.populations import population
from pfl_mobile.errors import ConfigError
from pfl_mobile.federation.compose import compose
from pfl_mobile.federation.round import RoundDefinition
from pfl_mobile.files.describe import describe
from pfl_mobile.merge.rules import Average, MergeRule, create_rule
from pfl_mobile.modules.normalization import check_trainable
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.plan.schema import Plan
from pfl_mobile.privacy import Mechanism, PrivacyConfig
from pfl_mobile.programs.tasks import Task
from pfl_mobile.programs.trace import check_classes
from pfl_mobile.simulation.backend import usual_processes
from pfl_mobile.simulation.privacy import SimulatedPrivacy
from pfl_mobile.strategies import Local, RoundContext, Strategy, Weighting, entries
from pfl_mobile.study.checks import (
    first_rows,
    fitting,
    folder_path,
    instance,
    list_of_names,
    user_groups,
    whole,
)
from pfl_mobile.study.defaults import choose_local
from pfl_mobile.study.infer import example_batch, infer_task, personalized
from pfl_mobile.study.labels import labels_seen
from pfl_mobile.study.local_length import for_local_length
from pfl_mobile.study.settings import Cohort, Machine
from pfl_mobile.study.variants import SameLayers
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.vectorized.cohort import most_lanes

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Groups, Population
    from pfl_mobile.programs.tasks import Batch
    from pfl_mobile.study.result import StudyResult

#: Devices in a round, where the user did not say and there are more.
COHORT = 50


class Study:
    """A model, the users' data and a strategy. Nothing runs before :meth:`run`.

    Args:
        model: any ``nn.Module``; what ``personalize`` returned; or a function (a class, say) that makes either,
            which is called with torch's generator seeded by ``seed``, so that initial weights repeat. What its forward
            pass updates in training mode (BatchNorm's running statistics) is not trained, see ``normalization.py``.
        data: a ``Population``; each user's rows, arrays by name, as ``ArrayPopulation.of`` takes them (the newest
            part of each is the test set); or the name of a dataset (see ``pfl data list``).
        strategy: a name (``pfl strategies``) or a ``Strategy``.
        parameters: hyper-parameters of a strategy given by name, and of ``fairness``: what the strategy does not have
            is the fairness's, and ``fairness.NAME`` is in any case.
        shared: patterns of layers that are trained together; by default all that are not ``personal``.
        personal: patterns of layers that never leave a device.
        split: where ``personal`` names none: layers that are personal with a strategy that needs personal layers,
            and shared with every other, so that strategies can be exchanged.
        fairness: how devices are weighted: a ``Weighting``, or the name of a strategy that is federated averaging
            with one (``"term"``); by default the strategy's own.
        robust: how means of updates are taken: a merge rule or its name (``"median"``); by default the weighted mean.
            Under a robust rule all devices count the same, as on a server, unless ``privacy`` has an ``example_cap``.
        privacy: differential privacy of the rounds. The noise repeats with ``seed``, as results must: a simulation
            shows what privacy costs, and protects nobody.
        groups: group of every user: group name to user ids, or a JSON or CSV file; by default the data's own.
        task: loss and metrics; by default the one that labels and outputs say (``task_from`` in ``effective()`` tells
            why). Where they could mean several, 0 and 1 as real numbers for one, it has to be given.
        local: local training. Where it has no optimizer it is plain SGD with a learning rate and a clip norm that are
            tried out on some users, see ``study.defaults``; what is given is kept.
        batch: examples in a batch on a device.
        cohort: the devices of a round, a ``Cohort`` or just how many; by default all of them, 50 at most.
        seed: of everything random.
        machine: where devices are simulated, and how many at once; by default on all cores of this machine.
        folder: where the run keeps checkpoints and results; None keeps nothing.
        name: of the bundle that the study can become.

    Attributes:
        settings: what was given, named as above; data as a ``Population``.
        strategy: with the fairness in it.
        strategy_name: of the strategy, as it was given, or its class.
        model: with the layers that train marked as shared, personal or of a group.
        given_model: the one that ``model`` was or made.
        task, task_from: loss and metrics, and how they were found.
        batch: an example batch, tensors by name.
        groups: the indexes of each group's users.
        robust: the merge rule; None for the weighted mean.
        local_length: ``local_epochs`` and ``local_steps`` as ``run`` was told.
        data, cohort, machine, personal, privacy, seed, folder, name: as above, defaults filled in.

    Raises:
        UnknownNameError: of a strategy, a hyper-parameter, a layer, a dataset.
        ConfigError: a setting is out of range, or settings do not fit together; the model has running statistics or
            other state that a plain loop would go on changing.
        DataError: users without examples, NaN in their rows, groups that miss users.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        data: Population | Mapping[str, Mapping[str, np.ndarray]] | str,
        strategy: str | Strategy = "fedavg",
        *,
        parameters: Mapping[str, Any] | None = None,
        shared: Sequence[str] | None = None,
        personal: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        fairness: Weighting | str | None = None,
        robust: MergeRule | str | None = None,
        privacy: PrivacyConfig | None = None,
        groups: Groups | Mapping[str, Sequence[str]] | str | Path | None = None,
        task: Task | None = None,
        local: Local | None = None,
        batch: int = 16,
        cohort: Cohort | int | None = None,
        seed: int = 0,
        machine: Machine | None = None,
        folder: str | Path | None = None,
        name: str | None = None,
    ) -> None:
        """Check that everything fits together."""
        _check_types(local=local, task=task, privacy=privacy, machine=machine)
        for setting, patterns in (("shared", shared), ("personal", personal), ("split", split)):
            list_of_names(setting, patterns)
        whole("batch", batch, 1)
        whole("seed", seed, -(2**63), 2**64 - 1)
        self.data = population(data)  # loaded once, however often settings are replaced
        composed = compose(strategy, parameters or {}, fairness)
        self.settings: dict[str, Any] = {
            "model": model,
            "data": self.data,
            "strategy": strategy,
            # Another strategy in place of this one keeps the fairness, and its hyper-parameters with it.
            "parameters": composed.parameters,
            "shared": shared,
            "personal": personal,
            "split": split,
            "fairness": composed.fairness,
            "robust": robust,
            "privacy": privacy,
            "groups": groups,
            "task": task,
            "local": local,
            "batch": batch,
            "cohort": cohort,
            "seed": seed,
            "machine": machine,
            "folder": folder,
            "name": name,
        }
        self.strategy_name = composed.name
        self.strategy, groups = _without_groups(composed.strategy, groups)
        self.groups: Groups = user_groups(groups, self.data)
        self.robust = _merge_rule(robust)
        self.privacy = privacy
        self.personal = split if personal is None and needs_personal(self.strategy) else personal
        self.cohort = _cohort(cohort, len(self.data))
        self.seed, self.machine = int(seed), machine or Machine()
        self.folder, self.name = folder_path(folder), name or self.data.name
        self.given_model = _make(model, self.seed)
        self.task, self.task_from, self.batch = _task_and_batch(self.given_model, self.data, task, batch)
        self.model = self._personalized(self.given_model, shared, self.personal)
        self.local_length: dict[str, int | None] = {"local_epochs": None, "local_steps": None}
        self._given_local = local or Local()
        self._chosen: Local | None = None
        self._check_first_plan()
        if privacy is not None:
            SimulatedPrivacy(privacy, self.seed, len(self.data), self.cohort.size)

    def _check_first_plan(self) -> None:
        """Refuse now what the first round would refuse. The learning rate that is chosen later is no larger."""
        RoundDefinition(
            self.strategy,
            self._given_local,
            tuple(self.model.device_tensors()),
            cohort=self.cohort.size,
            rule=self.robust or Average(),
            privacy=self.privacy,
            groups=bool(self.groups),
        ).plan(0, 0)

    def _personalized(
        self, made: nn.Module, shared: Sequence[str] | None, personal: Sequence[str] | None
    ) -> PersonalizedModel:
        inserted = () if isinstance(made, PersonalizedModel) else self.strategy.modules(made)
        if not inserted:
            return personalized(made, shared=shared, personal=personal, seed=self.seed)
        if shared is not None or personal is not None:
            raise ConfigError(
                f"the strategy {self.strategy_name!r} freezes the model and inserts {inserted[0].kind!r}, so no "
                "other layer can be shared or personal",
                mend="leave shared= and personal= out; the strategy's own settings say what is shared",
            )
        return personalize(made, inserted, roles=self.strategy.roles(), seed=self.seed)

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters that a strategy given by name was given."""
        return dict(self.settings["parameters"])

    def replace(self, **changes: Any) -> Study:
        """The same study with other settings.

        Args:
            changes: settings as in the constructor; ``local_epochs`` or ``local_steps`` as in :meth:`run`.

        Raises:
            As the constructor and :meth:`run`.
        """
        told = {name: changes.pop(name) for name in self.local_length if name in changes}
        other = Study(**{**self.settings, **changes})
        same = "model" not in changes or isinstance(changes["model"], SameLayers)
        if self._chosen is not None and same and not changes.keys() & {"data", "task", "batch", "local"}:
            other._choose(self._chosen)
        other._train_for(**(told or self.local_length))
        return other

    def _train_for(self, local_epochs: int | None = None, local_steps: int | None = None) -> None:
        """Let a device train for so many epochs or steps in a round, in place of those of ``local``."""
        for name, value in (("local_epochs", local_epochs), ("local_steps", local_steps)):
            if value is not None:
                whole(name, value, 1)
        if local_epochs is None and local_steps is None:
            return
        self.local_length = {"local_epochs": local_epochs, "local_steps": local_steps}
        self._given_local = replace(self._given_local, epochs=local_epochs, steps=local_steps)
        if self._chosen is not None:
            self._choose(self._chosen)
        examples = len(self.batch["weight"])
        self.strategy = for_local_length(
            self.strategy, self._given_local, self.data, examples, given=self.parameters
        )
        self._check_first_plan()

    @property
    def local(self) -> Local:
        """Local training; what was not given is tried out when it is first asked for (``study.defaults``)."""
        if not self._given_local.by_default:
            return self._given_local
        if self._chosen is None:
            self._chosen = choose_local(self, self._given_local)
        return self._chosen

    def _choose(self, local: Local) -> None:
        """Take optimizer and clip norm that were tried out before, where none are given."""
        if self._given_local.by_default:
            self._chosen = replace(self._given_local, optimizer=local.optimizer, clip=local.clip)

    def plan(self) -> Plan:
        """What a device does in the first round."""
        return self.strategy.plan(RoundContext(tuple(self.model.device_tensors()), self.local))

    def run(
        self,
        rounds: int = 50,
        local_epochs: int | None = None,
        *,
        local_steps: int | None = None,
        resume: bool = False,
        on_progress: Callable[[str, float | None], None] | None = None,
    ) -> StudyResult:
        """Run the rounds.

        Args:
            rounds: how many merges.
            local_epochs: passes over a device's examples in a round, in place of those of ``local``. A strategy that
                counts in steps of its own (``scafflix``: steps from one communication to the next, ``pfedme``:
                mini-batches) takes the steps that so many passes are on an average device.
            local_steps: optimizer steps in a round, in place of epochs.
            resume: go on from the last checkpoint in ``folder``; the result is bit for bit that of a run that
                was never stopped.
            on_progress: ``(what, fraction done)``.

        Raises:
            OtherSettingsError: the run in the folder has other settings, data or code, or more rounds.
            ConfigError: a run is in the folder, and ``resume`` is not set; rounds out of range; epochs or steps beside
                a hyper-parameter of the strategy that says the same.
            TrainingError: all devices of a round failed.
        """
        from pfl_mobile.study.result import run_study

        whole("rounds", rounds, 1)
        if resume and self.folder is None:
            raise ConfigError("there is no folder to resume from", mend="give folder=, that of the run")
        study = self
        if local_epochs is not None or local_steps is not None:
            study = self.replace(local_epochs=local_epochs, local_steps=local_steps)
        return run_study(study, rounds, resume=resume, on_progress=on_progress)

    def result(self) -> StudyResult:
        """The result of a run that finished in ``folder``.

        Raises:
            ConfigError: the study has no folder, or no finished run of these settings is in it.
        """
        from pfl_mobile.study.result import load_result

        return load_result(self)

    def effective(self) -> dict[str, Any]:
        """The effective configuration: every setting, defaults filled in; ``StudyResult.effective`` after a run.

        Where hyper-parameters of the strategy say how much a device trains in a round, ``local`` names them
        (``length``) in place of epochs and steps.
        """
        table = self.model.device_tensors()
        local = describe(self.local)
        own = self.strategy.for_steps(1)
        if own:
            local = {name: value for name, value in local.items() if name not in ("epochs", "steps")}
            local["length"] = f"by {' and '.join(own)} of the strategy"
        if self._given_local.by_default:
            local["by_default"] = ["optimizer", *(["clip"] if self._given_local.clip is None else [])]
        roles = sorted({t.role for t in table})
        return {
            "data": self.data.name,
            "users": len(self.data),
            **({"left_out": self.data.left_out} if hasattr(self.data, "left_out") else {}),
            "groups": {name: len(members) for name, members in self.groups.items()},
            "strategy": self.strategy_name,
            "parameters": describe(self.strategy),
            "model": type(self.model.backbone).__name__,
            "task": self.task.kind,
            "task_from": self.task_from,
            "trained": {r: sum(int(np.prod(t.shape)) for t in table if t.role == r) for r in roles},
            "local": local,
            "batch": len(self.batch["weight"]),
            "cohort": self.cohort.size,
            "dropout": self.cohort.dropout,
            "robust": describe(self.robust),
            "privacy": describe(self.privacy),
            "seed": self.seed,
            "personal": list(self.personal or ()),
            **_where(self.machine),
            "folder": None if self.folder is None else str(self.folder),
        }


def _make(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    made: Any = model
    if callable(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = model()
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"the model is a {type(made).__name__}", mend="give an nn.Module, or a function that makes one"
        )
    return made


def needs_personal(strategy: Strategy) -> bool:
    """Whether a strategy is one that needs personal layers."""
    return any(e.split and e.make is type(strategy) for e in entries())


def _check_types(**given: Any) -> None:
    """Refuse what is no object of the class that a setting has (ConfigError)."""
    kinds = {"local": Local, "task": Task, "privacy": Mechanism, "machine": Machine}
    for setting, thing in given.items():
        instance(setting, thing, kinds[setting])


def _merge_rule(robust: MergeRule | str | None) -> MergeRule | None:
    """The rule that is meant; None for the weighted mean, which is what there is without a rule."""
    rule = create_rule(robust) if isinstance(robust, str) else robust
    instance("robust", rule, MergeRule)
    return None if rule == Average() else rule


def _cohort(given: Cohort | int | None, users: int) -> Cohort:
    if given is None:
        return Cohort(size=min(users, COHORT))
    found = given if isinstance(given, Cohort) else Cohort(size=given)
    if found.size > users:
        raise ConfigError(
            f"the cohort is {found.size} of {users} users", mend=f"give a number from 1 to {users}"
        )
    return found


def _without_groups(strategy: Strategy, groups: Any) -> tuple[Strategy, Any]:
    """A strategy whose fairness is over groups, without these, and the groups: users are measured on them too."""
    own = getattr(strategy.weighting, "groups", None)
    if own is None:
        return strategy, groups
    fair = replace(strategy.weighting, groups=None)  # type: ignore[call-arg]
    return replace(strategy, weighting=fair), own if groups is None else groups


def _task_and_batch(
    model: nn.Module, data: Population, task: Task | None, size: int
) -> tuple[Task, str, Batch]:
    """Loss and metrics, how they were found, and an example batch that suits them."""
    candidates = first_rows(data)
    how = "given"
    if task is None:
        first = example_batch(candidates[0], size)
        specials = len(SPECIALS) if hasattr(data, "encoder") else 0
        task, why = infer_task(model, first, specials=specials, labels=labels_seen(data, candidates[0]))
        how = f"inferred: {why}"
    batch = example_batch(fitting(candidates, task, example_batch(candidates[0], size)), size)
    check_classes(task, batch)
    if set(task.inputs) <= batch.keys():  # else the first check of the batch names what is missing
        check_trainable(model, [batch[name] for name in task.inputs])
    return task, how, batch


def _where(machine: Machine) -> dict[str, Any]:
    """The machine in the effective configuration."""
    where: dict[str, Any] = {"backend": describe(machine.backend), "device": machine.device}
    if machine.backend == "local":
        few = machine.processes
        where["processes"] = usual_processes(machine.device) if few is None else few
    where["lanes"] = machine.lanes or f"{most_lanes(machine.device)}, or 1 as the model needs it"
    return where

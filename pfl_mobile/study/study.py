"""A study: many users, one model, one strategy, and what comes of it.

study = Study(model, data, strategy="scafflix", shared=["body"], personal=["head"],
              fairness=BoundedGroupLoss(max_loss=0.15))
result = study.run(rounds=50, local_epochs=5)
print(result.evaluate().personalized_acc, result.recommend())
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pfl_mobile.data.populations import population
from pfl_mobile.errors import ConfigError, near
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
from pfl_mobile.simulation.engine import usual_processes
from pfl_mobile.simulation.privacy import SimulatedPrivacy
from pfl_mobile.strategies import Local, RoundContext, Strategy, Weighting, entries
from pfl_mobile.study.checks import (
    first_rows,
    fitting,
    folder_path,
    fraction,
    instance,
    is_whole,
    known_engine,
    list_of_names,
    user_groups,
    whole,
)
from pfl_mobile.study.defaults import choose_local
from pfl_mobile.study.infer import example_batch, infer_task, personalized
from pfl_mobile.study.labels import labels_seen
from pfl_mobile.study.local_length import for_local_length
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.vectorized.cohort import most_lanes

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Groups, Population
    from pfl_mobile.rows import Rows
    from pfl_mobile.simulation.engine import ClientEngine
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
        local_epochs: passes over a device's examples in a round, in place of those of ``local``. A strategy that
            counts in steps of its own (``scafflix``: steps from one communication to the next, ``pfedme``:
            mini-batches) takes the steps that so many passes are on an average device.
        local_steps: optimizer steps in a round, in place of epochs.
        batch: examples in a batch on a device.
        cohort: devices in a round; by default all of them, 50 at most.
        dropout: share of the devices of a round that do not answer.
        seed: of everything random.
        folder: where the run keeps checkpoints and results; None keeps nothing.
        engine: ``local``, ``ray`` or an ``ClientEngine``.
        processes: of the local engine; None for one a core, 0 for this process.
        lanes: clients trained at once in a process; by default 16, or 1 with convolutions. Results depend on it in
            the last bits.
        device: where devices are simulated: ``cpu``, or ``cuda`` where there is a GPU.
        name: of the bundle that the study can become.

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
        local_epochs: int | None = None,
        local_steps: int | None = None,
        batch: int = 16,
        cohort: int | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        folder: str | Path | None = None,
        engine: ClientEngine | str = "local",
        processes: int | None = None,
        lanes: int | None = None,
        device: str = "cpu",
        name: str | None = None,
    ) -> None:
        """Check that everything fits together."""
        self._given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        self.data = self._given["data"] = population(data)  # loaded once, however often settings are replaced
        count = len(self.data)
        composed = compose(strategy, parameters or {}, fairness)
        self.strategy_name, self.strategy = composed.name, composed.strategy
        # Another strategy in place of this one keeps the fairness, and its hyper-parameters with it.
        self._given |= {"parameters": composed.parameters, "fairness": composed.fairness}
        given = getattr(self.strategy.weighting, "groups", None)
        if given is not None:  # fairness over groups is measured on them too
            fair = replace(self.strategy.weighting, groups=None)  # type: ignore[call-arg]
            self.strategy = replace(self.strategy, weighting=fair)
            groups = given if groups is None else groups
        self.groups: Groups = user_groups(groups, self.data)
        rule = create_rule(robust) if isinstance(robust, str) else robust
        self.robust = None if rule == Average() else rule  # the weighted mean is what there is without a rule
        self.privacy = privacy
        self.cohort = min(count, COHORT) if cohort is None else cohort
        if not is_whole(self.cohort, 1, count):
            raise ConfigError(
                f"the cohort is {cohort} of {count} users", mend=f"give a number from 1 to {count}"
            )
        whole("batch", batch, 1)
        whole("seed", seed, -(2**63), 2**64 - 1)
        for setting, value, least in (
            ("lanes", lanes, 1),
            ("processes", processes, 0),
            ("local_epochs", local_epochs, 1),
            ("local_steps", local_steps, 1),
        ):
            if value is not None:
                whole(setting, value, least)
        fraction("dropout", dropout)
        for setting, thing, kind in (
            ("local", local, Local),
            ("task", task, Task),
            ("strategy", self.strategy, Strategy),
            ("robust", self.robust, MergeRule),
            ("privacy", privacy, Mechanism),
        ):
            instance(setting, thing, kind)
        for setting, patterns in (("shared", shared), ("personal", personal), ("split", split)):
            list_of_names(setting, patterns)
        known_engine(engine)
        self.personal = split if personal is None and needs_personal(self.strategy) else personal
        self.seed = int(seed)
        candidates = first_rows(self.data)
        self.batch = example_batch(candidates[0], batch)
        made = self._made = _make(model, self.seed)
        specials = len(SPECIALS) if hasattr(self.data, "encoder") else 0
        if task is None:
            self.task, why = infer_task(
                made, self.batch, specials=specials, labels=labels_seen(self.data, candidates[0])
            )
            self.task_from = f"inferred: {why}"
        else:
            self.task, self.task_from = task, "given"
        self.batch = example_batch(fitting(candidates, self.task, self.batch), batch)
        check_classes(self.task, self.batch)
        if (
            set(self.task.inputs) <= self.batch.keys()
        ):  # else the first check of the batch names what is missing
            check_trainable(made, [self.batch[name] for name in self.task.inputs])
        self.model: PersonalizedModel = self._personalized(made, shared, self.personal)
        self._given_local = local or Local()
        if local_epochs is not None or local_steps is not None:
            self._given_local = replace(self._given_local, epochs=local_epochs, steps=local_steps)
            self.strategy = for_local_length(
                self.strategy, self._given_local, self.data, len(self.batch["weight"]), given=self.parameters
            )
        self._chosen: Local | None = None
        self.dropout, self.lanes, self.processes = dropout, lanes, processes
        self.device = _device(device)
        self.engine = engine
        self.folder = folder_path(folder)
        self.name = name or self.data.name
        # Fails now rather than after start-up. The learning rate that is chosen later is no larger.
        RoundDefinition(
            self.strategy,
            self._given_local,
            tuple(self.model.device_tensors()),
            cohort=self.cohort,
            rule=self.robust or Average(),
            privacy=privacy,
            groups=bool(self.groups),
        ).plan(0, 0)
        if privacy is not None:
            SimulatedPrivacy(privacy, self.seed, count, self.cohort)

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

    def inserts(self, strategy: Strategy | None = None) -> bool:
        """Whether a strategy (by default the study's) puts modules of its own into the model, which is frozen then.

        Raises:
            ConfigError: it would, but they do not fit the model.
        """
        return self._plain and bool((strategy or self.strategy).modules(self._made))

    @property
    def _plain(self) -> bool:
        """Whether nothing had been put into the model that was given."""
        return not isinstance(self._made, PersonalizedModel)

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters that a strategy given by name was given."""
        return dict(self._given["parameters"])

    @property
    def personal_from_scratch(self) -> bool:
        """Whether layers of a plain model are only trained on devices, so that the shared model's are untrained.

        Modules in a backbone are another thing: without them there is the backbone.
        """
        if self.personal:
            return True
        return self._plain and not self.inserts() and not self.plan().upload

    def replace(self, **changes: Any) -> Study:
        """The same study with other settings, named as in the constructor."""
        other = Study(**{**self._given, **changes})
        model = changes.get("model")
        same = model is None or isinstance(model, _AllShared | _Trained)
        if self._chosen is not None and same and not changes.keys() & {"data", "task", "batch", "local"}:
            other.choose(self._chosen)
        return other

    @property
    def local(self) -> Local:
        """Local training; what was not given is tried out when it is first asked for (``study.defaults``)."""
        if not self._given_local.by_default:
            return self._given_local
        if self._chosen is None:
            self._chosen = choose_local(self, self._given_local)
        return self._chosen

    def choose(self, local: Local) -> None:
        """Take optimizer and clip norm that were tried out before, where none are given."""
        if self._given_local.by_default:
            self._chosen = replace(self._given_local, optimizer=local.optimizer, clip=local.clip)

    @property
    def local_by_default(self) -> list[str]:
        """The settings of ``local`` that nobody gave."""
        if not self._given_local.by_default:
            return []
        return ["optimizer", *(["clip"] if self._given_local.clip is None else [])]

    @property
    def trained(self) -> set[str]:
        """Names of the tensors that gradients train."""
        return {t.name for t in self.model.device_tensors() if t.update == "gradient"}

    def runs(self, rows: Rows) -> bool:
        """Whether the model as shipped has a finite loss on these rows; where it has none nothing can train on them."""
        batch = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = self.model(*(batch[name] for name in self.task.inputs))
                return bool(torch.isfinite(self.task.losses(output, batch)).all())
        except (IndexError, RuntimeError):  # a token that the model's table does not have, for instance
            return False

    def all_shared(self, strategy: str | Strategy = "fedavg", **changes: Any) -> Study:
        """The same study with nothing personal: what the named layers train is shared by all.

        Args:
            strategy: of the new study.
            changes: further settings, as in the constructor.
        """
        shared, personal, split, model = (
            self._given[name] for name in ("shared", "personal", "split", "model")
        )
        if shared is not None:
            shared = [*shared, *(personal or split or ())]
        if not self._plain:
            model = _AllShared(model)
        fixed = {"parameters": None, "shared": shared, "personal": None, "model": model, "strategy": strategy}
        return self.replace(**{**fixed, **changes})

    def with_weights(self, values: Mapping[str, np.ndarray]) -> Study:
        """The same study with these values in the model at the start, by name of tensor; others as they are.

        Raises:
            ConfigError: the model has no such tensors.
        """
        return self.replace(model=_Trained(self._given["model"], values))

    def baseline(self) -> Study:
        """Federated averaging of everything, with the rest as in this study: what one model for all gets."""
        return self.all_shared(fairness=None, folder=None)

    def context(self, round: int = 0, seed: int = 0) -> RoundContext:  # noqa: A002
        """What the strategy builds plans from."""
        return RoundContext(tuple(self.model.device_tensors()), self.local, round, seed)

    def plan(self) -> Plan:
        """What a device does in the first round."""
        return self.strategy.plan(self.context())

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
            local_epochs, local_steps: how much a device trains in a round, as in the constructor.
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

    @property
    def _processes(self) -> int:
        return usual_processes(self.device) if self.processes is None else self.processes

    @property
    def local_length(self) -> dict[str, int | None]:
        """``local_epochs`` and ``local_steps`` as they were given."""
        return {name: self._given[name] for name in ("local_epochs", "local_steps")}

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
        if self.local_by_default:
            local["by_default"] = self.local_by_default
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
            "cohort": self.cohort,
            "dropout": self.dropout,
            "robust": describe(self.robust),
            "privacy": describe(self.privacy),
            "seed": self.seed,
            "personal": list(self.personal or ()),
            "engine": describe(self.engine),
            "device": self.device,
            **({"processes": self._processes} if self.engine == "local" else {}),
            "lanes": self.lanes or f"{most_lanes(self.device)}, or 1 as the model needs it",
            "folder": None if self.folder is None else str(self.folder),
        }


class _AllShared:
    """A function that makes a personalized model with everything shared."""

    def __init__(self, model: nn.Module | Callable[[], nn.Module]) -> None:
        self.model = model

    def __call__(self) -> PersonalizedModel:
        made = self.model if isinstance(self.model, nn.Module) else self.model()
        assert isinstance(made, PersonalizedModel)
        return made.all_shared()


class _Trained:
    """A function that makes a plain model with given weights."""

    def __init__(self, model: nn.Module | Callable[[], nn.Module], values: Mapping[str, np.ndarray]) -> None:
        self.model, self.values = model, values

    def __call__(self) -> nn.Module:
        made = copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model()
        known = made.state_dict()
        unknown = sorted(self.values.keys() - known.keys())
        if unknown:
            raise ConfigError(f"the model has no tensor {unknown[0]!r}", mend=near(unknown[0], known))
        made.load_state_dict({n: torch.from_numpy(v) for n, v in self.values.items()}, strict=False)
        return made


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


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}", mend="give 'cpu' or 'cuda'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PyTorch finds no GPU here", mend="leave device out, or install PyTorch for CUDA")
    return name


def needs_personal(strategy: Strategy) -> bool:
    """Whether a strategy is one that needs personal layers."""
    return any(e.split and e.make is type(strategy) for e in entries())

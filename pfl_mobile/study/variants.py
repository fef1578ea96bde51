"""Studies made of another one: everything shared, another strategy, other weights at the start."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError, near
from pfl_mobile.modules.personalize import PersonalizedModel
from pfl_mobile.strategies import create, entry

if TYPE_CHECKING:
    import numpy as np

    from pfl_mobile.strategies import Strategy
    from pfl_mobile.study.study import Study


class SameLayers(ABC):
    """A function that makes a study's model in another way, with the layers that it has.

    A learning rate that was tried out on the one suits the other.
    """

    def __init__(self, model: nn.Module | Callable[[], nn.Module]) -> None:
        self.model = model

    @abstractmethod
    def __call__(self) -> nn.Module:
        """The model."""


class _AllShared(SameLayers):
    """Makes a personalized model with everything shared."""

    @override
    def __call__(self) -> PersonalizedModel:
        made = self.model if isinstance(self.model, nn.Module) else self.model()
        assert isinstance(made, PersonalizedModel)
        return made.all_shared()


class _Trained(SameLayers):
    """Makes a plain model with given weights."""

    def __init__(self, model: nn.Module | Callable[[], nn.Module], values: Mapping[str, np.ndarray]) -> None:
        super().__init__(model)
        self.values = values

    @override
    def __call__(self) -> nn.Module:
        made = copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model()
        known = made.state_dict()
        unknown = sorted(self.values.keys() - known.keys())
        if unknown:
            raise ConfigError(f"the model has no tensor {unknown[0]!r}", mend=near(unknown[0], known))
        made.load_state_dict({n: torch.from_numpy(v) for n, v in self.values.items()}, strict=False)
        return made


def inserts(study: Study, strategy: Strategy | None = None) -> bool:
    """Whether a strategy (by default the study's) puts modules of its own into the model, which is frozen then.

    Raises:
        ConfigError: it would, but they do not fit the model.
    """
    return _is_plain(study) and bool((strategy or study.strategy).modules(study.given_model))


def personal_from_scratch(study: Study) -> bool:
    """Whether layers of a plain model are only trained on devices, so that the shared model's are untrained.

    Modules in a backbone are another thing: without them there is the backbone.
    """
    if study.personal:
        return True
    return _is_plain(study) and not inserts(study) and not study.plan().upload


def all_shared(study: Study, strategy: str | Strategy = "fedavg", **changes: Any) -> Study:
    """The same study with nothing personal: what the named layers train is shared by all.

    Args:
        study: to change.
        strategy: of the new study.
        changes: further settings, as in the constructor.
    """
    shared, personal, split, model = (
        study.settings[name] for name in ("shared", "personal", "split", "model")
    )
    if shared is not None:
        shared = [*shared, *(personal or split or ())]
    if not _is_plain(study):
        model = _AllShared(model)
    fixed = {"parameters": None, "shared": shared, "personal": None, "model": model, "strategy": strategy}
    return study.replace(**{**fixed, **changes})


def baseline(study: Study) -> Study:
    """Federated averaging of everything, with the rest as in this study: what one model for all gets."""
    return all_shared(study, fairness=None, folder=None)


def with_weights(study: Study, values: Mapping[str, np.ndarray]) -> Study:
    """The same study with these values in the model at the start, by name of tensor; others as they are.

    Raises:
        ConfigError: the model has no such tensors.
    """
    return study.replace(model=_Trained(study.settings["model"], values))


def for_strategy(study: Study, name: str) -> Study:
    """The study with another strategy, personal layers only where the strategy needs them, and no folder."""
    fixed = {"strategy": name, "parameters": None, "folder": None}
    if inserts(study, create(name)):
        return study.replace(**fixed, shared=None, personal=None, split=None)
    return study.replace(**fixed) if entry(name).split else all_shared(study, name, folder=None)


def _is_plain(study: Study) -> bool:
    """Whether nothing had been put into the model that was given."""
    return not isinstance(study.given_model, PersonalizedModel)

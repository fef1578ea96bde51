"""Worked examples: each is a complete study on data that anybody can get or generate.

>>> import pfl_recipes
>>> pfl_recipes.find("activity").data
'wisdm'
>>> pfl_recipes.for_data("wisdm").name
'activity'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pfl_mobile.errors import UnknownNameError, near

if TYPE_CHECKING:
    from pfl_mobile.data import Population, UserText

__all__ = ["Recipe", "datasets", "find", "for_data", "names", "templates"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A worked example.

    Attributes:
        name: its name, and that of the folder here with its README.
        title: one line for listings.
        data: the dataset of its study, as ``pfl_mobile.data`` names it.
        also: further datasets that its study takes.
        inputs: of the model: shape of one example, or how many ids there are; empty for messages.
        classes: how many; None for real values.
        own_deployment: whether its ``deployment`` ships more than its study trains.
        template: whether ``pfl init`` makes projects of it.
    """

    name: str
    title: str
    data: str
    also: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[int, ...] | int] = field(default_factory=dict)
    classes: int | None = None
    own_deployment: bool = False
    template: bool = True

    def made_up(self) -> Population | UserText:
        """A few users with random examples of the data's shapes, for tests that need no data."""
        from . import made_up

        return made_up.population(self) if self.inputs else made_up.messages()

    @property
    def study(self) -> tuple[str, str]:
        """Module and name of the function that makes the study."""
        return f"{__name__}.{self.name}.study", "study"

    @property
    def deployment(self) -> tuple[str, str] | None:
        """Module and name of the function that makes the deployment; None where that of its study is meant."""
        return (f"{__name__}.{self.name}", "deployment") if self.own_deployment else None


_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="keyboard",
            title="next word: LoRA on a small language model",
            data="sotu",
            also=("nus-sms", "shakespeare"),
            own_deployment=True,
        ),
        Recipe(
            name="activity",
            title="what a person does, from a phone's accelerometer",
            data="wisdm",
            inputs={"x": (43,)},
            classes=6,
        ),
        Recipe(
            name="glucose",
            title="a patient's glucose in half an hour",
            data="cgm-hall",
            inputs={"x": (12,)},
        ),
        Recipe(
            name="maintenance",
            title="how long an engine of a fleet will last",
            data="cmapss",
            inputs={"x": (30, 14)},
        ),
        Recipe(
            name="fraud",
            title="card payments that are not the customer's (generated)",
            data="fraud",
            inputs={"x": (15,)},
            classes=2,
        ),
        Recipe(
            name="recommendation",
            title="how a person will rate a film",
            data="movielens-small",
            inputs={"film": 9066, "x": (20,)},
        ),
        Recipe(
            name="driving",
            title="the angle of the steering wheel (generated)",
            data="driving",
            inputs={"x": (7,)},
        ),
        Recipe(
            name="synthetic",
            title="Synthetic(0.5, 0.5), the standard test of strategies (generated)",
            data="synthetic",
            inputs={"x": (60,)},
            classes=10,
            template=False,
        ),
    )
}


def names() -> list[str]:
    """The recipes' names, sorted."""
    return sorted(_RECIPES)


def templates() -> list[str]:
    """Names of the recipes that ``pfl init`` makes projects of, sorted."""
    return [name for name in names() if _RECIPES[name].template]


def find(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _RECIPES:
        raise UnknownNameError(f"no recipe is called {name!r}", mend=near(name, _RECIPES))
    return _RECIPES[name]


def datasets() -> dict[str, Recipe]:
    """The datasets that recipes serve, each with its recipe."""
    return {data: recipe for recipe in _RECIPES.values() for data in (recipe.data, *recipe.also)}


def for_data(dataset: str) -> Recipe:
    """The recipe that serves a dataset.

    Raises:
        UnknownNameError: none does.
    """
    served = datasets()
    if dataset not in served:
        raise UnknownNameError(f"no recipe serves the dataset {dataset!r}", mend=near(dataset, served))
    return served[dataset]

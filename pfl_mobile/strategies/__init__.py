"""Strategies: what a device does in a round, and how the aggregator merges. One file for each algorithm.

A new strategy is one file here with one ``@register``, or one in another distribution that names it as an entry point
of the group ``pfl_mobile.strategies`` (see :mod:`pfl_mobile.registry`); nothing else has to know of it.
"""

from pfl_mobile.hyperparameters import Param
from pfl_mobile.merge.updates import Updates
from pfl_mobile.strategies.registry import (
    RegisteredStrategy,
    create,
    entries,
    entry,
    fairness_names,
    names,
    register,
)
from pfl_mobile.strategies.state import Local, RoundContext, Server
from pfl_mobile.strategies.strategy import Strategy
from pfl_mobile.strategies.weighting import ByExamples, Equally, Weighting

__all__ = [
    "ByExamples",
    "Equally",
    "Local",
    "Param",
    "RegisteredStrategy",
    "RoundContext",
    "Server",
    "Strategy",
    "Updates",
    "Weighting",
    "create",
    "entries",
    "entry",
    "fairness_names",
    "names",
    "register",
]

"""What a device does in a round, as data: the plan, its checks, what it sends, how it reads in words."""

from pfl_mobile.plan.optimizers import AdamW, Momentum, Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Guard, Plan

__all__ = ["AdamW", "Guard", "Momentum", "Plan", "Sgd", "TrainPhase"]

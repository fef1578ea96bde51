"""What a device does in a round, as data: the plan, its checks, what it sends, how it reads in words."""

from pfl_mobile.plan.schema import AdamW, Guard, Momentum, Plan, Sgd, TrainPhase

__all__ = ["AdamW", "Guard", "Momentum", "Plan", "Sgd", "TrainPhase"]

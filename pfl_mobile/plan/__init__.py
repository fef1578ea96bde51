"""What a device does in a round, as data: the plan, its checks, what it sends, how it reads in words."""

from pfl_mobile.plan.optimizers import AdamW, Momentum, Optimizer, Sgd
from pfl_mobile.plan.phases import (
    AssignSlotsPhase,
    ChoosePhase,
    CombinePhase,
    Lookahead,
    MeasurePhase,
    MemorizePhase,
    Mix,
    MovePhase,
    Phase,
    RepeatPhase,
    Term,
    TrainPhase,
)
from pfl_mobile.plan.schema import CopyStart, Guard, Plan, ServeMix

__all__ = [
    "AdamW",
    "AssignSlotsPhase",
    "ChoosePhase",
    "CombinePhase",
    "CopyStart",
    "Guard",
    "Lookahead",
    "MeasurePhase",
    "MemorizePhase",
    "Mix",
    "Momentum",
    "MovePhase",
    "Optimizer",
    "Phase",
    "Plan",
    "RepeatPhase",
    "ServeMix",
    "Sgd",
    "Term",
    "TrainPhase",
]

"""On-device personalization: a frozen PyTorch backbone, small trainable modules, training programs for phones.

    from pfl_mobile import Deployment, LoRA, Plan, TokenTask, personalize

Names are loaded when first used, so a part of the package needs only its own dependencies.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

# PyTorch says this at import, of a setting that nobody made and of hardware that is not there.
warnings.filterwarnings(
    "ignore", "TF32 acceleration on top of oneDNN is available for Intel GPUs", UserWarning
)

_HOME = {
    "personalize": "modules.personalize",
    "PersonalizedModel": "modules.personalize",
    "Deployment": "programs.deployment",
    "Adapter": "modules",
    "Experts": "modules",
    "Gate": "modules",
    "Head": "modules",
    "LoRA": "modules",
    "NgramMemory": "modules",
    "SoftPrompt": "modules",
    "VocabularySlots": "modules",
    "ClassificationTask": "programs.tasks",
    "CustomTask": "programs.tasks",
    "RegressionTask": "programs.tasks",
    "TokenTask": "programs.tasks",
    "tilted_task": "programs.tasks",
    "AdamW": "plan.schema",
    "AssignSlotsPhase": "plan.schema",
    "Guard": "plan.schema",
    "MemorizePhase": "plan.schema",
    "Momentum": "plan.schema",
    "Plan": "plan.schema",
    "Sgd": "plan.schema",
    "TrainPhase": "plan.schema",
    "LocalTrainer": "local.trainer",
    "fit_batch_norm": "normalization",
    "replace_batch_norm": "normalization",
    "Study": "study",
    "StudyResult": "study",
    "Local": "strategies",
    "Strategy": "strategies",
    "ArrayPopulation": "data.populations",
    "GeneratedPopulation": "data.populations",
    "TextPopulation": "data.populations",
    "BoundedGroupLoss": "strategies.bounded_group_loss",
    "Bundle": "bundle",
    "open_session": "engines",
    "PflError": "errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'pfl_mobile' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pfl_mobile.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(_HOME)

# The public names. `lazy_loader` reads this file at run time too, so a name stands in one place.

from .bundle import Bundle
from .data.populations import ArrayPopulation, GeneratedPopulation, Population, TextPopulation
from .engines import open_session
from .errors import PflError
from .local.trainer import LocalTrainer
from .modules.adapter import Adapter
from .modules.experts import Experts
from .modules.gate import Gate
from .modules.head import Head
from .modules.insertion import Insertion
from .modules.lora import LoRA
from .modules.memory import NgramMemory
from .modules.mixture import BackboneMixture
from .modules.model import PersonalizedModel
from .modules.normalization import fit_batch_norm, replace_batch_norm
from .modules.personalize import personalize
from .modules.prompt import SoftPrompt
from .modules.slots import VocabularySlots
from .plan.optimizers import AdamW, Momentum, Sgd
from .plan.phases import AssignSlotsPhase, MemorizePhase, MovePhase, TrainPhase
from .plan.schema import Guard, Plan
from .programs.deployment import Deployment, text_parts
from .programs.tasks import ClassificationTask, CustomTask, RegressionTask, Task, TokenTask, tilted_task
from .strategies import Local, Strategy
from .strategies.bounded_group_loss import BoundedGroupLoss
from .study import Cohort, Machine, Study, StudyResult

__all__ = [
    "AdamW",
    "Adapter",
    "ArrayPopulation",
    "AssignSlotsPhase",
    "BackboneMixture",
    "BoundedGroupLoss",
    "Bundle",
    "ClassificationTask",
    "Cohort",
    "CustomTask",
    "Deployment",
    "Experts",
    "Gate",
    "GeneratedPopulation",
    "Guard",
    "Head",
    "Insertion",
    "LoRA",
    "Local",
    "LocalTrainer",
    "Machine",
    "MemorizePhase",
    "Momentum",
    "MovePhase",
    "NgramMemory",
    "PersonalizedModel",
    "PflError",
    "Plan",
    "Population",
    "RegressionTask",
    "Sgd",
    "SoftPrompt",
    "Strategy",
    "Study",
    "StudyResult",
    "Task",
    "TextPopulation",
    "TokenTask",
    "TrainPhase",
    "VocabularySlots",
    "fit_batch_norm",
    "open_session",
    "personalize",
    "replace_batch_norm",
    "text_parts",
    "tilted_task",
]

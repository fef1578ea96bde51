"""Trainable parts for a frozen backbone: one file per kind, registered by name."""

from pfl_mobile.modules.adapter import Adapter
from pfl_mobile.modules.experts import Experts
from pfl_mobile.modules.gate import Gate
from pfl_mobile.modules.head import Head
from pfl_mobile.modules.lora import LoRA
from pfl_mobile.modules.memory import NgramMemory
from pfl_mobile.modules.prompt import SoftPrompt
from pfl_mobile.modules.registry import ModuleConfig, kinds, make_config, register
from pfl_mobile.modules.slots import VocabularySlots

__all__ = [
    "Adapter",
    "Experts",
    "Gate",
    "Head",
    "LoRA",
    "ModuleConfig",
    "NgramMemory",
    "SoftPrompt",
    "VocabularySlots",
    "kinds",
    "make_config",
    "register",
]

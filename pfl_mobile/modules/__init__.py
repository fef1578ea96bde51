"""Trainable parts for a frozen backbone: one file per kind, registered by name."""

from pfl_mobile.modules.lora import LoRA
from pfl_mobile.modules.registry import ModuleConfig, kinds, make_config, register

__all__ = ["LoRA", "ModuleConfig", "kinds", "make_config", "register"]

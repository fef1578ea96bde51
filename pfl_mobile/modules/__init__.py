"""Trainable parts for a frozen backbone: one file per kind, registered by name.

``pfl_mobile`` has those that come with it: ``from pfl_mobile import LoRA``.
"""

from pfl_mobile.modules.registry import KINDS, ModuleConfig, make_config, register

__all__ = ["KINDS", "ModuleConfig", "make_config", "register"]

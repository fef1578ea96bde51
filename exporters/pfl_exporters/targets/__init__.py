"""Targets: one file each with one function that writes the files of an engine from the traced programs.

Nothing is written to the bundle before the files have been loaded by that engine and compared with PyTorch.
"""

from .registry import TARGETS, Target, check_weights, register, resolve, target_of, with_engines

__all__ = ["TARGETS", "Target", "check_weights", "register", "resolve", "target_of", "with_engines"]

"""Roles of device tensors: which of them travel, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfl_mobile.errors import ConfigError, RoleConflictError, UnknownNameError, near
from pfl_mobile.modules.insertion import matches, near_pattern
from pfl_mobile.modules.registry import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pfl_mobile.modules.insertion import Placed

#: Group of tensors with the role ``group`` that no pattern of ``groups`` names.
DEFAULT_GROUP = "default"


@dataclass(frozen=True)
class DeviceTensorInfo:
    """One tensor that lives on the device, as the manifest lists it.

    Attributes:
        name: path in the model, for instance ``blocks.0.attn.q.lora_A``.
        role: ``shared``, ``group`` or ``personal``.
        group: name of the grouping when the role is ``group``, else None.
        shape: fixed shape.
        dtype: numpy's name, for instance ``float32``.
        update: ``gradient`` (the update rule trains it), ``memorize`` or ``assign`` (the host writes it).
        module: name of the module it belongs to.
        in_gradients: whether the ``gradients`` program depends on it, as a trained tensor or as an input.
        private: whether it holds the user's own words, so that no other role is allowed than ``personal``.
    """

    name: str
    role: str
    group: str | None
    shape: tuple[int, ...]
    dtype: str
    update: str
    module: str
    in_gradients: bool = True
    private: bool = False


def _assign(
    what: str, wanted: Mapping[str, str], tensors: Iterable[Placed], start: dict[str, tuple[str, str]]
) -> dict[str, str]:
    """Value of each tensor by pattern; a pattern fits a tensor's name or its module's name."""
    chosen = dict(start)
    listed = list(tensors)
    for pattern, value in wanted.items():
        hits = [t.name for t in listed if matches(pattern, t.name) or matches(pattern, t.module)]
        if not hits:
            raise UnknownNameError(
                f"{what} pattern {pattern!r} matches no device tensor and no module",
                mend=near_pattern(pattern, [t.name for t in listed] + [t.module for t in listed]),
            )
        for name in hits:
            before = chosen.get(name)
            if before is not None and before[1] != value:
                raise RoleConflictError(
                    f"tensor {name!r} gets {what} {before[1]!r} from {before[0]}, but {value!r} from "
                    f"{pattern!r}",
                    mend="narrow one of the two so that each tensor is named once",
                )
            chosen[name] = (repr(pattern), value)
    return {name: value for name, (_, value) in chosen.items()}


def assign_roles(
    tensors: Iterable[Placed],
    roles: Mapping[str, str],
    groups: Mapping[str, str],
    defaults: Mapping[str, str | None],
) -> dict[str, tuple[str, str | None]]:
    """``(role, group)`` of every tensor.

    Args:
        tensors: the declared tensors.
        roles: pattern over tensor or module names to role.
        groups: pattern to group name, for tensors with the role ``group``.
        defaults: module name to the role its configuration asks for, or None.

    Raises:
        UnknownNameError: a pattern matches nothing, or a role does not exist.
        RoleConflictError: two patterns, or a pattern and a module's setting, disagree on a tensor.
        ConfigError: a tensor with the user's own words would leave the device, or a group has no such role.
    """
    listed = list(tensors)
    for pattern, wanted in roles.items():
        if wanted not in ROLES:
            raise UnknownNameError(
                f"role {wanted!r} of pattern {pattern!r} is unknown", mend=near(str(wanted), ROLES)
            )
    start = {
        t.name: (f"the setting of module {t.module!r}", asked)
        for t in listed
        if (asked := defaults.get(t.module)) is not None
    }
    chosen = _assign("role", roles, listed, start)
    grouped = _assign("group", groups, listed, {})
    result: dict[str, tuple[str, str | None]] = {}
    for t in listed:
        role: str = chosen.get(t.name, "personal")
        if t.private and role != "personal":
            raise ConfigError(
                f"tensor {t.name!r} holds the user's own words and cannot have the role {role!r}",
                mend="narrow the role pattern, or leave the role of this module out",
            )
        if t.name in grouped and role != "group":
            raise ConfigError(
                f"tensor {t.name!r} is put into group {grouped[t.name]!r} but has the role {role!r}",
                mend='give it the role "group"',
            )
        result[t.name] = (role, grouped.get(t.name, DEFAULT_GROUP) if role == "group" else None)
    return result

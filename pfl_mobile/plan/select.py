"""Which tensors a phase means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pfl_mobile.errors import ConfigError, UnknownNameError, near

if TYPE_CHECKING:
    from collections.abc import Iterable


def matches(pattern: str, tensor: TensorEntry) -> bool:
    """``role:<role>``, ``module:<name>``, or a tensor name with ``*`` (any run) and ``?`` (any one)."""
    if pattern.startswith("role:"):
        return tensor.role == pattern[5:]
    if pattern.startswith("module:"):
        return tensor.module == pattern[7:]
    return _fits(pattern, tensor.name)


def _fits(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern of ``*`` and ``?``, in at most len(pattern) * len(name) steps.

    A regular expression with many ``.*`` would try their lengths against each other, without end.
    """
    at = place = 0
    star, behind = -1, 0  # the last * seen, and how far into the name it reaches so far
    while place < len(name):
        if at < len(pattern) and pattern[at] == "*":
            star, behind = at, place
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[place]):
            at += 1
            place += 1
        elif star >= 0:
            behind += 1
            at, place = star + 1, behind
        else:
            return False
    return pattern[at:].strip("*") == ""


def select(patterns: Iterable[str], tensors: Iterable[TensorEntry]) -> list[str]:
    """Names of the gradient-trained tensors that any pattern matches, in order of name.

    Raises:
        UnknownNameError: a pattern matches no tensor at all.
        ConfigError: a pattern matches only tensors that are not trained by gradients.
    """
    table = list(tensors)
    chosen: set[str] = set()
    for pattern in patterns:
        hit = [t for t in table if matches(pattern, t)]
        if not hit:
            known = [t.name for t in table] + [f"role:{t.role}" for t in table]
            known += [f"module:{t.module}" for t in table if t.module]
            raise UnknownNameError(
                f"the plan's pattern {pattern!r} matches no tensor", mend=near(pattern, known)
            )
        trained = {t.name for t in hit if t.update == "gradient"}
        if not trained:
            raise ConfigError(
                f"the plan's pattern {pattern!r} matches only {hit[0].name!r} and the like, "
                "which no gradient trains",
                mend="leave it out of train phases; memorize and assign_slots phases write it",
            )
        chosen |= trained
    return sorted(chosen)


def uploaded(patterns: Iterable[str], tensors: Iterable[TensorEntry]) -> list[str]:
    """Names of the tensors whose change is sent: those selected, less the personal ones, in order of name.

    Raises:
        UnknownNameError, ConfigError: as ``select``; or a pattern selects personal tensors only.
    """
    table = list(tensors)
    personal = {t.name for t in table if t.role == "personal"}
    chosen: set[str] = set()
    for pattern in patterns:
        sent = set(select([pattern], table)) - personal
        if not sent:
            raise ConfigError(
                f"the plan's upload pattern {pattern!r} selects personal tensors only, "
                "which never leave a device",
                mend="name shared tensors, for instance with 'role:shared'",
            )
        chosen |= sent
    return sorted(chosen)


class TensorEntry(Protocol):
    """What is needed of a manifest's device tensor."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def update(self) -> str: ...  # noqa: D102
    @property
    def module(self) -> str | None: ...  # noqa: D102


def copy_key(copy: str, tensor: str) -> str:
    """The name of a copy's tensor in an update or a saved state: ``copy:<copy>:<tensor>``."""
    return f"copy:{copy}:{tensor}"

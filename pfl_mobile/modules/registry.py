"""The registry of module kinds and the base of their configurations.

A new kind is one file, here or in another distribution (see :mod:`pfl_mobile.registry`): a frozen dataclass that
derives from :class:`ModuleConfig`, carries ``@register("kind")`` and says in ``insert`` what it puts into the backbone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pfl_mobile.errors import ConfigError, UnknownNameError, near
from pfl_mobile.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pfl_mobile.modules.insertion import Insertion

ROLES = ("shared", "group", "personal")


@dataclass(frozen=True)
class ModuleConfig:
    """What every kind has in common.

    Attributes:
        name: name of the module in plans and manifests; empty takes the kind's name (``lora``, and ``lora_2``
            for the second one).
        role: role of its tensors (``shared``, ``group`` or ``personal``); None leaves it to the ``roles``
            patterns of ``personalize`` and, where none matches, to ``personal``.
    """

    name: str = field(default="", kw_only=True)
    role: str | None = field(default=None, kw_only=True)

    #: Registered name, set by :func:`register`.
    kind: ClassVar[str] = ""
    #: False for a module that only takes part in ``evaluate`` and ``predict``.
    in_gradients: ClassVar[bool] = True
    #: True for a module that runs the backbone as it was before anything was put into it.
    reads_backbone: ClassVar[bool] = False
    #: Insertion order: the parts nearest to a layer's own computation come first.
    position: ClassVar[int] = 10

    def __post_init__(self) -> None:
        """Check what is common; a kind that overrides this calls it.

        Raises:
            ConfigError: the role is unknown or the name is not an identifier.
        """
        if self.role is not None and self.role not in ROLES:
            raise ConfigError(
                f"{type(self).__name__}: role {self.role!r} is unknown", mend=near(self.role, ROLES)
            )
        if self.name and not self.name.isidentifier():
            raise ConfigError(
                f"{type(self).__name__}: name {self.name!r} is not an identifier",
                mend="use letters, digits and underscores only",
            )

    @property
    def neutral(self) -> bool:
        """True when a fresh module leaves the backbone's output as it was."""
        return True

    def insert(self, site: Insertion) -> None:
        """Put the module into the copied backbone that ``site`` holds."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready settings for the manifest; ``name`` and ``role`` are recorded elsewhere."""
        values = dataclasses.asdict(self)
        values.pop("name")
        values.pop("role")
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


C = TypeVar("C", bound=ModuleConfig)
#: All that there are, by name.
KINDS: Registry[type[ModuleConfig]] = Registry("module kind", "pfl_mobile.modules")


def register(kind: str) -> Callable[[type[C]], type[C]]:
    """Class decorator that makes a configuration known as ``kind``."""

    def add(cls: type[C]) -> type[C]:
        KINDS.add(kind, cls, home=cls.__module__)
        cls.kind = kind
        return cls

    return add


def make_config(kind: str, config: Mapping[str, Any]) -> ModuleConfig:
    """The configuration of ``kind`` with the given settings, as a manifest or a plan file holds them.

    Raises:
        UnknownNameError: the kind, or one of the settings, does not exist.
        ConfigError: a value is invalid.
    """
    cls = KINDS.find(kind)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in config:
        if key not in known:
            raise UnknownNameError(f"module kind {kind!r} has no setting {key!r}", mend=near(key, known))
    try:
        return cls(**config)
    except TypeError as error:
        raise ConfigError(f"module kind {kind!r}: {error}", mend="give every required setting") from error


def patterns(owner: str, targets: str | Iterable[str]) -> tuple[str, ...]:
    """``targets`` as a non-empty tuple of patterns.

    Raises:
        ConfigError: there is none, or one is empty or not text.
    """
    found = (targets,) if isinstance(targets, str) else tuple(targets)
    if not found or any(not isinstance(t, str) or not t for t in found):
        raise ConfigError(
            f"{owner}: targets {targets!r} hold no layer pattern",
            mend='name layers, for instance targets="blocks.*.attn.q" or "re:.*\\\\.(q|v)"',
        )
    return found


def positive(owner: str, **values: float) -> None:
    """Raise :class:`ConfigError` for the first value that is not above zero."""
    for key, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ConfigError(f"{owner}: {key}={value!r} is not above zero", mend=f"give a positive {key}")


def choice(owner: str, key: str, value: str, allowed: Iterable[str]) -> None:
    """Raise :class:`UnknownNameError` when ``value`` is not one of ``allowed``."""
    names = tuple(allowed)
    if value not in names:
        raise UnknownNameError(f"{owner}: {key}={value!r} is unknown", mend=near(str(value), names))

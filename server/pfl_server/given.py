"""Options of a later start against the federation that there is: only what was said, in the words it was said in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import OtherSettingsError
from pfl_mobile.reading import parse_json

if TYPE_CHECKING:
    from pfl_mobile.privacy import PrivacyConfig
    from pfl_server.config import FederationConfig

#: Options by the field of `FederationConfig` that they set; of others, the field itself is named.
_OPTIONS = {
    "strategy.name": "--strategy",
    "strategy.parameters": "--set",
    "rule.name": "--rule",
    "rounds.mode": "--mode",
    "rounds.cohort": "--cohort",
    "rounds.minimum": "--minimum",
    "rounds.total": "--rounds",
    "rounds.deadline_s": "--deadline",
    "rounds.min_separation": "--min-separation",
    "groups": "--group",
}
#: Fields of the privacy by the option that sets them.
_PRIVACY = {"epsilon": "budget_epsilon", "delta": "delta", "clip_norm": "clip_norm"}


def refuse_others(
    stored: FederationConfig,
    said: Mapping[str, Any],
    *,
    file: tuple[str, str] | None = None,
    privacy: PrivacyConfig | None = None,
    stated: Mapping[str, float] | None = None,
    none: bool = False,
) -> None:
    """Refuse options that say something else than the federation that was begun; those that say the same are fine.

    Args:
        stored: what the federation is.
        said: fields given as options, nested as in `FederationConfig`.
        file: path and text of the ``--config`` that was given; what an option says too counts as the option says it.
        privacy: of the file that ``--privacy`` names.
        stated: ``epsilon``, ``delta``, ``clip_norm`` where given.
        none: whether ``--no-privacy`` was given.

    Raises:
        OtherSettingsError: some are different; names the first.
    """
    now = stored.model_dump(mode="json")
    found = list(_different(said, now))
    options = [(_option(path), given, was) for path, given, was in found]
    if none and stored.privacy.mechanism != "none":
        options.append(("--no-privacy", None, stored.privacy.mechanism))
    for field, number in (stated or {}).items():
        if number != (was := now["privacy"][_PRIVACY[field]]):
            options.append((f"--{field.replace('_', '-')}", number, was))
    if privacy is not None:
        for path, given, was in _different(privacy.model_dump(mode="json"), now["privacy"]):
            options.append((f"--privacy: {path}", given, was))
    if file is not None:
        path_, text = file
        given_too = {path for path, _ in _leaves(said)} | (
            {"privacy"} if none or privacy is not None else set()
        )
        for path, given, was in _different(parse_json(text), now):
            if not any(path == p or path.startswith(f"{p}.") for p in given_too):
                options.append((f"--config {path_}: {path}", given, was))
    if not options:
        return
    option, given, was = options[0]
    said_so = option if option == "--no-privacy" else f"{option} {_shown(given)}"
    name = option.split()[0].rstrip(":")
    raise OtherSettingsError(
        f"{said_so} is not what this federation began with: it has {_shown(was)}",
        mend=f"leave {name} out to go on with it as it is; to begin another federation, choose another --data folder "
        "(and --db and --blobs, where you give them)",
    )


def _option(path: str) -> str:
    for field, option in _OPTIONS.items():
        if path == field:
            return option
        if path.startswith(f"{field}."):
            return f"{option} {path.removeprefix(f'{field}.')}"
    return path


def _different(given: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What is given and not so now: dotted path, value given, value now."""
    flat = dict(_leaves(now))
    for path, value in _leaves(given):
        value = list(value) if isinstance(value, tuple) else value
        if flat.get(path) != value:
            yield path, value, flat.get(path)


def _leaves(of: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in of.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value)

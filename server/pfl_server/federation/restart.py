"""Options of a later start against what there is, in the words they were said in.

What the federation computes was decided at its first start: an option that says something else is refused
(`refuse_others`). How a server runs is decided at every start: what is other than at the last one is said
(`other_than_before`), as an option that was forgotten changes what the server does, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pfl_mobile.errors import OtherSettingsError
from pfl_mobile.files.atomic import atomic_write, disk_errors
from pfl_mobile.files.reading import parse_json
from pfl_mobile.privacy import checked_privacy
from pfl_server.federation.defaults import WITHOUT_NOISE

if TYPE_CHECKING:
    from pathlib import Path

    from pfl_mobile.privacy import PrivacyConfig
    from pfl_server.federation.config import FederationConfig
    from pfl_server.settings import ServerSettings

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
    "rounds.max_examples": "--max-examples",
    "groups": "--group",
    "open_sampling": "--open-sampling",
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
    if none and stored.privacy.guarantees:
        options.append(("--no-privacy", None, stored.privacy.mechanism))
    for field, number in (stated or {}).items():
        if number != (was := now["privacy"].get(_PRIVACY[field])):
            options.append((f"--{field.replace('_', '-')}", number, was))
    if privacy is not None:
        for path, given, was in _different(privacy.model_dump(mode="json"), now["privacy"]):
            options.append((f"--privacy: {path}", given, was))
    if file is not None:
        path_, text = file
        settings = parse_json(text)
        if isinstance(settings.get("privacy"), dict):  # of whichever version, with all its fields
            settings["privacy"] = checked_privacy(settings["privacy"]).model_dump(mode="json")
        given_too = {path for path, _ in _leaves(said)}
        if privacy is not None:
            given_too.add("privacy")
        elif none:  # the file still says how updates are clipped
            given_too |= {
                f"privacy.{name}" for name in settings.get("privacy", {}) if name not in WITHOUT_NOISE
            }
        for path, given, was in _different(settings, now):
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


#: What the last start from a data folder was.
STARTED = "started.json"
#: Options of a server by the name of what they set in that file; with what is other when it changes to a value.
_OF_SERVER: dict[str, tuple[str, Mapping[Any, str]]] = {
    "enrolment": (
        "--open-enrolment",
        {"token": "new devices need a token of an admin", "open": "any device may enrol, without a token"},
    ),
    "admin token": (
        "PFL_ADMIN_TOKEN or PFL_ADMIN_TOKEN_FILE",
        {False: "admin actions are off", True: "admin actions are on"},
    ),
    "public key": (
        "--public-key",
        {None: "nobody checks whether the bundle is signed"},
    ),
    "attestation": ("--attestation", {None: "devices enrol without an attestation"}),
    "dashboard": ("--dashboard", {"public": "anybody may see it", "off": "nobody sees it"}),
    "metrics": ("--metrics", {"public": "anybody may see them", "off": "nobody sees them"}),
    "trust_proxy": ("--trust-proxy", {(): "limits count for the proxy's address in place of its clients'"}),
    "tls_cert": ("--tls-cert", {None: "the server speaks plain HTTP"}),
    "tls_key": ("--tls-key", {None: "the server speaks plain HTTP"}),
    "database": ("--db", {}),
    "blobs": ("--blobs", {}),
    "host": ("--host", {}),
    "port": ("--port", {}),
    "processes": ("--processes", {}),
    "limits": ("--limits", {}),
}


def as_started(
    settings: ServerSettings, *, database: str, admin: bool, public_key: str | None
) -> dict[str, Any]:
    """What of a start the next one is compared with; no secret is among it.

    Args:
        settings: of the server.
        database: its URL without a password.
        admin: whether there is an admin token.
        public_key: file that the bundle's signature was checked with.
    """
    plain = settings.model_dump(mode="json")
    found = {name: plain[name] for name in _OF_SERVER if name in plain}
    found |= {
        "database": database,
        "blobs": settings.blobs_place.partition("?")[0],
        "dashboard": settings.access("dashboard", admin=admin),
        "metrics": settings.access("metrics", admin=admin),
    }
    return found | {"admin token": admin, "public key": public_key}


def other_than_before(data: Path, now: Mapping[str, Any]) -> list[str]:
    """What is other than at the last start from a data folder, as sentences; then ``now`` is the last one.

    Args:
        data: the folder; made where it is missing.
        now: from `as_started`.

    Raises:
        StorageFullError, UnwritableError: the folder cannot be written.
    """
    file, found = data / STARTED, []
    with disk_errors(file):
        data.mkdir(parents=True, exist_ok=True)
    before: Any = {}
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        found.append(f"{file} cannot be read ({error}), so nobody knows how the last start was")
    if isinstance(before, dict):
        flat = dict(_leaves(before))
        for path, value in _leaves(now):
            # what an older version did not know is no change
            if path in flat and flat[path] != value:
                found.append(_changed(path, flat[path], value))
    atomic_write(file, (json.dumps(dict(now), indent=2) + "\n").encode(), mode=0o600)
    return found


def _changed(path: str, was: Any, value: Any) -> str:
    name, _, rest = path.partition(".")
    option, meanings = _OF_SERVER[name]
    meaning = meanings.get(tuple(value) if isinstance(value, list) else value)
    what = f"{name} {rest}".replace("_", " ").rstrip()
    told = f"{what} was {_shown(was)} at the last start and is {_shown(value)} now ({option})"
    return told if meaning is None else f"{told}: {meaning}"


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

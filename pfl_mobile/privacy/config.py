"""What protects a federation's users: one frozen value that the server runs by and that devices are told.

It is one of four mechanisms, each a type of its own. The unit of privacy is a device: everything that one device ever
sends. ``Ledger.statement`` says in words what is guaranteed, to whom, and on which assumptions.

JSON (``privacy.json``) has the fields of the type, ``mechanism`` that names it, and ``"version": 2``. Version 1, which
earlier versions of this package wrote, is read too (``version_1``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from pfl_mobile.errors import ConfigError
from pfl_mobile.files.reading import decoded, parse_json, read_bytes
from pfl_mobile.privacy.device_noise import DeviceNoise
from pfl_mobile.privacy.gaussian import Gaussian
from pfl_mobile.privacy.matrix import Matrix
from pfl_mobile.privacy.mechanism import invalid
from pfl_mobile.privacy.no_noise import NoNoise
from pfl_mobile.privacy.participation import Unsampled
from pfl_mobile.privacy.version_1 import as_version_2

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The privacy of a federation is one of these; a type for annotations and ``isinstance``.
PrivacyConfig = Gaussian | Matrix | DeviceNoise | NoNoise
#: Types by the name that files and options have for them.
MECHANISMS: dict[str, type[Gaussian | Matrix | DeviceNoise | NoNoise]] = {
    "gaussian": Gaussian,
    "matrix": Matrix,
    "local": DeviceNoise,
    "none": NoNoise,
}


def _current(value: Any) -> Any:
    """Fields as version 2 has them; what is no version 1 goes through, to be refused or taken as it is."""
    if not isinstance(value, dict):
        return value
    current = as_version_2(value)
    _check_foreign(current)
    return current


def _check_foreign(fields: Mapping[str, Any]) -> None:
    """Refuse a field of another mechanism, or one in the wrong place, with the way out (ValueError)."""
    name = fields.get("mechanism")
    mechanism = MECHANISMS.get(name) if isinstance(name, str) else None
    if mechanism is None:
        return
    for field in fields:
        if field in Unsampled.model_fields:
            raise ValueError(f'{field} belongs to participation: {{"sampling": ..., "{field}": ...}}')
        owners = [other for other, kind in MECHANISMS.items() if field in kind.model_fields]
        if owners and field not in mechanism.model_fields:
            raise ValueError(
                f"the mechanism {name!r} has no {field}, which belongs to {' and '.join(owners)}; remove it, or choose "
                "another mechanism"
            )


#: A field of another model that holds a privacy configuration.
PrivacyField = Annotated[
    Annotated[PrivacyConfig, Field(discriminator="mechanism")], BeforeValidator(_current)
]
_READER: TypeAdapter[PrivacyConfig] = TypeAdapter(PrivacyField)


def checked_privacy(fields: Mapping[str, Any], what: str = "the privacy configuration") -> PrivacyConfig:
    """The mechanism that fields say, of version 2 or 1.

    Args:
        fields: JSON values.
        what: named in errors.

    Raises:
        ConfigError: a field is unknown, or out of range, or fields do not fit together.
    """
    try:
        return _READER.validate_python(dict(fields))
    except ValidationError as error:
        raise invalid(error, what) from error


def parse_privacy(text: str | bytes, what: str = "the privacy configuration") -> PrivacyConfig:
    """Read what ``Mechanism.to_json`` wrote, now or in an earlier version of this package.

    Args:
        text: JSON.
        what: named in errors.

    Raises:
        ConfigError: it is not JSON, a field is unknown or out of range, or fields do not fit together.
    """
    try:
        parse_json(text)  # bounds the work, and refuses what parsers read in different ways
        return _READER.validate_json(decoded(text) if isinstance(text, bytes) else text)
    except ValidationError as error:
        raise invalid(error, what) from error
    except ValueError as error:
        raise ConfigError(
            f"{what} is not valid JSON: {error}", mend="make it anew with `pfl privacy plan`"
        ) from error


def load_privacy(path: str | os.PathLike[str]) -> PrivacyConfig:
    """Read a file such as ``privacy.json``.

    Raises:
        ConfigError: there is no such file, or it is invalid.
    """
    try:
        text = read_bytes(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror or error}",
            mend="give the path of a privacy.json; `pfl privacy plan --out DIR` writes one",
        ) from error
    return parse_privacy(text, str(path))

"""What the fields of a plan may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Name = Annotated[str, Field(min_length=1, max_length=200)]
Strength = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Patterns = Annotated[tuple[Name, ...], Field(min_length=1)]


def check_own_name(field: str, name: str) -> None:
    """Refuse the name of a set that is not the device's to write (ValueError, for pydantic)."""
    if name in ("initial", "global", "start", "zero"):
        raise ValueError(f"{field}: {name!r} is the name of a fixed set; choose another name")

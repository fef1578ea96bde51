"""Parameters that several endpoints take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

Number = Annotated[int, Path(ge=0, le=2**31 - 1, description="Number of it.")]


HexId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Id of it.")]

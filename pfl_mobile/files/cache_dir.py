"""Where pfl-mobile keeps on this machine what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache: ``$PFL_CACHE``, else ``~/.cache/pfl-mobile``."""
    chosen = os.environ.get("PFL_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "pfl-mobile"

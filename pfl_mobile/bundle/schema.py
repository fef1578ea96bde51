"""Writes the published JSON Schema of the manifest: ``python -m pfl_mobile.bundle.schema``."""

from __future__ import annotations

import json
from pathlib import Path

from pfl_mobile.bundle.manifest import json_schema
from pfl_mobile.files.atomic import atomic_write

#: The published schema.
PATH = Path(__file__).with_name("manifest.schema.json")


def text() -> str:
    """The content of the published file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def main() -> None:
    """Write the file anew."""
    atomic_write(PATH, text().encode())
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()

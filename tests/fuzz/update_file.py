"""Fuzzes the parser of update files with libFuzzer (the package atheris).

    python -m tests.fuzz.update_file -max_total_time=60 CORPUS

begins with the vectors of ``conformance/updates`` and ends with an error when the parser raises anything but its own
errors, or accepts what it should not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pfl_mobile.protocol", "json"]):
    import json

    from pfl_mobile.errors import UpdateFileError
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.protocol.update_file import header_limit, parse_prefix

SEEDS = Path(__file__).parents[2] / "conformance"
_ABOUT = json.loads((SEEDS / "updates.json").read_text())
LAYOUT = UpdateLayout({t["name"]: tuple(t["shape"]) for t in _ABOUT["layout"]})


def one(data: bytes) -> None:
    """Parse one input, as it is and as a header of the right length."""
    for update in (data, _framed(data)):
        try:
            head, offset = parse_prefix(update, LAYOUT, len(update))
        except UpdateFileError as error:
            str(error).encode()  # what a client is told is text
            continue
        assert len(update) - offset == 4 * LAYOUT.size
        assert 0 <= head.examples < 2**53
        assert len(head.reports) <= 64


def _framed(data: bytes) -> bytes:
    text = data[: header_limit(LAYOUT) - 8]
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(4 * LAYOUT.size)


def main() -> None:
    """Run libFuzzer with the arguments of the command line."""
    atheris.Setup([*sys.argv, str(SEEDS / "updates")], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

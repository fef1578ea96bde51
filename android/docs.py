"""The documentation of what is public in the Kotlin modules, in ``android/target/docs``.

    python android/docs.py           # after desktop.py; needs Maven and a JDK

Dokka makes it, and it fails where a public name has no words. Dokka's own switch for that counts what the compiler adds
to an enum too, which nobody can document, so its warnings are read here.
"""

from __future__ import annotations

import re
import subprocess
import sys

import desktop

MODULES = ("core", "sdk")
#: What the compiler writes: members of enums, and what their class says well enough.
_WRITTEN_BY_THE_COMPILER = re.compile(r"/(values|entries)/#/|/valueOf/#kotlin\.String/")
_WARNING = re.compile(r"^\[WARN(?:ING)?\] (.*)$", re.MULTILINE)


def complaints(said: str) -> list[str]:
    """What Dokka warned of, but what nobody can mend, once each.

    Args:
        said: the output of Maven.
    """
    return sorted(
        {
            warning
            for warning in _WARNING.findall(said)
            if warning.startswith(("Undocumented", "Couldn't resolve link"))
            and not _WRITTEN_BY_THE_COMPILER.search(warning)
        }
    )


def main() -> None:
    """Make the documentation, and name what is missing in it."""
    maven = ["mvn", "-B", "-pl", ",".join(MODULES), "compile", "dokka:dokka"]
    done = subprocess.run(maven, cwd=desktop.ANDROID, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    found = complaints(done.stdout + done.stderr)
    if found:
        sys.exit("\n".join([*found, f"{len(found)} public names need words (KDoc)"]))
    print(
        f"documentation of {' and '.join(MODULES)}: {(desktop.TARGET / 'docs').relative_to(desktop.PROJECT)}"
    )


if __name__ == "__main__":
    main()

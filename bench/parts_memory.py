"""What a training step of a bundle in parts takes in Python, Kotlin and Swift on ONNX Runtime, beside what was planned.

    python bench/parts_memory.py BUNDLE --json

A process of its own for each language, on one core: the most anonymous memory that loading the programs and ``--steps``
steps (``gradients`` on the golden batch, whose numbers are compared) add to a process in which the runtime is loaded,
what they add in pages of mapped files, and the shortest step but the first, on the clock and of the processor. Kotlin's
heap is resident from the beginning and told apart; glibc is told to keep large values apart, as Android's allocator and
Python's session do. Languages without their tools (Maven, Swift) are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measure import machine, stay_on
from scaling import alone

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "android"))

import desktop  # noqa: E402

ENGINE = "onnxruntime"
#: A phone gives an app at least this much heap.
HEAP = "192m"
#: Bytes of values that get memory of their own, as in `pfl_mobile.engines.schedule`.
APART = 1 << 17


def python(bundle: Path, steps: int) -> dict[str, Any]:
    """Python's side, as ``scaling.py`` measures it."""
    return alone("--child", ENGINE, bundle, steps)


def kotlin(bundle: Path, steps: int, classes: str) -> dict[str, Any]:
    """Kotlin's side, in a JVM of its own."""
    options = [f"-Xms{HEAP}", f"-Xmx{HEAP}", "-XX:+AlwaysPreTouch", "-XX:+UseSerialGC"]
    command = ["java", *options, "io.pflmobile.core.bench.MemoryBenchKt", str(bundle), str(steps)]
    # not as an argument: ONNX Runtime 1.29 runs out of stack when the command line of its process is long
    return _said(command, os.environ | {"CLASSPATH": classes, "MALLOC_MMAP_THRESHOLD_": str(APART)})


def swift(bundle: Path, steps: int) -> dict[str, Any]:
    """Swift's side; its root file system sees what lies in the repository."""
    place = PROJECT / "ios/.build"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        shutil.copytree(bundle, Path(scratch) / "bundle")
        inside = str((Path(scratch) / "bundle").relative_to(PROJECT / "ios"))
        return _said(
            [str(PROJECT / "ios/swift.sh"), "run", "pfl-memory", inside, str(steps)], dict(os.environ)
        )


def _said(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The last line that a command says, as JSON; bytes as megabytes."""
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["planned"] is None:
        raise SystemExit("the bundle plans no memory: export it with --memory")
    return {
        "peak_mb": round(found["added_anonymous"] / 1e6, 1),
        "mapped_mb": round(found["added_mapped"] / 1e6, 1),
        "resident_mb": round(found["peak_resident"] / 1e6, 1),
        **({"heap_mb": round(found["peak_heap"] / 1e6, 1)} if "peak_heap" in found else {}),
        "step_ms": round(found["step_ms"], 1),
        "step_processor_ms": round(found["step_processor_ms"], 1),
        "planned_mb": round(found["planned"] / 1e6, 1),
        "plan_off": round(found["planned"] / found["added_anonymous"] - 1, 3),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="+", help="a folder")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    classes = None
    if shutil.which("mvn"):
        desktop.classes_of_executorch()
        classes = desktop.compiled_tests()
    else:
        print("left out: Kotlin, which needs Maven and a JDK", file=sys.stderr)
    has_swift = not subprocess.run(
        [PROJECT / "ios/swift.sh", "build", "--product", "pfl-memory"], check=False, stdout=sys.stderr
    ).returncode
    if not has_swift:
        print("left out: Swift, which cannot build pfl-memory here", file=sys.stderr)
    stay_on(1)
    found: dict[str, dict[str, Any]] = {}
    for bundle in given.bundle:
        rows = found[bundle.name] = {"python": python(bundle, given.steps)}
        if classes is not None:
            rows["kotlin"] = kotlin(bundle, given.steps, classes)
        if has_swift:
            rows["swift"] = swift(bundle, given.steps)
        if not given.json:
            for language, row in rows.items():
                print(f"{bundle.name} {language:7} {json.dumps(row)}")
    if given.json:
        print(json.dumps({"processor": machine()["processor"], "bundles": found}, indent=1))


if __name__ == "__main__":
    main()

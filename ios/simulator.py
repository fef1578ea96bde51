"""Build the sample keyboard on a Mac and run it in a simulator: ``make simulator-e2e``.

It exports the keyboard's model, makes the Xcode project (XcodeGen), builds app and keyboard, runs the package's tests
in the simulator, and starts the app, which has to be there still a while later. Reports lie in ``out/ios``. It has
never run: nobody of this project has had a Mac.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

IOS = Path(__file__).resolve().parent
PROJECT = IOS.parent
OUT = PROJECT / "out/ios"
APP = "io.pflmobile.keyboard"
#: Seconds after which the app has to be there still.
ALIVE = 15


def run(*command: str, cwd: Path = IOS, **environment: str) -> str:
    """What a command prints; it is shown first."""
    print("$", *command, flush=True)
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def missing() -> list[str]:
    """Tools that are not there."""
    return [tool for tool in ("xcodebuild", "xcrun", "xcodegen") if shutil.which(tool) is None]


def resources() -> None:
    """The model that comes with the app: that of the tests of Core ML."""
    import bundles

    bundles.export("keyboard")
    folder = IOS / "Keyboard/Resources"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(bundles.BUNDLES / "keyboard-ios.pflb", folder / "keyboard.pflb")


def device(destination: str, listing: str) -> str:
    """Identifier of the simulator that a destination of xcodebuild names.

    Args:
        destination: for instance ``platform=iOS Simulator,name=iPhone 16``.
        listing: JSON of ``simctl list devices available``.

    Raises:
        SystemExit: there is none.
    """
    wanted = dict(part.split("=", 1) for part in destination.split(","))
    for runtime, devices in reversed(json.loads(listing)["devices"].items()):
        for found in devices if "iOS" in runtime else ():
            same = wanted.get("id", found["udid"]) == found["udid"]
            if same and wanted.get("name", found["name"]) == found["name"]:
                return str(found["udid"])
    raise SystemExit(f"there is no simulator for '{destination}'; see `xcrun simctl list devices available`")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--destination", default="platform=iOS Simulator,name=iPhone 16", help="as xcodebuild takes it"
    )
    chosen = parser.parse_args()
    if lacking := missing():
        needs = ", ".join(lacking)
        raise SystemExit(
            f"this needs a Mac with Xcode and XcodeGen (brew install xcodegen); missing: {needs}"
        )
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    resources()
    simulator = device(chosen.destination, run("xcrun", "simctl", "list", "devices", "available", "--json"))
    on = ("-destination", f"platform=iOS Simulator,id={simulator}")
    run(
        *("xcodebuild", "test", "-scheme", "PFLMobile-Package", *on),
        *("-resultBundlePath", str(OUT / "package.xcresult")),
        TEST_RUNNER_PFL_COREML_BUNDLES=str(IOS / "target/bundles"),
    )
    keyboard = IOS / "Keyboard"
    run("xcodegen", "generate", cwd=keyboard)
    built = OUT / "build"
    run(
        *(
            "xcodebuild",
            "build",
            "-project",
            "PersonalKeyboard.xcodeproj",
            "-scheme",
            "PersonalKeyboard",
            *on,
        ),
        *("-derivedDataPath", str(built), "CODE_SIGNING_ALLOWED=NO"),
        cwd=keyboard,
    )
    app = built / "Build/Products/Debug-iphonesimulator/PersonalKeyboard.app"
    run("xcrun", "simctl", "bootstatus", simulator, "-b")
    run("xcrun", "simctl", "install", simulator, str(app))
    pid = int(run("xcrun", "simctl", "launch", simulator, APP).rsplit(":", 1)[1])
    time.sleep(ALIVE)
    run("xcrun", "simctl", "io", simulator, "screenshot", str(OUT / "app.png"))
    os.kill(pid, 0)  # a process of a simulator is one of the Mac
    print(f"the app runs; its screen is {OUT / 'app.png'}")


if __name__ == "__main__":
    sys.path.insert(0, str(IOS))
    main()

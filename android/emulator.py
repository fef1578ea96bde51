"""The scenarios of ``conformance/scenarios`` on Android: on an emulator, or a phone that is named.

    make emulator-e2e                                        # finds or starts an emulator, builds, runs, reports
    python android/emulator.py --serial emulator-5554        # on a device that runs already
    python android/emulator.py --apk keyboard.apk --test-apk e2e.apk --only first-days keyboard --json

Every scenario is carried out by an app that uses the SDK, and ``keyboard`` by a user of the sample keyboard too, who
types on its keys. Each process of a scenario is one of ``am instrument``; between them the app is stopped, killed by
itself, or updated. Rounds go to a real ``pfl serve`` on this machine, over ``adb reverse``.

The report lies in ``--out``: ``report.json``, ``junit.xml``, a picture after each part of the keyboard, and the log of
each part that failed. What passed is written to ``conformance/scenarios/passed``. A sample keyboard that is on the
device already is removed, with what it learned.

Exit codes: 0 all passed; 1 a scenario failed; 2 it could not be tried (no SDK, no device, no boot); 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

import apk
import desktop
import federation
import instrumented

from pfl_mobile.errors import ConfigError, MissingDependencyError, PflError, UnknownNameError

SCENARIOS = desktop.PROJECT / "conformance/scenarios"
KEYBOARD = "io.pflmobile.keyboard"
INPUT_METHOD = f"{KEYBOARD}/.KeyboardService"
TESTS = instrumented.PACKAGE
#: The scenario that a user of the keyboard lives through.
TYPED = "keyboard"
#: The line in the log of the device by which a process says that it kills itself, as ``AndroidPlace`` writes it.
LOG_TAG, KILLS = "pfl-scenario", "this process kills itself, as the scenario has it"
#: What is set for the time of a run, and put back as it was.
SETTINGS = {
    "stay_on_while_plugged_in": "7",
    "window_animation_scale": "0",
    "transition_animation_scale": "0",
    "animator_duration_scale": "0",
}
#: An emulator runs the instructions of this machine.
PROCESSOR = "arm64-v8a" if platform.machine() in ("arm64", "aarch64") else "x86_64"
IMAGE = f"system-images;android-34;default;{PROCESSOR}"
AVD = "pfl-e2e"
#: Seconds that a command of adb may take, one part of a scenario, and an emulator that is asked to end.
COMMAND_S, PART_S, END_S = 120.0, 900.0, 30.0
#: How often the keyboard is chosen until Android knows it, and seconds in between.
TRIES, TRY_S = 20, 0.5
BUILDS = ("auto", "gradle", "pinned")


class NoDeviceError(PflError):
    """There is no device to run on, or it cannot be used."""


class BootError(NoDeviceError):
    """An emulator did not start, or did not come up in time."""


class AdbError(NoDeviceError):
    """A command on the device failed."""


# ---- the tools


@dataclass(frozen=True)
class Sdk:
    """Android's tools.

    Attributes:
        adb: speaks with devices.
        emulator: None where it is not installed; a device must run then.
        avdmanager: makes virtual devices; None where it is not installed.
        root: the SDK's folder; None where adb was found on the path.
    """

    adb: Path
    emulator: Path | None
    avdmanager: Path | None
    root: Path | None


def find_sdk(given: Path | None, environment: Mapping[str, str] = os.environ) -> Sdk:
    """Look in the given folder, those that the environment names, the usual ones, and on the path.

    Raises:
        MissingDependencyError: there is no adb.
    """
    home = Path(environment.get("HOME", "~")).expanduser()
    named = [environment.get(name) for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT")]
    usual = [
        home / "Android/Sdk",
        home / "Library/Android/sdk",
        Path("/usr/lib/android-sdk"),
        Path("/opt/android-sdk"),
    ]
    roots = [given] if given else [*(Path(name) for name in named if name), *usual]
    for root in roots:
        adb = _program(root / "platform-tools/adb")
        if adb:
            managers = [
                root / "cmdline-tools/latest/bin/avdmanager",
                *root.glob("cmdline-tools/*/bin/avdmanager"),
            ]
            manager = next(filter(None, map(_program, managers)), None)
            return Sdk(adb, _program(root / "emulator/emulator"), manager, root)
    path = environment.get("PATH", "")
    found = {name: shutil.which(name, path=path) for name in ("adb", "emulator", "avdmanager")}
    if given is None and found["adb"]:
        tools = {name: Path(where) if where else None for name, where in found.items()}
        return Sdk(Path(found["adb"]), tools["emulator"], tools["avdmanager"], None)
    looked = ", ".join(map(str, roots))
    raise MissingDependencyError(
        f"there is no adb of an Android SDK; looked in {looked}" + ("" if given else ", and on the path"),
        mend="install Android's command-line tools, then `sdkmanager platform-tools emulator`, and set ANDROID_HOME",
    )


def _program(path: Path) -> Path | None:
    return path if path.is_file() and os.access(path, os.X_OK) else None


# ---- a device


class Outcome(StrEnum):
    """How one run of a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    #: The process ended in the middle.
    CRASHED = "crashed"
    #: It ended itself where the scenario says so.
    KILLED = "killed"
    #: No test ran.
    NOTHING = "nothing ran"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Ran:
    """What a run of ``am instrument -r`` said."""

    outcome: Outcome
    message: str = ""


def parse(said: str) -> Ran:
    """Read the raw output of ``am instrument -r`` of one test."""
    codes = [int(code) for code in re.findall(r"^INSTRUMENTATION_STATUS_CODE: (-?\d+)", said, re.MULTILINE)]
    stacks = re.findall(
        r"^INSTRUMENTATION_STATUS: stack=(.*?)(?=^INSTRUMENTATION_)", said, re.MULTILINE | re.DOTALL
    )
    results = re.findall(
        r"^INSTRUMENTATION_RESULT: (.*?)(?=^INSTRUMENTATION_|\Z)", said, re.MULTILINE | re.DOTALL
    )
    why = "".join(stacks).strip() or "".join(results).strip() or said.strip()
    if any(code in (-1, -2) for code in codes):
        return Ran(Outcome.FAILED, why)
    started, ended = codes.count(1), sum(code in (0, -3, -4) for code in codes)
    if started > ended or "Process crashed" in said or "INSTRUMENTATION_ABORTED" in said:
        return Ran(Outcome.CRASHED if started else Outcome.NOTHING, why)
    if 0 in codes and re.search(r"^INSTRUMENTATION_CODE: -1", said, re.MULTILINE):
        return Ran(Outcome.PASSED)
    return Ran(Outcome.NOTHING, why)


class Device:
    """A device that adb sees.

    Args:
        adb: the tool.
        serial: which device.
    """

    def __init__(self, adb: Path, serial: str) -> None:
        self.adb = adb
        self.serial = serial

    def __call__(self, *arguments: str | Path, timeout: float = COMMAND_S) -> str:
        """Run a command of adb and return what it printed.

        Raises:
            AdbError: it failed, or did not end in time.
        """
        command = [str(self.adb), "-s", self.serial, *map(str, arguments)]
        shown = " ".join(command[1:])
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise AdbError(
                f"adb {shown} did not end within {timeout:.0f} s",
                mend="look at the device; restart it and adb",
            ) from error
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise AdbError(f"adb {shown} failed: {said}", mend="look at the device; restart it and adb")
        return done.stdout

    def shell(self, *arguments: str, timeout: float = COMMAND_S) -> str:
        """Run a command on the device."""
        return self("shell", *arguments, timeout=timeout)

    def install(self, apk: Path) -> None:
        """Install an app, or update it."""
        said = self("install", "-r", "-t", apk, timeout=5 * COMMAND_S)
        if "Success" not in said:
            raise AdbError(
                f"{apk.name} cannot be installed: {said.strip()}",
                mend="uninstall what is there; free some space",
            )

    def uninstall(self, package: str) -> None:
        """Remove an app where it is there."""
        with suppress(AdbError):
            self("uninstall", package)

    def instrument(self, test: str, arguments: Mapping[str, str]) -> Ran:
        """Run one test."""
        given = [word for name, value in arguments.items() for word in ("-e", name, value)]
        command = ["am", "instrument", "-w", "-r", "-e", "class", f"io.pflmobile.e2e.{test}#passes", *given]
        try:
            said = self.shell(*command, f"{TESTS}/{instrumented.RUNNER}", timeout=PART_S)
        except AdbError as error:
            return Ran(Outcome.TIMEOUT if "did not end" in error.message else Outcome.NOTHING, error.message)
        ran = parse(said)
        return (
            Ran(Outcome.KILLED, ran.message)
            if ran.outcome is Outcome.CRASHED and self._ended_itself()
            else ran
        )

    def _ended_itself(self) -> bool:
        """Whether the log since it was last cleared has the line of a process that kills itself."""
        with suppress(AdbError):
            return KILLS in self("logcat", "-d", "-v", "raw", "-s", f"{LOG_TAG}:I")
        return False

    @contextmanager
    def set(self, settings: Mapping[str, str]) -> Iterator[None]:
        """Global settings of Android; with the end of the block they are as they were."""
        before = {name: self.shell("settings", "get", "global", name).strip() for name in settings}
        try:
            for name, value in settings.items():
                self.shell("settings", "put", "global", name, value)
            yield
        finally:
            for name, value in before.items():
                with suppress(AdbError):
                    if value in ("", "null"):
                        self.shell("settings", "delete", "global", name)
                    else:
                        self.shell("settings", "put", "global", name, value)

    def choose_keyboard(self) -> None:
        """Turn the sample keyboard on and choose it. Android forgets the choice when the app is stopped."""
        self.shell("settings", "put", "secure", "show_ime_with_hard_keyboard", "1")
        said = ""
        # an app that was just installed is not known at once
        for _ in range(TRIES):
            try:
                self.shell("ime", "enable", INPUT_METHOD)
                said = self.shell("ime", "set", INPUT_METHOD)
            except AdbError as error:
                said = error.message
            if "selected" in said:
                return
            time.sleep(TRY_S)
        raise AdbError(
            f"the keyboard cannot be chosen: {said.strip()}", mend="choose it in the settings of the device"
        )

    def about(self) -> dict[str, str]:
        """What it is."""
        names = {"sdk": "ro.build.version.sdk", "abi": "ro.product.cpu.abi", "model": "ro.product.model"}
        found = {name: self.shell("getprop", key).strip() for name, key in names.items()}
        return {"serial": self.serial, **found}

    def picture(self, path: Path) -> None:
        """What the screen shows."""
        command = [str(self.adb), "-s", self.serial, "exec-out", "screencap", "-p"]
        with suppress(OSError, subprocess.SubprocessError):
            path.write_bytes(
                subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=True).stdout
            )


def devices(adb: Path) -> list[str]:
    """Serial numbers of the devices that run and allow adb."""
    done = subprocess.run([str(adb), "devices"], capture_output=True, text=True, timeout=COMMAND_S)
    return re.findall(r"^(\S+)\tdevice$", done.stdout, re.MULTILINE)


@contextmanager
def running(sdk: Sdk, given: argparse.Namespace, log: Path) -> Iterator[Device]:
    """The device that is asked for, the only emulator that runs, or one that is started and ended.

    A phone is taken only where it is named: a keyboard on it is removed.

    Raises:
        NoDeviceError: the one that is asked for does not run, or there are several emulators.
        BootError: the emulator does not start.
        MissingDependencyError: there is no emulator, image or acceleration.
    """
    found = devices(sdk.adb)
    emulators = [serial for serial in found if serial.startswith("emulator-")]
    if given.serial:
        if given.serial not in found:
            raise NoDeviceError(
                f"{given.serial} does not run; adb sees {', '.join(found) or 'none'}",
                mend="start it, allow debugging on its screen, or leave --serial out",
            )
        yield Device(sdk.adb, given.serial)
    elif len(emulators) > 1:
        raise NoDeviceError(
            f"adb sees several emulators: {', '.join(emulators)}", mend="say which: --serial NAME"
        )
    elif emulators:
        yield Device(sdk.adb, emulators[0])
    else:
        with emulator(sdk, given, log) as device:
            yield device


@contextmanager
def emulator(sdk: Sdk, given: argparse.Namespace, log: Path) -> Iterator[Device]:
    """Start an emulator without a window, which is made where it is not there; it ends with the block unless kept."""
    if sdk.emulator is None:
        raise MissingDependencyError(
            "no emulator runs, and there is none in the Android SDK",
            mend="name a phone that is connected (--serial NAME), or run `sdkmanager emulator` and set ANDROID_HOME",
        )
    checked = subprocess.run(
        [str(sdk.emulator), "-accel-check"], capture_output=True, text=True, timeout=COMMAND_S
    )
    if checked.returncode:
        said = (checked.stdout + checked.stderr).strip()
        raise MissingDependencyError(
            f"the emulator cannot use the processor's virtualization: {said}",
            mend="give yourself access to /dev/kvm; in a virtual machine allow nested ones; or name a phone: --serial",
        )
    make_avd(sdk, given)
    port = next(port for port in range(5554, 5682, 2) if f"emulator-{port}" not in devices(sdk.adb))
    options = ["-no-window", "-no-audio", "-no-boot-anim", "-no-snapshot", "-gpu", "swiftshader_indirect"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(sdk.emulator), "-avd", given.avd, "-port", str(port), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    device = Device(sdk.adb, f"emulator-{port}")
    try:
        wait_for_boot(device, process, given.boot_s, log)
        yield device
    finally:
        if not given.keep:
            with suppress(PflError):
                device("emu", "kill", timeout=END_S)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_avd(sdk: Sdk, given: argparse.Namespace) -> None:
    """Make the virtual device where there is none of its name."""
    assert sdk.emulator is not None
    listed = subprocess.run(
        [str(sdk.emulator), "-list-avds"], capture_output=True, text=True, timeout=COMMAND_S
    )
    if given.avd in listed.stdout.split():
        return
    if sdk.avdmanager is None:
        raise MissingDependencyError(
            f"there is no virtual device {given.avd}, and no avdmanager to make it",
            mend="install Android's command-line tools into cmdline-tools/latest of the SDK, or name one: --avd NAME",
        )
    if sdk.root is not None and not (sdk.root / given.image.replace(";", "/")).is_dir():
        raise MissingDependencyError(
            f"the image {given.image} is not installed",
            mend=f'run `sdkmanager "{given.image}"`, or name another: --image NAME',
        )
    make = [str(sdk.avdmanager), "create", "avd", "--name", given.avd, "--package", given.image]
    done = subprocess.run(make, capture_output=True, text=True, input="no\n", timeout=COMMAND_S)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise MissingDependencyError(
            f"the virtual device {given.avd} cannot be made: {said}", mend=f'run `sdkmanager "{given.image}"`'
        )


def wait_for_boot(device: Device, process: subprocess.Popen[bytes], boot_s: float, log: Path) -> None:
    """Wait until Android is up.

    Raises:
        BootError: it ends, or takes longer.
    """
    until = time.monotonic() + boot_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise BootError(
                f"the emulator ended with {process.returncode}: {log.read_text(errors='replace').strip()[-2000:]}",
                mend="start it by hand with the same --avd and see what it says",
            )
        with suppress(AdbError):
            if device.shell("getprop", "sys.boot_completed", timeout=10).strip() == "1":
                return
        time.sleep(min(2.0, boot_s / 10))
    raise BootError(
        f"the emulator did not come up within {boot_s:.0f} s; its log is {log}",
        mend="give it longer: --boot-s SECONDS; without virtualization it takes an hour",
    )


# ---- what is installed


@dataclass(frozen=True)
class Apks:
    """The keyboard by the bundle that is in it, and the tests."""

    keyboard: Mapping[str, Path]
    tests: Path
    build: str


def installable(given: argparse.Namespace, out: Path) -> Apks:
    """Take the APKs that are given, or build them."""
    if bool(given.apk) != bool(given.test_apk):
        raise ConfigError(
            "one of --apk and --test-apk is missing", mend="give both, or none to have them built"
        )
    if given.apk:
        keyboard, tests, build = given.apk, given.test_apk, "given"
    else:
        keyboard, tests, build = built(given.build)
    for path in (keyboard, tests):
        if not path.is_file():
            raise ConfigError(
                f"there is no file {path}", mend="name an APK, or leave --apk and --test-apk out"
            )
    desktop.bundles()
    bundles = {name: desktop.TARGET / "bundles" / f"{name}.pflb" for name in ("tiny", "tiny-2")}
    return Apks(
        {
            name: instrumented.with_bundle(keyboard, bundle, out / f"keyboard-{name}.apk")
            for name, bundle in bundles.items()
        },
        tests,
        build,
    )


def built(how: str) -> tuple[Path, Path, str]:
    """Build the keyboard and the tests: with Gradle, or with the pinned tools of ``apk.py``."""
    android = desktop.ANDROID
    wrapper = android / "gradlew"
    gradle = str(wrapper) if wrapper.is_file() else shutil.which("gradle")
    if how == "gradle" and gradle is None:
        raise MissingDependencyError(
            "there is no Gradle", mend="install Gradle 9 or later, or build without: --build pinned"
        )
    desktop.main()
    if gradle is None or how == "pinned":
        for script in ("apk.py", "instrumented.py"):
            print(f"build with {script}", file=sys.stderr)
            apk.run([sys.executable, android / script], mend="see what it says")
        return apk.OUT / "keyboard.apk", instrumented.OUT / "e2e.apk", apk.LABEL
    instrumented.assets()
    command: list[str | Path] = [
        gradle,
        "-p",
        android,
        ":keyboard:assembleDebug",
        ":e2e:assembleDebugAndroidTest",
    ]
    print("build with Gradle", file=sys.stderr)
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        raise MissingDependencyError(
            "Gradle cannot build the project", mend="see what it says; or --build pinned"
        )
    return (
        android / "keyboard/build/outputs/apk/debug/keyboard-debug.apk",
        android / "e2e/build/outputs/apk/androidTest/debug/e2e-debug-androidTest.apk",
        "Gradle",
    )


# ---- scenarios


@dataclass(frozen=True)
class Scenario:
    """A file of ``conformance/scenarios``, by its processes."""

    name: str
    parts: list[list[dict[str, object]]]
    digest: str

    @classmethod
    def read(cls, path: Path) -> Scenario:
        """Each process but the first begins with ``restart``."""
        data = path.read_bytes()
        parts: list[list[dict[str, object]]] = [[]]
        for step in json.loads(data)["steps"]:
            if step["do"] == "restart":
                parts.append([])
            parts[-1].append(step)
        return cls(path.stem, parts, hashlib.sha256(data).hexdigest())

    def is_killed(self, part: int) -> bool:
        """Whether the process ends itself."""
        return any("kill_after" in step or "kill_at" in step for step in self.parts[part])

    @property
    def federation(self) -> tuple[str, bool] | None:
        """Bundle of the federation that is needed, and whether the phone is its only device."""
        for step in (step for part in self.parts for step in part):
            if step["do"] == "serve":
                return str(step["bundle"]), bool(step.get("alone", False))
        return None


@dataclass
class Part:
    """One process of a scenario."""

    number: int
    ran: Ran
    seconds: float
    wanted: Outcome

    @property
    def passed(self) -> bool:
        """Whether it ended as it should."""
        return self.ran.outcome is self.wanted


@dataclass
class Result:
    """A scenario, by an app with the SDK or by a user of the keyboard."""

    scenario: Scenario
    by: str
    parts: list[Part] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all parts did."""
        return len(self.parts) == len(self.scenario.parts) and all(part.passed for part in self.parts)


class Run:
    """Carries out scenarios on a device.

    Args:
        device: where.
        apks: what is installed.
        engine: of the app with the SDK.
        out: folder of pictures and logs.
    """

    def __init__(self, device: Device, apks: Apks, engine: str, out: Path) -> None:
        self.device = device
        self.apks = apks
        self.engine = engine
        self.out = out

    def by_sdk(self, scenario: Scenario) -> Result:
        """An app that uses the SDK, which is new at the start."""
        self.device.shell("pm", "clear", TESTS)
        with ExitStack() as stack:
            told = {"engine": self.engine}
            if needed := scenario.federation:
                folder = self.out / f"{scenario.name}-federation"
                shutil.rmtree(folder, ignore_errors=True)
                bundle = desktop.TARGET / "bundles" / f"{needed[0]}.pflb"
                port = stack.enter_context(federation.federation(bundle, folder, alone=needed[1]))
                self.device("reverse", f"tcp:{port}", f"tcp:{port}")
                stack.callback(self._quietly, "reverse", "--remove", f"tcp:{port}")
                told["aggregator"] = f"http://127.0.0.1:{port}"
            return self._parts(scenario, "sdk", "ScenarioTest", told)

    def by_keyboard(self, scenario: Scenario) -> Result:
        """A user of the keyboard, who installs it at the start."""
        self.device.uninstall(KEYBOARD)
        return self._parts(scenario, "keyboard", "KeyboardTest", {})

    def _parts(self, scenario: Scenario, by: str, test: str, told: dict[str, str]) -> Result:
        result = Result(scenario, by)
        for number, steps in enumerate(scenario.parts):
            print(f"{scenario.name} by {by}, process {number + 1} of {len(scenario.parts)}", file=sys.stderr)
            self.device.shell("am", "force-stop", TESTS)
            if by == "keyboard":
                self._prepare_keyboard(steps[0])
            self._quietly("logcat", "-c")
            began = time.monotonic()
            ran = self.device.instrument(test, {"scenario": scenario.name, "part": str(number), **told})
            wanted = Outcome.KILLED if scenario.is_killed(number) else Outcome.PASSED
            part = Part(number, ran, time.monotonic() - began, wanted)
            result.parts.append(part)
            name = f"{scenario.name}-{by}-{number}"
            if by == "keyboard":
                self.device.picture(self.out / f"{name}.png")
            if not part.passed:
                self._log(name)
                break
        return result

    def _prepare_keyboard(self, first: Mapping[str, object]) -> None:
        """The process before is ended, an update installed where the scenario has one, and the keyboard chosen."""
        self._quietly("shell", "am", "force-stop", KEYBOARD)
        if bundle := first.get("bundle"):
            self.device.install(self.apks.keyboard[str(bundle)])
        self.device.choose_keyboard()

    def _log(self, name: str) -> None:
        with suppress(AdbError):
            (self.out / f"{name}.log").write_text(self.device("logcat", "-d", "-v", "threadtime"))

    def _quietly(self, *arguments: str) -> None:
        with suppress(AdbError):
            self.device(*arguments)


# ---- the report


def report(results: Sequence[Result], about: Mapping[str, str], build: str) -> dict[str, object]:
    """What was tried where, and how it ended."""
    shown = [
        {
            "scenario": result.scenario.name,
            "by": result.by,
            "passed": result.passed,
            "parts": [
                {
                    "part": part.number,
                    "outcome": part.ran.outcome.value,
                    "wanted": part.wanted.value,
                    "seconds": round(part.seconds, 1),
                    **({} if part.passed else {"message": part.ran.message}),
                }
                for part in result.parts
            ],
        }
        for result in results
    ]
    passed = sum(result.passed for result in results)
    return {
        "device": dict(about),
        "build": build,
        "passed": passed,
        "failed": len(results) - passed,
        "scenarios": shown,
    }


def junit(results: Sequence[Result]) -> str:
    """The same for tools that read JUnit's XML: a suite for each scenario, a case for each process."""
    suites = ElementTree.Element("testsuites")
    for result in results:
        failed = sum(not part.passed for part in result.parts)
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=f"{result.scenario.name} by {result.by}",
            tests=str(len(result.parts)),
            failures=str(failed),
        )
        for part in result.parts:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=f"scenarios.{result.by}",
                name=f"{result.scenario.name} {part.number}",
                time=f"{part.seconds:.1f}",
            )
            if not part.passed:
                message = f"{part.ran.outcome.value}, not {part.wanted.value}"
                ElementTree.SubElement(case, "failure", message=message).text = part.ran.message
    return ElementTree.tostring(suites, "unicode")


def mark(folder: Path, where: str, results: Sequence[Result], about: Mapping[str, str], build: str) -> None:
    """Write down what passed, as ``sha256sum -c`` reads it, under the device and build that it passed with.

    A scenario that was not tried keeps its mark.
    """
    path = folder / f"{where}.sha256"
    marks: dict[str, tuple[str, str]] = {}
    note = ""
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith("#"):
            note = line
        else:
            marks[line.split("  ")[1]] = note, line
    here = ", ".join(
        [f"{name} {value}" for name, value in about.items() if name != "serial"] + [f"build: {build}"]
    )
    for result in results:
        file = f"{result.scenario.name}.json"
        marks.pop(file, None)
        if result.passed:
            marks[file] = f"# {here}", f"{result.scenario.digest}  {file}"
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    last = ""
    for name in sorted(marks):
        said, line = marks[name]
        lines += [line] if said == last else [said, line]
        last = said
    path.write_text("".join(f"{line}\n" for line in lines))


# ---- the command


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdk", type=Path, help="folder of the Android SDK; by default ANDROID_HOME and the usual ones"
    )
    parser.add_argument(
        "--serial",
        help="a device that runs; by default the only emulator, else one is started; a phone is named",
    )
    parser.add_argument(
        "--avd", default=AVD, help="virtual device, which is made where it is not there (%(default)s)"
    )
    parser.add_argument("--image", default=IMAGE, help="system image of a device that is made (%(default)s)")
    parser.add_argument(
        "--boot-s", type=float, default=600, help="seconds for an emulator to come up (%(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="leave an emulator that was started running")
    parser.add_argument(
        "--build", choices=BUILDS, default="auto", help="gradle, the pinned tools of apk.py, or what is there"
    )
    parser.add_argument("--apk", type=Path, help="the keyboard's APK, in place of building")
    parser.add_argument("--test-apk", type=Path, help="the tests' APK, in place of building")
    parser.add_argument("--only", nargs="+", metavar="SCENARIO", help="these scenarios; by default all")
    parser.add_argument(
        "--engine", choices=("executorch", "onnxruntime"), default="executorch", help="(%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=desktop.PROJECT / "out/e2e", help="folder of the report (%(default)s)"
    )
    parser.add_argument("--marks", type=Path, default=SCENARIOS / "passed", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def chosen(names: Sequence[str] | None) -> list[Scenario]:
    """The scenarios of these names, or all.

    Raises:
        UnknownNameError: there is none of a name.
    """
    files = {path.stem: path for path in sorted(SCENARIOS.glob("*.json"))}
    for name in names or ():
        if name not in files:
            raise UnknownNameError(f"there is no scenario {name}", mend=f"one of {', '.join(files)}")
    return [Scenario.read(files[name]) for name in names or files]


def carry_out(given: argparse.Namespace) -> dict[str, object]:
    """Do all of it; returns the report."""
    scenarios = chosen(given.only)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    sdk = find_sdk(given.sdk)
    with ExitStack() as stack:
        device = stack.enter_context(running(sdk, given, out / "emulator.log"))
        made = installable(given, out)
        about = device.about()
        for package in (TESTS, KEYBOARD):
            device.uninstall(package)
            stack.callback(device.uninstall, package)
        device.install(made.tests)
        stack.enter_context(device.set(SETTINGS))
        device.shell("input", "keyevent", "KEYCODE_WAKEUP")
        device.shell("wm", "dismiss-keyguard")
        run = Run(device, made, given.engine, out)
        by_sdk = [run.by_sdk(scenario) for scenario in scenarios]
        by_keyboard = [run.by_keyboard(scenario) for scenario in scenarios if scenario.name == TYPED]
    mark(given.marks, f"android-{given.engine}", by_sdk, about, made.build)
    if by_keyboard:
        mark(given.marks, "android-keyboard", by_keyboard, about, made.build)
    results = by_sdk + by_keyboard
    found = report(results, about, made.build)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "junit.xml").write_text(junit(results) + "\n")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = arguments().parse_args(argv)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # what was started is ended in both cases, also where a shell had this process ignore Ctrl-C (in the background)
    before = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        found = carry_out(given)
    except PflError as error:
        if given.json:
            print(
                json.dumps(
                    {"error": {"code": error.code, "message": error.message, "mend": error.mend}}, indent=1
                )
            )
        else:
            print(f"{error.code}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for line in summary(found, given.out):
            print(line)
    return 0 if found["failed"] == 0 else 1


def summary(found: Mapping[str, object], out: Path) -> list[str]:
    """The report in a few lines."""
    scenarios = found["scenarios"]
    assert isinstance(scenarios, list)
    lines = [f"{'passed' if s['passed'] else 'FAILED'}  {s['scenario']} by {s['by']}" for s in scenarios]
    return [*lines, f"{found['passed']} passed, {found['failed']} failed; {out / 'report.json'}"]


if __name__ == "__main__":
    sys.exit(main())

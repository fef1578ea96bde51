"""What runs the scenarios on Android, against stand-ins for ``adb``, ``emulator`` and ``avdmanager``.

The stand-ins are small programs that answer as the real ones do and write down what they were asked. No device runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.android.scripts import ANDROID, loaded

SCENARIOS = ANDROID.parent / "conformance/scenarios"

#: Programs of the shell, as they are started hundreds of times. What they are told lies in files of ``told``.
HEAD = """#!/bin/sh
home='{home}'
told() {{ cat "$home/told/$1" 2>/dev/null; }}
"""
ADB = """
if [ "$1" = -s ]; then shift 2; fi
echo "$*" >>"$home/calls"
case "$*" in
devices)
    echo 'List of devices attached'
    for name in $(told devices) $(cat "$home/up" 2>/dev/null); do printf '%s\\tdevice\\n' $name; done ;;
'shell getprop sys.boot_completed') if [ -e "$home/told/no-boot" ]; then echo; else echo 1; fi ;;
'shell getprop ro.build.version.sdk') echo 34 ;;
'shell getprop ro.product.cpu.abi') echo x86_64 ;;
'shell getprop '*) echo stand-in ;;
install*) echo 'Performing Streamed Install'; told install || echo Success ;;
'shell ime set '*) echo "Input method $4 selected for user #0" ;;
'shell am instrument '*)
    while [ $# -gt 0 ]; do
        case "$1 $2" in '-e scenario') scenario=$3 ;; '-e part') part=$3 ;; esac
        shift
    done
    printf 'INSTRUMENTATION_STATUS: test=passes\\nINSTRUMENTATION_STATUS_CODE: 1\\n'
    case "$(told $scenario-$part)" in
    hangs) exec sleep 60 ;;
    failed) printf 'INSTRUMENTATION_STATUS: stack=java.lang.AssertionError: step 3\\n\\tat a.B\\n'
        printf 'INSTRUMENTATION_STATUS: test=passes\\n'
        printf 'INSTRUMENTATION_STATUS_CODE: -2\\nINSTRUMENTATION_CODE: -1\\n' ;;
    killed) echo 'this process kills itself, as the scenario has it' >"$home/killed"
        printf 'INSTRUMENTATION_RESULT: shortMsg=Process crashed.\\nINSTRUMENTATION_CODE: 0\\n' ;;
    crashed) printf 'INSTRUMENTATION_RESULT: shortMsg=Process crashed.\\nINSTRUMENTATION_CODE: 0\\n' ;;
    skipped) printf 'INSTRUMENTATION_STATUS_CODE: -4\\nINSTRUMENTATION_CODE: -1\\n' ;;
    *) printf 'INSTRUMENTATION_STATUS: test=passes\\nINSTRUMENTATION_STATUS_CODE: 0\\n'
        printf 'INSTRUMENTATION_RESULT: stream=\\n\\nOK (1 test)\\n\\n\\nINSTRUMENTATION_CODE: -1\\n' ;;
    esac ;;
'emu kill') rm -f "$home/up" ;;
'logcat -c') rm -f "$home/killed" ;;
'logcat -d -v raw -s pfl-scenario:I') cat "$home/killed" 2>/dev/null ; : ;;
'shell settings get global animator_duration_scale') echo 0.5 ;;
'shell settings get '*) echo null ;;
'logcat -d'*) echo 'I/stand-in: what the device did' ;;
esac
"""
EMULATOR = """
case "$*" in
-accel-check) if [ -e "$home/told/no-kvm" ]; then echo 'KVM is not usable'; exit 1; fi; echo 'KVM is installed'; exit ;;
-list-avds) told avds; exit ;;
esac
echo "$*" >"$home/emulator"
if [ -e "$home/told/ends" ]; then echo 'PANIC: broken AVD'; exit 1; fi
echo emulator-5554 >"$home/up"
for i in $(seq 1200); do
    [ -e "$home/up" ] || break
    sleep 0.05
done
touch "$home/emulator-ended"
"""
AVDMANAGER = """
echo "$*" >"$home/avd"
"""


@pytest.fixture(scope="module")
def emulator() -> Iterator[ModuleType]:
    with loaded("emulator") as module:
        yield module


class StandIns:
    """An SDK of stand-ins in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sdk"
        self.home = folder / "stand-ins"
        self.out = folder / "out"
        self.marks = folder / "passed"
        self.home.mkdir()
        places = {
            "platform-tools/adb": ADB,
            "emulator/emulator": EMULATOR,
            "cmdline-tools/latest/bin/avdmanager": AVDMANAGER,
        }
        for place, program in places.items():
            path = self.root / place
            path.parent.mkdir(parents=True)
            path.write_text(HEAD.format(home=self.home) + program)
            path.chmod(0o755)
        for name in ("keyboard.apk", "e2e.apk"):
            (folder / name).write_bytes(b"apk")
        self.apks = ["--apk", str(folder / "keyboard.apk"), "--test-apk", str(folder / "e2e.apk")]
        self.tell()

    def tell(self, told: dict[str, str] | None = None, devices: str = "emulator-5600") -> None:
        """How they behave: files by name."""
        shutil.rmtree(self.home / "told", ignore_errors=True)
        (self.home / "told").mkdir()
        for name, text in {"devices": devices, **(told or {})}.items():
            (self.home / "told" / name).write_text(text + "\n")

    def command(self, *more: str) -> list[str]:
        folders = ["--sdk", str(self.root), "--out", str(self.out), "--marks", str(self.marks)]
        return [*folders, *self.apks, "--json", *more]

    @property
    def calls(self) -> list[str]:
        return (self.home / "calls").read_text().splitlines()


@pytest.fixture
def stand_ins(tmp_path: Path, emulator: ModuleType, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    # neither Java nor an export is tried here
    monkeypatch.setattr(emulator.desktop, "bundles", lambda: None)
    monkeypatch.setattr(emulator.instrumented, "with_bundle", lambda apk, bundle, out: out)

    @contextmanager
    def federation(bundle: Path, folder: Path, *, alone: bool) -> Iterator[int]:
        assert (bundle.name, alone) in (("talk.pflb", False), ("talk.pflb", True))
        yield 4711

    monkeypatch.setattr(emulator.federation, "federation", federation)
    return StandIns(tmp_path)


def _run(
    emulator: ModuleType, capsys: pytest.CaptureFixture[str], command: list[str]
) -> tuple[int, dict[str, Any]]:
    code = emulator.main(command)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


#: The processes that the scenarios want killed.
KILLED = {"killed-0": "killed", "rounds-killed-0": "killed"}


def test_all_scenarios_pass(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell(KILLED)
    code, found = _run(emulator, capsys, stand_ins.command())
    names = [path.stem for path in sorted(SCENARIOS.glob("*.json"))]
    assert code == 0, found
    assert [(s["scenario"], s["by"]) for s in found["scenarios"]] == [
        *((name, "sdk") for name in names),
        ("keyboard", "keyboard"),
    ]
    assert found["device"] == {"serial": "emulator-5600", "sdk": "34", "abi": "x86_64", "model": "stand-in"}
    assert found == json.loads((stand_ins.out / "report.json").read_text())
    suites = ElementTree.parse(stand_ins.out / "junit.xml").getroot()
    assert len(suites) == len(names) + 1
    assert not list(suites.iter("failure"))
    # the marks say which scenarios, as they are now, passed
    marks = (stand_ins.marks / "android-executorch.sha256").read_text()
    assert marks.startswith("# sdk 34, abi x86_64, model stand-in, build: given\n")
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", stand_ins.marks / "android-executorch.sha256"],
        cwd=SCENARIOS,
        check=True,
    )
    assert [line.split()[1] for line in marks.splitlines()[1:]] == [f"{name}.json" for name in names]
    assert "keyboard.json" in (stand_ins.marks / "android-keyboard.sha256").read_text()


def test_processes_are_ended_and_the_app_updated_between_parts(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(emulator, capsys, stand_ins.command("--only", "keyboard"))[0] == 0
    calls = stand_ins.calls
    typed = calls.index("uninstall io.pflmobile.keyboard", calls.index("uninstall io.pflmobile.keyboard") + 1)
    wanted = ("shell am force-stop io.pflmobile.keyboard", "install", "shell ime set", "shell am instrument")
    seen = [next((w for w in wanted if call.startswith(w)), "") for call in calls[typed:]]
    stop, install, choose, run = wanted
    fresh, again = [stop, install, choose, run], [stop, choose, run]
    assert [s for s in seen if s] == [*fresh, *again, *fresh, *again]
    installed = [Path(call.split()[-1]).name for call in calls[typed:] if call.startswith("install")]
    assert installed == ["keyboard-tiny.apk", "keyboard-tiny-2.apk"]
    # nothing is left on the device
    assert set(calls[-2:]) == {"uninstall io.pflmobile.keyboard", "uninstall io.pflmobile.e2e.test"}


def test_rounds_get_an_aggregator_on_this_machine(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell(KILLED)
    assert _run(emulator, capsys, stand_ins.command("--only", "rounds-killed"))[0] == 0
    assert "reverse tcp:4711 tcp:4711" in stand_ins.calls
    assert "reverse --remove tcp:4711" in stand_ins.calls
    assert all("aggregator http://127.0.0.1:4711" in call for call in stand_ins.calls if "instrument" in call)


def test_a_failed_step_is_reported_with_the_log(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"forget-0": "failed"})
    code, found = _run(emulator, capsys, stand_ins.command("--only", "forget", "damaged"))
    assert code == 1
    assert (found["passed"], found["failed"]) == (1, 1)
    (part,) = found["scenarios"][0]["parts"]
    assert part["outcome"] == "failed"
    assert part["message"].startswith("java.lang.AssertionError: step 3\n\tat a.B")
    assert (stand_ins.out / "forget-sdk-0.log").read_text() == "I/stand-in: what the device did\n"
    (failure,) = ElementTree.parse(stand_ins.out / "junit.xml").getroot().iter("failure")
    assert failure.get("message") == "failed, not passed"
    marks = (stand_ins.marks / "android-executorch.sha256").read_text()
    assert "damaged.json" in marks
    assert "forget.json" not in marks


def test_a_process_that_dies_by_itself_is_a_failure(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"pause-1": "crashed"})
    code, found = _run(emulator, capsys, stand_ins.command("--only", "pause"))
    assert code == 1
    assert [part["outcome"] for part in found["scenarios"][0]["parts"]] == ["passed", "crashed"]


def test_a_process_that_should_die_and_lives_is_a_failure(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = _run(emulator, capsys, stand_ins.command("--only", "killed"))
    assert code == 1
    assert found["scenarios"][0]["parts"][0]["wanted"] == "killed"
    # nor is it enough that it dies before it gets there
    stand_ins.tell({"killed-0": "crashed"})
    code, found = _run(emulator, capsys, stand_ins.command("--only", "killed"))
    assert code == 1
    assert found["scenarios"][0]["parts"][0]["outcome"] == "crashed"


def test_a_process_says_that_it_kills_itself_in_the_same_words(emulator: ModuleType) -> None:
    kotlin = (ANDROID / "e2e/src/androidTest/kotlin/io/pflmobile/e2e/AndroidPlace.kt").read_text()
    assert f'Log.i("{emulator.LOG_TAG}", "{emulator.KILLS}")' in kotlin


def test_the_settings_of_the_device_are_put_back(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"cancelled-0": "failed"})
    _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    ends = {}
    for call in stand_ins.calls:
        if call.startswith(("shell settings put global", "shell settings delete global")):
            _, _, how, _, name, *value = call.split()
            ends[name] = (how, *value)
    assert ends == {
        "stay_on_while_plugged_in": ("delete",),
        "window_animation_scale": ("delete",),
        "transition_animation_scale": ("delete",),
        "animator_duration_scale": ("put", "0.5"),
    }


def test_a_test_that_hangs_ends(
    emulator: ModuleType,
    stand_ins: StandIns,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emulator, "PART_S", 1.0)
    stand_ins.tell({"cancelled-0": "hangs"})
    code, found = _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    assert code == 1
    assert found["scenarios"][0]["parts"][0]["outcome"] == "timeout"


def test_a_test_that_is_skipped_has_not_passed(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"cancelled-0": "skipped"})
    code, found = _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    assert code == 1
    assert found["scenarios"][0]["parts"][0]["outcome"] == "nothing ran"


def test_a_mark_goes_when_the_scenario_fails(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(emulator, capsys, stand_ins.command("--only", "cancelled", "damaged"))
    stand_ins.tell({"cancelled-0": "failed"})
    _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    marks = (stand_ins.marks / "android-executorch.sha256").read_text().splitlines()[1:]
    assert [line.split()[1] for line in marks] == ["damaged.json"]


def test_a_mark_keeps_the_device_that_it_was_made_on(emulator: ModuleType, tmp_path: Path) -> None:
    def passed(name: str, model: str) -> None:
        scenario = emulator.Scenario(name, [[]], "0" * 64)
        part = emulator.Part(0, emulator.Ran(emulator.Outcome.PASSED), 1.0, emulator.Outcome.PASSED)
        emulator.mark(tmp_path, "here", [emulator.Result(scenario, "sdk", [part])], {"model": model}, "given")

    for name, model in (("a", "old"), ("b", "old"), ("c", "old"), ("b", "new")):
        passed(name, model)
    old, new = "# model old, build: given", "# model new, build: given"
    lines = [f"{'0' * 64}  {name}.json" for name in "abc"]
    assert (tmp_path / "here.sha256").read_text().splitlines() == [
        old,
        lines[0],
        new,
        lines[1],
        old,
        lines[2],
    ]


def test_a_phone_is_not_taken_unasked(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"no-kvm": ""}, devices="phone")
    code, found = _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    assert (code, found["error"]["code"]) == (2, "MissingDependencyError")
    assert "--serial" in found["error"]["mend"]
    assert not any("install" in call for call in stand_ins.calls)
    assert _run(emulator, capsys, stand_ins.command("--only", "cancelled", "--serial", "phone"))[0] == 0


def test_an_emulator_is_made_started_and_ended(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell(devices="")
    (stand_ins.root / emulator.IMAGE.replace(";", "/")).mkdir(parents=True)
    code, found = _run(emulator, capsys, stand_ins.command("--only", "cancelled"))
    assert code == 0, found
    assert found["device"]["serial"] == "emulator-5554"
    made = (stand_ins.home / "avd").read_text()
    assert made == f"create avd --name pfl-e2e --package {emulator.IMAGE}\n"
    assert "-no-window" in (stand_ins.home / "emulator").read_text()
    assert (stand_ins.home / "emulator-ended").exists()


def test_an_emulator_is_kept_where_asked_for(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"avds": "pfl-e2e"}, devices="")
    assert _run(emulator, capsys, stand_ins.command("--only", "cancelled", "--keep"))[0] == 0
    assert not (stand_ins.home / "avd").exists()
    assert not (stand_ins.home / "emulator-ended").exists()
    (stand_ins.home / "up").unlink()


@pytest.mark.parametrize(
    ("told", "boot_s", "code", "says"),
    [
        ({"no-kvm": ""}, 1, "MissingDependencyError", "KVM is not usable"),
        ({}, 1, "MissingDependencyError", "image system-images;android-34;default;"),
        ({"avds": "pfl-e2e", "no-boot": "", "ends": ""}, 60, "BootError", "PANIC: broken AVD"),
        ({"avds": "pfl-e2e", "no-boot": ""}, 1, "BootError", "did not come up within 1 s"),
    ],
)
def test_an_emulator_that_cannot_be_used(
    emulator: ModuleType,
    stand_ins: StandIns,
    capsys: pytest.CaptureFixture[str],
    told: dict[str, str],
    boot_s: int,
    code: str,
    says: str,
) -> None:
    stand_ins.tell(told, devices="")
    status, found = _run(emulator, capsys, stand_ins.command("--boot-s", str(boot_s)))
    assert status == 2
    assert found["error"]["code"] == code
    assert says in found["error"]["message"]
    assert found["error"]["mend"]
    # what was started is ended
    assert not (stand_ins.home / "up").exists()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--serial", "other"], "NoDeviceError"),
        (["--only", "nothing"], "UnknownNameError"),
        (["--sdk", "/nowhere"], "MissingDependencyError"),
        (["--test-apk", ""], "ConfigError"),
        (["--apk", "/nowhere.apk"], "ConfigError"),
    ],
)
def test_what_is_asked_for_and_not_there(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str], more: list[str], code: str
) -> None:
    status, found = _run(emulator, capsys, stand_ins.command(*more))
    assert (status, found["error"]["code"]) == (2, code)
    assert found["error"]["mend"]


def test_several_devices_are_told_apart(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell(devices="emulator-1 emulator-2")
    assert (
        _run(emulator, capsys, stand_ins.command("--only", "cancelled"))[1]["error"]["code"]
        == "NoDeviceError"
    )
    assert _run(emulator, capsys, stand_ins.command("--only", "cancelled", "--serial", "emulator-2"))[0] == 0


def test_an_app_that_cannot_be_installed_is_said(
    emulator: ModuleType, stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.tell({"install": "Failure [INSTALL_FAILED_INSUFFICIENT_STORAGE]"})
    found = _run(emulator, capsys, stand_ins.command("--only", "cancelled"))[1]
    assert found["error"]["code"] == "AdbError"
    assert "INSUFFICIENT_STORAGE" in found["error"]["message"]


def test_the_sdk_is_found_where_the_environment_says(emulator: ModuleType, stand_ins: StandIns) -> None:
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        found = emulator.find_sdk(None, {name: str(stand_ins.root)})
        assert found.adb == stand_ins.root / "platform-tools/adb"
        assert found.emulator == stand_ins.root / "emulator/emulator"
    on_path = emulator.find_sdk(None, {"HOME": "/nowhere", "PATH": str(stand_ins.root / "platform-tools")})
    assert on_path.adb == stand_ins.root / "platform-tools/adb"
    assert on_path.emulator is None


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_emulator(stand_ins: StandIns, sent: signal.Signals) -> None:
    stand_ins.tell({"avds": "pfl-e2e", "no-boot": ""}, devices="")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(ANDROID / "emulator.py"), *stand_ins.command()]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        until = time.monotonic() + 60
        while not (stand_ins.home / "up").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(sent)
        assert process.wait(60) == 130
    assert not (stand_ins.home / "up").exists()
    assert (stand_ins.home / "emulator-ended").exists()


def test_parts_are_those_of_the_kotlin_side(emulator: ModuleType) -> None:
    scenario = emulator.Scenario.read(SCENARIOS / "killed.json")
    assert [part[0]["do"] for part in scenario.parts] == ["open", "restart"]
    assert [scenario.is_killed(part) for part in range(2)] == [True, False]
    assert scenario.federation is None
    assert emulator.Scenario.read(SCENARIOS / "rounds-killed.json").federation == ("talk", False)
    assert emulator.Scenario.read(SCENARIOS / "rounds.json").federation == ("talk", True)

"""Every command, as the registry has them, with things it did not expect: an answer with a documented exit code.

A command that is added is tested here without being named. Nothing may end as a fault of ours (exit code 70), show a
traceback, wait for ever, or print something beside the one JSON value that ``--json`` promises.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from pfl_exporters import cli as export_cli
from pfl_mobile import cli
from pfl_mobile.cli.common import FAILED, INTERRUPTED, OK, UNFORESEEN, WRONG, command_of
from tests.fuzz.mutate import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What a command may answer here. 130 is an interrupt, which nobody sends.
DOCUMENTED = {OK, FAILED, WRONG}
#: Seconds that a wrong argument may take to be refused, on a slow machine.
SECONDS = 60.0
#: Some of the wrong things, where all would take too long.
SOME = ("missing", "empty folder", "empty", "a number", "deep lists", "not UTF-8", "a pipe")
#: Options that make a valid command take long or reach out, with what they get instead.
GIVEN = {"rounds": "1", "server": "http://127.0.0.1:9", "patience": "0", "out": "made", "users": "1"}
#: What else commands get that would else work for long, or for ever, with nothing but good values.
ALSO = {
    ("demo", "keyboard"): ["--data", "nothing-here"],
    ("demo", "federated"): ["--data", "nothing-here"],
    ("privacy", "plan"): ["--no-simulate", "--sampling", "none"],
    ("serve",): ["--host", "256.1.1.1"],
}


@dataclass(frozen=True)
class Option:
    """One argument or option of a command.

    Attributes:
        kind: ``number``, ``text`` (paths too) or ``flag``.
    """

    name: str
    kind: str
    required: bool
    words: tuple[str, ...]

    def with_value(self, value: str) -> list[str]:
        """The words that give it a value."""
        return [*self.words, value]


@dataclass(frozen=True)
class Command:
    """A command below all groups."""

    program: str
    path: tuple[str, ...]
    options: tuple[Option, ...]

    @property
    def needed(self) -> list[Option]:
        return [option for option in self.options if option.required]

    @property
    def json(self) -> list[str]:
        return ["--json"] if any(option.words == ("--json",) for option in self.options) else []

    def filled(self, path: str) -> list[str]:
        """What it needs: everywhere the same path, and 1 for a number."""
        found: list[str] = []
        for option in self.needed:
            found += option.with_value(GIVEN.get(option.name, path if option.kind == "text" else "1"))
        return found + ALSO.get(self.path, [])


def _kind(annotation: Any) -> str:
    for known, kind in (("bool", "flag"), ("int", "number"), ("float", "number")):
        if any(part.__name__ == known for part in _types(annotation)):
            return kind
    return "text"


def _types(annotation: Any) -> list[type]:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _types(inner[0])
    return [t for part in inner for t in _types(part)] if inner else [annotation]


def _leaves(
    app: typer.Typer, command: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Every command below a group: the words that name it, itself, and its function."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command, app.registered_commands[0].callback
        return
    functions = {info.name or info.callback.__name__: info.callback for info in app.registered_commands}
    groups = {info.name: info.typer_instance for info in app.registered_groups}
    for name, found in inner.items():
        if name in groups:
            yield from _leaves(groups[name], found, (*path, name))
        else:
            yield (*path, name), found, functions[name]


def _commands() -> Iterator[tuple[str, Command]]:
    for program, app in (("pfl", cli.app), ("pfl-export", export_cli.app)):
        for path, command, function in _leaves(app, command_of(app)):
            hints = typing.get_type_hints(function, include_extras=True)
            options = []
            for parameter in command.params:
                if parameter.name in hints:
                    words = () if parameter.param_type_name == "argument" else (parameter.opts[0],)
                    options.append(
                        Option(parameter.name, _kind(hints[parameter.name]), parameter.required, words)
                    )
            yield " ".join((program, *path)), Command(program, path, tuple(options))


MAIN: dict[str, Callable[[list[str]], int]] = {"pfl": cli.main, "pfl-export": export_cli.main}
COMMANDS = dict(_commands())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a cache of its own; nothing can be fetched."""
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PFL_DEBUG", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Run a command line; check what holds for all of them; give the exit code."""

    def call(program: str, *arguments: object) -> int:
        args = [str(a) for a in arguments]
        began = time.monotonic()
        code = MAIN[program](args)
        took = time.monotonic() - began
        out, err = capsys.readouterr()
        shown = f"{program} {args}\nexit code {code}, {took:.1f} s\n{out[-2000:]}\n{err[-4000:]}"
        assert code in DOCUMENTED, shown
        assert "Traceback" not in out + err, shown
        assert took < SECONDS, shown
        if "--json" in args and "--help" not in args:
            json.loads(out)
        return code

    return call


def test_the_registry_is_read() -> None:
    assert {"pfl inspect", "pfl verify", "pfl state show", "pfl serve", "pfl-export"} <= set(COMMANDS)
    assert UNFORESEEN not in DOCUMENTED
    assert INTERRUPTED not in DOCUMENTED


@pytest.mark.parametrize("name", COMMANDS)
def test_help_nothing_and_what_there_is_not(name: str, run: Callable[..., int]) -> None:
    command = COMMANDS[name]
    assert run(command.program, *command.path, "--help") == OK
    if command.needed:
        assert run(command.program, *command.path, *command.json) == WRONG
    assert run(command.program, *command.path, "--there-is-no-such-option", *command.json) == WRONG
    if command.path:
        assert run(command.program, *command.path[:-1], "there-is-no-such-command") == WRONG


@pytest.mark.parametrize("name", COMMANDS)
def test_values_of_the_wrong_kind(name: str, run: Callable[..., int]) -> None:
    """Each option that takes a number, with words, NaN and numbers out of every range."""
    command = COMMANDS[name]
    base = command.filled("nothing-here")
    for option in command.options:
        if option.kind == "number" and option.words:
            for value in ("x", "nan", "1e999", "-1", str(10**30)):
                run(command.program, *command.path, *base, f"{option.words[0]}={value}", *command.json)


def _things(folder: Path) -> dict[str, Path]:
    """Paths that are not what a command asks for."""
    found = {"missing": folder / "missing", "missing deep": folder / "a" / "b" / "c"}
    (folder / "empty-folder").mkdir()
    found["empty folder"] = folder / "empty-folder"
    for number, (kind, data) in enumerate(WHOLE.items()):
        found[kind] = folder / f"file{number}"
        found[kind].write_bytes(data)
    os.symlink("loop", folder / "loop")
    found["a link to itself"] = folder / "loop"
    os.mkfifo(folder / "pipe")
    found["a pipe"] = folder / "pipe"
    found["a folder of files"] = folder
    found["a name that no system has"] = Path("n" * 5000)
    found["a name with a broken surrogate"] = Path("broken\udcff")
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_paths_to_other_things(name: str, run: Callable[..., int], place: Path) -> None:
    """Every path, text or file that a command needs, or can be given, is one of many wrong things."""
    command = COMMANDS[name]
    things = _things(place)
    if any(option.kind == "text" for option in command.needed):
        for thing in things.values():
            run(command.program, *command.path, *command.filled(str(thing)), *command.json)
    base = command.filled("nothing-here")
    for option in command.options:
        if option.kind == "text" and not option.required and option.name not in GIVEN:
            for kind in ("missing", "empty folder", "not UTF-8", "a pipe"):
                more = option.with_value(str(things[kind]))
                run(command.program, *command.path, *base, *more, *command.json)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.needed])
def test_a_name_with_nul(name: str, run: Callable[..., int]) -> None:
    command = COMMANDS[name]
    run(command.program, *command.path, *command.filled("a\0b"), *command.json)


TAKES_BUNDLE = [n for n, command in COMMANDS.items() if any(o.name == "bundle" for o in command.options)]


@pytest.mark.parametrize("name", TAKES_BUNDLE)
def test_a_bundle_and_nothing_else_that_is_right(
    name: str, run: Callable[..., int], place: Path, tiny_bundle: Path
) -> None:
    """The bundle is fine; all other paths are not."""
    command = COMMANDS[name]
    bundle = shutil.copytree(tiny_bundle, place / "bundle")
    things = _things(place)
    for kind in SOME:
        args: list[str] = []
        for option in command.needed:
            value = str(bundle) if option.name == "bundle" else str(things[kind])
            args += option.with_value(GIVEN.get(option.name, value))
        if not command.needed:
            args = ["--bundle", str(bundle), "--data", str(things[kind])]
        args += ALSO.get(command.path, [])
        run(command.program, *command.path, *args, *command.json)

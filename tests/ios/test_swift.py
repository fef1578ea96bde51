"""The script that runs Swift: each kind of build has a folder of its own, as objects of two cannot be linked."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ios" / "swift.sh"


@pytest.fixture
def told(tmp_path):
    """What the machine's own Swift is told."""
    swift = tmp_path / "swift"
    swift.write_text('#!/bin/sh\necho "$@"\n')
    swift.chmod(0o755)

    def run(*arguments, **settings):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PFL_")}
        environment = kept | settings | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(
            [SCRIPT, *arguments], env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("arguments", "settings", "folder"),
    [
        (["build"], {"PFL_APPLE_STUBS": "1"}, "stubs"),
        (["test", "--sanitize=thread"], {}, "thread"),
        (["test", "--sanitize=address", "--filter", "A"], {"PFL_APPLE_STUBS": "1"}, "stubs-address"),
        (["run", "--skip-build", "pfl-swift-device"], {"PFL_APPLE_STUBS": "1"}, "stubs"),
    ],
)
def test_each_kind_of_build_has_a_folder(told, arguments, settings, folder):
    want = [arguments[0], "--scratch-path", f".build/{folder}", *arguments[1:]]
    assert told(*arguments, **settings) == want


def test_all_else_is_passed_on_as_it_is(told):
    assert told("test", "--filter", "A") == ["test", "--filter", "A"]
    mine = ["test", "--sanitize=thread", "--scratch-path", "mine"]
    assert told(*mine, PFL_APPLE_STUBS="1") == mine
    assert told("format", "lint", PFL_APPLE_STUBS="1") == ["format", "lint"]

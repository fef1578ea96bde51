"""What is personal or secret is for its owner alone, from the moment on that it is there, whatever the umask is."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from pfl_mobile.bundle.sign import generate_key
from pfl_mobile.errors import UnwritableError
from pfl_mobile.files.atomic import PRIVATE, atomic_write, open_private, private_folder
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from tests.device.conftest import device
from tests.device.fake_server import Fake, serving
from tests.local.fake import Linear

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
ID = ModelId.of("linear", "1", Linear.tensors)
UMASKS = [0o000, 0o002, 0o022, 0o077, 0o277]


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def open_to_others(folder):
    """All below a folder, and itself, that others may read, write or enter."""
    return [str(p) for p in (folder, *folder.rglob("*")) if mode(p) & 0o077]


class Watch:
    """Looks at everything below a folder, again and again, while something is written there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.found, self.looks = folder, set(), 0

    def __enter__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._thread.join()

    def _look(self):
        while not self._stop.is_set():
            self.looks += 1
            for folder, folders, files in os.walk(self.folder):
                for name in (*folders, *files):
                    path = os.path.join(folder, name)
                    try:
                        if os.stat(path).st_mode & 0o077:
                            self.found.add(path)
                    except FileNotFoundError:
                        pass


# -- the place that makes them


def test_a_new_folder_and_those_above_it_are_private(tmp_path, umask):
    private_folder(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / p) for p in ("a", "a/b", "a/b/c")] == [0o700] * 3
    private_folder(tmp_path / "a" / "b" / "c")


@pytest.mark.parametrize("before", [0o755, 0o777, 0o1777, 0o2775, 0o750, 0o711, 0o705])
def test_an_empty_folder_and_one_of_ours_are_closed(tmp_path, before):
    for name, content in (("empty", None), ("ours", "CURRENT")):
        folder = tmp_path / name
        folder.mkdir()
        if content:
            (folder / content).touch()
            (folder / "something else").touch()
        folder.chmod(before)
        private_folder(folder, ours=("CURRENT",))
        assert mode(folder) == 0o700


@pytest.mark.parametrize("before", [0o755, 0o1777, 0o750, 0o775])
def test_a_folder_of_something_else_is_left_with_a_warning(tmp_path, before):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").touch()
    (tmp_path / "home").chmod(before)
    with pytest.warns(UserWarning, match="chmod 700"):
        private_folder(tmp_path / "home", ours=("CURRENT",))
    assert mode(tmp_path / "home") == before


def test_a_folder_where_everybody_may_replace_files_is_refused(tmp_path):
    (tmp_path / "letters").touch()
    tmp_path.chmod(0o777)
    with pytest.raises(UnwritableError, match="replace"):
        private_folder(tmp_path, ours=("CURRENT",))


@pytest.mark.parametrize("before", [0o700, 0o500, 0o1700])
def test_a_private_folder_stays_as_it_is(tmp_path, before):
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        private_folder(tmp_path / "x", ours=("CURRENT",))
    assert mode(tmp_path / "x") == before


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "x").touch()
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(UnwritableError, match="x"):
            private_folder(path)


def test_files_are_private_whatever_the_umask_is(tmp_path, umask):
    atomic_write(tmp_path / "a", b"secret", mode=PRIVATE)
    with open(tmp_path / "b", "wb", opener=open_private) as file:
        file.write(b"secret")
    generate_key(tmp_path / "key")
    assert [mode(tmp_path / name) for name in ("a", "b", "key")] == [0o600] * 3
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_open_file_becomes_private(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o644)
    open(tmp_path / "a", "ab", opener=open_private).close()
    assert mode(tmp_path / "a") == 0o600
    with open("/dev/null", "wb", opener=open_private):
        assert mode("/dev/null") & 0o006


# -- those who use it


def test_all_that_a_device_keeps_is_private_at_every_moment(tmp_path, umask):
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint}, rounds=2)
    with (
        Watch(tmp_path) as watch,
        serving(fake) as address,
        device(tmp_path / "people" / "ann", address) as found,
    ):
        assert found.run().rounds == 2
    assert watch.found == set()
    assert watch.looks > 2
    assert open_to_others(tmp_path / "people") == []


def test_a_device_folder_of_before_is_closed(tmp_path):
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint}, rounds=1)
    folder = tmp_path / "ann"
    with serving(fake) as address:
        with device(folder, address) as found:
            found.run()
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o755)
        with device(folder, address) as found:
            found.run()
    assert open_to_others(folder) == []


def test_a_personal_state_is_private(tmp_path, umask):
    with Watch(tmp_path) as watch:
        store = PersonalStateStore(tmp_path / "state", ID)
        for _ in range(3):
            store.save(PersonalState({"head.weight": np.zeros((3, 4), np.float32)}, words=("secret",)))
    assert watch.found == set()
    assert open_to_others(tmp_path / "state") == []

"""Every reader of a file or body, with damaged, hostile and simply wrong content: an answer or an error of ours.

`READERS` lists them: each writes a valid example, names what is spoiled in it, and reads it. Whatever is spoiled, and
whatever else stands in the place of the file, the outcome is a value or a `PflError`, in bounded time. A reader that
is added belongs into the list; `test_every_reader_is_listed` looks for calls that open files elsewhere.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pfl_mobile.bundle import (
    Bundle,
    ProgramSpec,
    generate_key,
    parse_manifest,
    tensors_to_bytes,
    verify,
    write_bundle,
)
from pfl_mobile.bundle.sign import load_private_key, load_public_key, sign
from pfl_mobile.cli.bundles import _show, describe
from pfl_mobile.device.client import parse
from pfl_mobile.device.sent import SentNoise
from pfl_mobile.device.store import DeviceFolder, Pending
from pfl_mobile.engines.base import EngineSession
from pfl_mobile.engines.schedule import scheduled
from pfl_mobile.errors import DataError, PflError
from pfl_mobile.files import sealed
from pfl_mobile.files.tensors import load_metadata, load_tensors
from pfl_mobile.local import checkpoint as local_checkpoint
from pfl_mobile.local.evaluation import text_encoder
from pfl_mobile.local.examples import ExampleStore
from pfl_mobile.local.phases import Work
from pfl_mobile.local.state import ModelId, PersonalState, PersonalStateStore
from pfl_mobile.plan.schema import Plan
from pfl_mobile.privacy import Gaussian, Poisson, load_privacy
from pfl_mobile.privacy.accounting import Ledger
from pfl_mobile.protocol import bodies
from pfl_mobile.text.tokenizer import WordTokenizer
from tests.bundle.conftest import make_files, make_parts
from tests.fuzz.mutate import SEEDS, WHOLE, json_text, mutate_bytes, mutate_json
from tests.local.fake import Linear

#: Seconds that one reading may take on a slow machine.
SECONDS = 20.0
#: Bytes of Python objects that reading a few kilobytes may take.
MEMORY = 300 << 20

ID = ModelId.of("linear", "1", Linear.tensors)
VALUES = {"head.weight": np.ones((3, 4), np.float32), "head.bias": np.ones(3, np.float32)}


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: writes a valid example into an empty folder; returns the path that is spoiled.
        read: reads what is in the folder.
        put: writes the spoiled bytes, and what goes along so that they are looked into at all; by default as they
            are.
        head: takes the JSON out of the bytes, and puts other JSON in; None where the bytes are no JSON.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    put: Callable[[Path, bytes], None] | None = None
    head: tuple[Callable[[bytes], Any], Callable[[bytes, Any], bytes]] | None = None
    skip: frozenset[str] = field(default_factory=frozenset)


def _file(name: str, data: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return make


PLAIN = (json.loads, lambda _old, value: json_text(value))


def _lines(data: bytes) -> Any:
    return [json.loads(line) for line in data.splitlines()]


LINES = (
    _lines,
    lambda _old, value: (
        b"\n".join(json_text(v) for v in value) if isinstance(value, list) else json_text(value)
    ),
)


# -- bundles


PLAN = {
    "schema_version": 1,
    "phases": [
        {"kind": "train", "steps": 2, "optimizer": {"kind": "sgd", "lr": 0.1}, "group": ["*"]},
        {"kind": "repeat", "times": 2, "phases": [{"kind": "move", "toward": "initial", "rate": 0.5}]},
    ],
    "guard": {"metric": "loss"},
    "serve": {"kind": "mix", "other": "initial", "alpha": 0.5},
}
WORDS = WordTokenizer.train(["see you there ok"], 10)


def _bundle(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        files = make_files() | {"plan.json": json_text(PLAN), "tokenizer.json": WORDS.to_json().encode()}
        write_bundle(folder / "bundle", make_parts(), files)
        manifest = (folder / "bundle" / "manifest.json").read_bytes()
        generate_key(folder / "key.pem")
        if name == "manifest.json.sig":
            (folder / "bundle" / name).write_bytes(sign(manifest, folder / "key.pem"))
        return folder / "bundle" / name

    return make


def _with_digest(path: Path, data: bytes) -> None:
    """Write a file of a bundle, and put its digest into the manifest, so that its content is what is looked at."""
    path.write_bytes(data)
    place = path.parent / "manifest.json"
    manifest = json.loads(place.read_bytes())
    manifest["measured"]["total_bytes"] += len(data) - manifest["files"][path.name]["bytes"]
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    place.write_text(json.dumps(manifest))


def _all_of_a_bundle(folder: Path) -> None:
    with Bundle.open(folder / "bundle") as bundle:
        _show(describe(bundle, pinned=False))
        for part in (bundle.values, bundle.golden, lambda: text_encoder(bundle)):
            _may_fail(part)


def _may_fail(call: Callable[[], Any]) -> None:
    try:
        call()
    except PflError:
        return


def _zip(folder: Path) -> Path:
    write_bundle(folder / "bundle.pflb", make_parts(), make_files() | {"plan.json": json_text(PLAN)})
    return folder / "bundle.pflb"


def _open_zip(folder: Path) -> None:
    with Bundle.open(folder / "bundle.pflb", cache_dir=folder) as bundle:
        bundle.golden()


# -- tensors with a sealed head


def _unsealed(data: bytes) -> Any:
    from pfl_mobile.files.tensors import metadata_from_bytes

    return json.loads(metadata_from_bytes(data)["head"])


def _sealed_again(form: str | None) -> Callable[[bytes, Any], bytes]:
    from pfl_mobile.files.tensors import tensors_from_bytes

    return lambda old, value: sealed.seal(tensors_from_bytes(old), json.dumps(value), form=form)


def _state(folder: Path) -> Path:
    store = PersonalStateStore(folder / "state", ID)
    store.save(PersonalState(VALUES, {"mine": VALUES}, ("zorp",), {"loss": 1.0}))
    store.save(PersonalState(VALUES, {"mine": VALUES}, ("zorp",), {"loss": 0.5}))
    return folder / "state" / "000002.safetensors"


def _read_state(folder: Path) -> None:
    store = PersonalStateStore(folder / "state", ID)
    _may_fail(store.load)
    store.versions()
    _may_fail(lambda: store.revert(1))
    _may_fail(store.reset)


def _pointer(folder: Path) -> Path:
    _state(folder)
    return folder / "state" / "CURRENT"


def _work(folder: Path) -> Path:
    path = folder / "checkpoint"
    work = Work(dict(VALUES), words=("zorp",), phase=0, step=1, done=1, rate=0.1, reports={"a": 1.0})
    local_checkpoint.save(path, work, "job")
    return path


def _simulated(folder: Path) -> Path:
    from pfl_mobile.simulation import checkpoint

    found = checkpoint.Checkpoint(
        settings={"a": 1},
        lanes=2,
        round=1,
        stopped=False,
        values=dict(VALUES),
        groups={},
        sets={},
        numbers={"n": 1},
        devices=np.arange(2),
        rows=np.arange(2),
        digests=np.arange(2),
        data=np.zeros((0, 2), np.int64),
        history=10,
        history_digest="0" * 64,
    )
    checkpoint.save(folder / "checkpoint", found)
    return folder / "checkpoint"


def _load_simulated(folder: Path) -> None:
    from pfl_mobile.simulation import checkpoint

    checkpoint.load(folder / "checkpoint")


def _server_state(folder: Path) -> Path:
    from pfl_mobile.strategies.server_state_file import encode
    from pfl_mobile.strategies.state import Server

    server = Server(Linear.tensors, 3, dict(VALUES), {}, {}, {"n": 1}, 2)
    (folder / "server").write_bytes(encode(server, {"more": np.ones(2)}))
    return folder / "server"


def _decode_server(folder: Path) -> None:
    from pfl_mobile.strategies.server_state_file import decode

    decode((folder / "server").read_bytes(), Linear.tensors, 3)


def _history(folder: Path) -> None:
    from pfl_mobile.simulation.checkpoint import History

    path = folder / "history.jsonl"
    data = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(data[:26]).hexdigest()  # one that fits, so that the lines are read too
    History(path, 26, digest).close()


# -- a device's folder


def _device(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with DeviceFolder(folder / "device", ID, "ann") as device:
            device.join("http://127.0.0.1:9", bodies.Enrolled(device="d" * 32, credential="c"))
            device.sent.add(1.0)
            update = b"u" * 40
            privacy = {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0, "statement": {}}
            pending = Pending(
                "e" * 32,
                1,
                "/v1/x",
                "k",
                1e12,
                hashlib.sha256(update).hexdigest(),
                len(update),
                privacy,
                ("a",),
            )
            device.put(pending, update)
        return folder / "device" / name

    return make


def _read_device(folder: Path) -> None:
    with DeviceFolder(folder / "device", ID, "ann") as device:
        device.pending()
        device.sent.epsilon(1e-6, 1.0)
        device.load_set("0" * 64)


# -- settings


CONFIG = Gaussian(clip_norm=1.0, noise_multiplier=1.0, population=1000, cohort=10, participation=Poisson())


def _ledger() -> str:
    ledger = Ledger(CONFIG)
    ledger.record(3)
    return ledger.to_json()


def _read_ledger(folder: Path) -> None:
    ledger = Ledger.load(folder / "ledger.json")
    _may_fail(ledger.statement)


def _read_federation(folder: Path) -> None:
    from pfl_mobile.cli.serve import _read
    from pfl_server.federation.config import FederationConfig

    FederationConfig.load(_read(folder / "federation.json"))


def _read_limits(folder: Path) -> None:
    from pfl_mobile.cli.serve import _limits

    _limits(folder / "limits.json")


def _federation() -> str:
    from pfl_server.federation.config import FederationConfig

    return FederationConfig(privacy=CONFIG).dump()


def _admin_token(folder: Path) -> None:
    from pfl_server.identity.credentials import admin_token

    admin_token({"PFL_ADMIN_TOKEN_FILE": str(folder / "token")})


# -- runs and studies


def _source(folder: Path) -> None:
    from pfl_mobile.cli.runs import study_of

    study_of(folder)


def _study(folder: Path) -> None:
    from tests.study.small import study

    study(folder=folder).result()


def _groups(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from pfl_mobile.data.user_groups import groups_from
        from tests.study.small import population

        groups_from(folder / name, population())

    return read


def _adapter(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from pfl_mobile.bundle.peft import export_adapter

        export_adapter(folder, _LORA, dict.fromkeys(_LORA, "lora"), _MODULES)
        return folder / name

    return make


_LORA = {"out.lora_A": np.ones((2, 4), np.float32), "out.lora_B": np.ones((3, 2), np.float32)}
_MODULES = [{"name": "lora", "kind": "lora", "config": {"rank": 2}}]


def _read_adapter(folder: Path) -> None:
    from pfl_mobile.bundle.peft import import_adapter

    import_adapter(folder, {n: v.shape for n, v in _LORA.items()}, dict.fromkeys(_LORA, "lora"), _MODULES)


# -- data


MESSAGES = "\n".join(
    json.dumps({"user": u, "text": f"see you {i}", "time": i}) for u in "ab" for i in range(5)
)


def _messages(folder: Path) -> None:
    from pfl_mobile import data

    found = data.load(folder / "m.jsonl", lambda *_: None)
    for text in found.all_texts():
        WORDS.words(text)
        text.encode()


def _rows(folder: Path) -> Path:
    np.savez(
        folder / "rows.npz",
        x=np.ones((6, 4), np.float32),
        labels=np.zeros(6, np.int64),
        user=np.array(list("aabbcc")),
    )
    return folder / "rows.npz"


def _read_rows(folder: Path) -> None:
    from pfl_mobile.cli.rows import rows_of

    specs = (
        SimpleNamespace(name="x", shape=(2, 4), dtype="float32"),
        SimpleNamespace(name="labels", shape=(2,), dtype="int64"),
    )
    manifest = SimpleNamespace(name="m", batch_inputs=lambda _: specs, task=SimpleNamespace(vocabulary=3))
    rows_of(manifest, str(folder / "rows.npz"), "a", lambda *_: None)  # type: ignore[arg-type]


def _examples(folder: Path) -> Path:
    with ExitStack() as stack:
        store = ExampleStore(folder / "examples.db")
        stack.callback(store.close)
        for i in range(5):
            store.add(f"see you {i}")
    return folder / "examples.db"


def _read_examples(folder: Path) -> None:
    store = ExampleStore(folder / "examples.db")
    try:
        store.examples()
    finally:
        store.close()


def _update(folder: Path) -> Path:
    seeds = Path(__file__).parents[2] / "conformance" / "updates"
    return Path(shutil.copy(sorted(p for p in seeds.iterdir() if p.is_file())[0], folder / "update"))


def _read_update(folder: Path) -> None:
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.protocol.update_file import parse_prefix

    data = (folder / "update").read_bytes()
    parse_prefix(data, UpdateLayout({"a": (2, 2)}), len(data))


def _constants(folder: Path) -> Path:
    (folder / "s.json").write_bytes(json_text(SCHEDULE))
    return _file("c.bin", bytes(72))(folder)


def _open_scheduled(folder: Path) -> None:
    """The parts are not looked at: an engine's own files are tried in a child, see test_programs."""

    class Nothing(EngineSession):
        name = "nothing"

        def _execute(self, program: str, inputs: list[Any]) -> list[Any]:
            return []

    constants = folder / "c.bin"
    if not os.path.lexists(constants):
        constants.write_bytes(bytes(72))
    files = {"schedule": str(folder / "s.json"), "constants": str(constants)}
    scheduled(files, [SCHEDULED], lambda _, parts: Nothing(parts)).close()


_TWO = {"shape": [2], "dtype": "float32"}
SCHEDULED = ProgramSpec.model_validate(
    {"name": "evaluate", "inputs": [{"name": "x", **_TWO}], "outputs": [{"name": "y", **_TWO}]}
)
SCHEDULE = {
    "schema_version": 1,
    "kind": "pfl-schedule",
    "parts": [
        {"name": "add", "inputs": [{"name": n, **_TWO} for n in "ab"], "outputs": [{"name": "s", **_TWO}]}
    ],
    "constants": {"c": {**_TWO, "offset": 64}},
    "programs": {
        "evaluate": {
            "calls": [
                {"part": "add", "inputs": ["input:x", "constant:c"], "outputs": [0]},
                {"part": "add", "inputs": ["value:0", "value:0"], "outputs": [1]},
            ],
            "outputs": ["value:1"],
        }
    },
}
READERS: dict[str, Reader] = {
    "manifest": Reader(_bundle("manifest.json"), _all_of_a_bundle, head=PLAIN),
    "plan of a bundle": Reader(_bundle("plan.json"), _all_of_a_bundle, _with_digest, PLAIN),
    "tokenizer of a bundle": Reader(_bundle("tokenizer.json"), _all_of_a_bundle, _with_digest, PLAIN),
    "values of a bundle": Reader(_bundle("tensors.safetensors"), _all_of_a_bundle, _with_digest),
    "golden calls": Reader(_bundle("golden.safetensors"), _all_of_a_bundle, _with_digest),
    "schedule": Reader(_file("s.json", json_text(SCHEDULE)), _open_scheduled, head=PLAIN),
    "constants of a schedule": Reader(_constants, _open_scheduled),
    "signature": Reader(
        _bundle("manifest.json.sig"),
        lambda f: verify(
            (f / "bundle" / "manifest.json").read_bytes(), (f / "bundle" / "manifest.json.sig").read_bytes()
        ),
        head=PLAIN,
        skip=frozenset({"place"}),  # `Bundle.open` opens it: see the next
    ),
    "signed bundle": Reader(
        _bundle("manifest.json.sig"),
        lambda f: Bundle.open(f / "bundle", public_key=f / "key.pem.pub"),
        head=PLAIN,
    ),
    "zipped bundle": Reader(_zip, _open_zip),
    "private key": Reader(lambda f: (generate_key(f / "k"), f / "k")[1], lambda f: load_private_key(f / "k")),
    "public key": Reader(
        lambda f: (generate_key(f / "k"), f / "k.pub")[1], lambda f: load_public_key(f / "k.pub")
    ),
    "tensors": Reader(
        _file("t", tensors_to_bytes(VALUES, metadata={"a": "b"})),
        lambda f: (load_tensors(f / "t"), load_metadata(f / "t")),
    ),
    "plan": Reader(
        _file("plan.json", json.dumps(PLAN)),
        lambda f: Plan.load((f / "plan.json").read_bytes()),
        head=PLAIN,
        skip=frozenset({"place"}),
    ),
    "tokenizer": Reader(
        _file("t.json", WORDS.to_json()), lambda f: WordTokenizer.load(f / "t.json"), head=PLAIN
    ),
    "personal state": Reader(_state, _read_state, head=(_unsealed, _sealed_again("pfl-personal-state"))),
    "pointer to the state": Reader(_pointer, _read_state),
    "training under way": Reader(
        _work, lambda f: local_checkpoint.load(f / "checkpoint", "job"), head=(_unsealed, _sealed_again(None))
    ),
    "checkpoint of rounds": Reader(
        _simulated, _load_simulated, head=(_unsealed, _sealed_again("pfl-rounds"))
    ),
    "server's state": Reader(
        _server_state,
        _decode_server,
        head=(_unsealed, _sealed_again("pfl-server-state")),
        skip=frozenset({"place"}),
    ),
    "history": Reader(_file("history.jsonl", '{"round": 1}\n{"round": 2}\n'), _history, head=LINES),
    "device": Reader(_device("device.json"), _read_device, head=PLAIN),
    "user of a device": Reader(_device("user.json"), _read_device, head=PLAIN),
    "what was sent": Reader(_device("sent.json"), _read_device, head=PLAIN),
    "sent noise": Reader(
        _file("sent.json", '{"schema_version": 1, "updates": 1, "inverse_squares": 1.0}'),
        lambda f: SentNoise(f / "sent.json").epsilon(1e-6),
        head=PLAIN,
    ),
    "queue": Reader(_device("queue/" + "e" * 32 + ".json"), _read_device, head=PLAIN),
    "queued update": Reader(_device("queue/" + "e" * 32 + ".update"), _read_device),
    "privacy.json": Reader(
        _file("privacy.json", CONFIG.to_json()),
        lambda f: Ledger.after(load_privacy(f / "privacy.json"), 3).statement(),
        head=PLAIN,
    ),
    "ledger": Reader(_file("ledger.json", _ledger()), _read_ledger, head=PLAIN),
    "federation.json": Reader(_file("federation.json", _federation()), _read_federation, head=PLAIN),
    "limits.json": Reader(
        _file("limits.json", '{"json_bytes": 2048, "min_rate": 1.0}'), _read_limits, head=PLAIN
    ),
    "admin token": Reader(_file("token", "t" * 40), _admin_token),
    "source of a run": Reader(
        _file("source.json", json.dumps({"model": "nothing:here", "settings": {}, "changes": {}})),
        _source,
        head=PLAIN,
    ),
    "study of a run": Reader(
        _file("study.json", json.dumps({"rounds": 1, "local_epochs": 1, "local_steps": None})),
        _study,
        head=PLAIN,
    ),
    "groups.json": Reader(
        _file("g.json", json.dumps({f"u{i}": "a" for i in range(8)})), _groups("g.json"), head=PLAIN
    ),
    "groups.csv": Reader(
        _file("g.csv", "user,group\r\n" + "\r\n".join(f"u{i},a" for i in range(8))), _groups("g.csv")
    ),
    "adapter's settings": Reader(_adapter("adapter_config.json"), _read_adapter, head=PLAIN),
    "adapter's weights": Reader(_adapter("adapter_model.safetensors"), _read_adapter),
    "messages": Reader(_file("m.jsonl", MESSAGES), _messages, head=LINES),
    "rows": Reader(_rows, _read_rows),
    "examples": Reader(_examples, _read_examples),
    "update": Reader(_update, _read_update, skip=frozenset({"place"})),
}


def _read_in_bounds(name: str, folder: Path, what: str) -> str:
    began = time.monotonic()
    try:
        READERS[name].read(folder)
        outcome = "read"
    except PflError as error:
        str(error).encode()  # what is told is text
        outcome = error.code
    except Exception as error:
        raise AssertionError(f"{name}: {what}: {type(error).__name__}: {str(error)[:300]}") from error
    took = time.monotonic() - began
    assert took < SECONDS, f"{name}: {what}: {took:.1f} s"
    return outcome


def _spoilt(name: str, tmp_path: Path, data: bytes | None, what: str) -> str:
    """Read a fresh example in which the bytes are these."""
    folder = tmp_path / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "good", folder)
    path = folder / (tmp_path / "path").read_text()
    if data is not None:
        put = READERS[name].put or (lambda place, content: place.write_bytes(content) and None)
        put(path, data)
    return _read_in_bounds(name, folder, what)


@pytest.fixture
def good(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> bytes:
    """The valid bytes of the reader that the test is for."""
    reader = READERS[request.node.callspec.params["name"]]
    folder = tmp_path / "good"
    folder.mkdir()
    path = reader.make(folder)
    (tmp_path / "path").write_text(str(path.relative_to(folder)))
    return path.read_bytes()


def _fuzz(name: str, tmp_path: Path, good: bytes, count: int, seed: int) -> None:
    rng = random.Random(f"{name} {seed}")
    reader = READERS[name]
    for number in range(count):
        data = good
        for _ in range(rng.choice((1, 1, 2, 5))):
            data = mutate_bytes(data, rng)
        _spoilt(name, tmp_path, data, f"bytes {number}: {data[:200]!r}")
        if reader.head is not None:
            take, give = reader.head
            value = take(good)
            for _ in range(rng.choice((1, 1, 1, 2, 4))):
                value = mutate_json(value, rng)
            _spoilt(name, tmp_path, give(good, value), f"JSON {number}: {json.dumps(value)[:2000]}")


@pytest.mark.parametrize("name", READERS)
def test_a_valid_example_is_read(name: str, tmp_path: Path, good: bytes) -> None:
    # studies and updates need more than one file to be read: theirs is refused for what it names
    refused = {
        "source of a run": "UnknownNameError",
        "study of a run": "ConfigError",
        "update": "UpdateTensorsError",
    }
    assert _spoilt(name, tmp_path, None, "as it is") == refused.get(name, "read")


@pytest.mark.parametrize("name", READERS)
def test_damaged_content(name: str, tmp_path: Path, good: bytes) -> None:
    _fuzz(name, tmp_path, good, 40, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", READERS)
def test_much_damaged_content(name: str, tmp_path: Path, good: bytes, seed: int) -> None:
    _fuzz(name, tmp_path, good, 400, seed)


@pytest.mark.parametrize("name", READERS)
def test_another_content(name: str, tmp_path: Path, good: bytes) -> None:
    for kind, data in WHOLE.items():
        _spoilt(name, tmp_path, data, kind)
    for mark, encoding in (("UTF-8 with a mark", "utf-8-sig"), ("UTF-16", "utf-16"), ("UTF-32", "utf-32")):
        if READERS[name].head in (PLAIN, LINES):
            _spoilt(name, tmp_path, good.decode().encode(encoding), mark)
    _spoilt(name, tmp_path, good.replace(b"\n", b"\r\n"), "CRLF")


@pytest.mark.parametrize("name", [n for n, r in READERS.items() if "place" not in r.skip])
def test_something_else_in_its_place(name: str, tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "spoilt" / (tmp_path / "path").read_text()

    def with_it(what: str, change: Callable[[], Any]) -> None:
        folder = tmp_path / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        path.unlink()
        change()
        _read_in_bounds(name, folder, what)

    with_it("nothing", lambda: None)
    with_it("a folder", path.mkdir)
    with_it("a pipe", lambda: os.mkfifo(path))
    with_it("a link to itself", lambda: os.symlink(path.name, path))
    with_it("a link to nothing", lambda: os.symlink("nothing-there", path))
    if os.geteuid() != 0:  # root reads everything
        with_it("what may not be read", lambda: (path.write_bytes(good), path.chmod(0)))


#: The kinds of bodies that a device reads.
ANSWERS = ("FederationInfo", "Challenge", "Enrolled", "CheckedIn", "LatestVersion", "UploadState")


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_the_aggregator(kind: str) -> None:
    rng = random.Random(kind)
    base = {
        "protocol": 1, "server": "s", "bundle": {"name": "a", "version": "1", "fingerprint": "0" * 64},
        "enrolment": "open", "attestation": [], "privacy": {}, "max_update_bytes": 1, "state": "running",
        "challenge": "c", "expires": 1.0, "device": "d" * 32, "credential": "c", "status": "task", "round": 1,
        "version": 1, "sets": {"global": {"bytes": 1, "sha256": "0" * 64, "url": "/x"}}, "created": 1.0, "task": None,
        "received": 1,
    }  # fmt: skip
    for number in range(150):
        data = json_text(mutate_json(base, rng)) if number % 2 else mutate_bytes(json_text(base), rng)
        _answer(kind, data)
    for data in WHOLE.values():
        _answer(kind, data)


def _answer(kind: str, data: bytes) -> None:
    try:
        parse(getattr(bodies, kind), data, "GET /x")
    except PflError as error:
        str(error).encode()


def _cost(data: bytes) -> tuple[float, int]:
    tracemalloc.start()
    began = time.monotonic()
    with suppress(PflError):
        parse_manifest(data)
    took, (_, most) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return took, most


BASE: dict[str, Any] = {
    "schema_version": 1, "kind": "pfl-bundle", "name": "a", "version": "1", "programs": [], "engines": {},
    "tensors": [],
    "task": {"kind": "tokens"}, "measured": {"total_bytes": 0}, "files": {},
}  # fmt: skip
TENSOR = {"name": "t", "role": "shared", "dtype": "float32", "update": "gradient"}
BOMBS: dict[str, dict[str, Any]] = {
    "numbers for tensors": {"tensors": [0] * 16_000},
    "empty tensors": {"tensors": [{}] * 10_000},
    "a shape of many dimensions": {"tensors": [{**TENSOR, "shape": [2] * 16_000}]},
    "a shape of huge dimensions": {"tensors": [{**TENSOR, "shape": [2**53] * 30}]},
    "many fields": {f"x{i}": 0 for i in range(3000)},
    "many files": {"files": {f"x{i}": 0 for i in range(3000)}},
    "files in many folders": {
        "files": {
            "/".join(f"{i}{c}" for c in "abcdefgh"): {"sha256": "0" * 64, "bytes": 0} for i in range(300)
        }
    },
    "near names": {
        "plan": "b" * 90,
        "files": {f"{'b' * 80}{i}": {"sha256": "0" * 64, "bytes": 0} for i in range(250)},
    },
    "deep settings": {"modules": [{"name": "m", "kind": "k", "config": {"a": eval("[" * 90 + "]" * 90)}}]},
    "large numbers": {"measured": {"total_bytes": 10**30}},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_manifest_takes_little_time_and_memory(bomb: str) -> None:
    data = json.dumps(BASE | BOMBS[bomb]).encode()
    assert len(data) < 150_000
    took, most = _cost(data)
    assert took < SECONDS
    assert most < MEMORY


def test_a_tokenizer_with_a_huge_id_takes_little_time_and_memory() -> None:
    """The library makes room for every id up to the largest."""
    text = json.loads(WORDS.to_json())
    text["model"]["vocab"]["there"] = 2**31
    began = time.monotonic()
    with pytest.raises(DataError, match="gaps"):
        WordTokenizer.from_json(json.dumps(text))
    assert time.monotonic() - began < 1


def test_patterns_take_no_longer_than_names_and_patterns_are_long() -> None:
    from pfl_mobile.plan.select import matches

    tensor = SimpleNamespace(name="a" * 190, role="shared", module=None)
    began = time.monotonic()
    assert not matches("*a" * 95 + "b", tensor)  # type: ignore[arg-type]
    assert matches("*a" * 95 + "*", tensor)  # type: ignore[arg-type]
    assert time.monotonic() - began < 1


def test_a_ledger_of_many_rounds_costs_as_much_as_one_of_few() -> None:
    entry = {"event": {"class": "GaussianDpEvent", "noise_multiplier": 1.0}, "count": 10**12}
    config = {"clip_norm": 1.0, "noise_multiplier": 1.0, "sampling": "none", "cohort": 10}
    text = json.dumps({"version": 1, "config": config, "entries": [entry]})
    began = time.monotonic()
    assert Ledger.from_json(text).epsilon() > 0
    assert time.monotonic() - began < SECONDS


#: Modules that open what this process wrote itself, or what only the author of a study gives, and why.
ELSEWHERE = {
    "pfl_mobile/files/atomic.py": "opens folders and its own temporaries",
    "pfl_mobile/bundle/read.py": "writes what it unpacks",
    "pfl_mobile/bundle/stream.py": "reads in pieces what `Bundle.open` checks",
    "pfl_mobile/bundle/write.py": "writes",
    "pfl_mobile/cli/common.py": "opens /dev/null",
    "pfl_mobile/cli/init.py": "a file of this distribution",
    "pfl_mobile/cli/device.py": "appends to the log of events",
    "pfl_mobile/engines/arm64/__init__.py": "files of this distribution",
    "pfl_mobile/text/table.py": "a file of this distribution",
    "pfl_mobile/engines/child.py": "what the system says of this process",
    "pfl_mobile/engines/frames.py": "what parent and child say, bounded there",
    "pfl_mobile/engines/isolated.py": "a lock",
    "pfl_mobile/engines/torch.py": "a program, which is tried in a child: see test_programs",
    "pfl_mobile/protocol/update_file.py": "a bounded header in a form of its own: see update_file.py here",
    "pfl_mobile/cli/fleet.py": "writes logs",
    "pfl_mobile/device/store.py": "a lock",
    "pfl_mobile/device/transfer.py": "its own partial downloads, whose digest decides",
    "pfl_mobile/local/examples.py": "makes the database",
    "pfl_mobile/simulation/checkpoint.py": "appends to the history",
    "pfl_mobile/files/reading.py": "the reader itself",
    "pfl_mobile/files/wheel.py": "what pip has checked a moment before",
}


def test_every_reader_is_listed() -> None:
    """Files are opened through `pfl_mobile.files.reading`, or by a module that says above why not."""
    root = Path(__file__).parents[2]
    found = {}
    for path in sorted(root.glob("pfl_mobile/**/*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith("pfl_mobile/data/"):
            continue  # datasets are parsed once from files of known digests; messages and rows are among the readers
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        if lines := [call.lineno for call in calls if _opens(ast.unparse(call.func), call.args)]:
            found[name] = lines
    assert {name: lines for name, lines in found.items() if name not in ELSEWHERE} == {}
    assert set(ELSEWHERE) <= set(found), "no longer needed"


def _opens(function: str, given: list[ast.expr]) -> bool:
    if function in ("json.load", "json.loads"):  # not of what this process made a moment before
        return not re.match(r"json\.dumps|.*\.to_json|_build|key$", ast.unparse(given[0]))
    return function in ("open", "os.open") or function.endswith((".read_text", ".read_bytes"))

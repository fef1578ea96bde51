"""Bundles that were damaged in many ways, and what each reader must say of them: bundles.json, bundles/small.pflb.

python conformance/bundle_vectors.py    export bundles/arrays anew, which generate.py takes as it is

Damage is written down as steps, so that every language does it by itself (see README.md).
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.bundle import Bundle, public_hex, write_bundle
from pfl_mobile.bundle.sign import load_private_key
from pfl_mobile.errors import PflError
from pfl_mobile.files.tensors import tensors_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER = Path(__file__).parent / "bundles"
#: Signs bundles of tests only; everybody has it.
SECRET = "5d" * 32
OTHER = "11" * 32

Step = dict[str, Any]


def step(op: str, file: str, **how: Any) -> Step:
    """One change of a file; the file "" is the zip itself."""
    return {"op": op, "file": file, **how}


def bad_json(*path: str | int, file: str = "manifest.json", **value: Any) -> Step:
    """Set a field (``value=``), or remove it."""
    return step("json", file, path=list(path), **value)


UNSIGNED = step("remove", "manifest.json.sig")


def small() -> bytes:
    """A zip of a few kilobytes with text, a group, limits, and a strategy; its program is none."""
    values = {"a.lora_A": np.arange(6, dtype=np.float32).reshape(3, 2), "é": np.zeros(2, np.float32)}
    one = np.ones(1, np.float32)
    golden: dict[str, np.ndarray] = {
        "in.gradients.tokens": np.ones((2, 4), np.int64),
        "in.gradients.weight": np.ones((2, 4), np.float32),
        "out.gradients.loss_sum": one,
        "out.gradients.grad.a.lora_A": np.full((3, 2), 0.5, np.float32),
    }

    def spec(name: str, shape: Sequence[int], dtype: str = "float32") -> dict[str, Any]:
        return {"name": name, "shape": list(shape), "dtype": dtype}

    parts = {
        "name": "small",
        "version": "1",
        "programs": [
            {
                "name": "gradients",
                "inputs": [
                    spec("tokens", [2, 4], "int64"),
                    spec("weight", [2, 4]),
                    spec("a.lora_A", [3, 2]),
                ],
                "outputs": [spec("loss_sum", [1]), spec("grad.a.lora_A", [3, 2])],
            }
        ],
        "engines": {
            "onnxruntime": {"files": {"gradients": "onnx/gradients.onnx"}, "measured": {"model_bytes": 9}}
        },
        "tensors": [
            {**spec("a.lora_A", [3, 2]), "role": "shared", "update": "gradient", "module": "lora"},
            {**spec("é", [2]), "role": "group", "group": "team", "update": "assign"},
        ],
        "frozen_sha256": "0f" * 32,
        "modules": [{"name": "lora", "kind": "lora", "config": {"rank": 2, "alpha": 1.5}}],
        "task": {"kind": "tokens", "metrics": ["top1"], "vocabulary": 12},
        "encoder": {"kind": "text", "length": 4, "batch": 2, "vocabulary": 10, "slots": 2},
        "tokenizer": "tokenizer.json",
        "strategy": {
            "name": "fedavg",
            "parameters": {"x": [1, None]},
            "optimizer": {"kind": "adamw", "lr": 0.1},
            "clip": 1,
        },
        "limits": {"max_examples": 100, "max_steps": None},
    }
    files: dict[str, bytes | os.PathLike[str]] = {
        "onnx/gradients.onnx": b"no program",
        "plan.json": b'{"schema_version": 1, "phases": []}',
        "tokenizer.json": b"{}",
        "tensors.safetensors": tensors_to_bytes(values),
        "golden.safetensors": tensors_to_bytes(golden),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "small")
        write_bundle(folder, parts, files, sign_key=SECRET)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o100644 << 16
                # Deflated data would differ with the version of zlib.
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_STORED)
        return out.getvalue()


class _Zip:
    """Where the parts of a zip are, for damage to single bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.infos = {info.filename: info for info in archive.infolist()}
            self.directory = archive.start_dir
        self.end = data.rindex(b"PK\5\6")

    def entry(self, name: str) -> int:
        """Offset of an entry in the directory."""
        at = self.directory
        while True:
            length = int.from_bytes(self.data[at + 28 : at + 30], "little")
            if self.data[at + 46 : at + 46 + length] == name.encode():
                return at
            extra, comment = (int.from_bytes(self.data[at + i : at + i + 2], "little") for i in (30, 32))
            at += 46 + length + extra + comment

    def header(self, name: str) -> int:
        """Offset of its local header."""
        return self.infos[name].header_offset

    def content(self, name: str) -> int:
        """Offset of its content."""
        at = self.header(name)
        return at + 30 + sum(int.from_bytes(self.data[at + i : at + i + 2], "little") for i in (26, 28))


def _hex(*parts: int | bytes) -> str:
    return b"".join(p if isinstance(p, bytes) else p.to_bytes(2, "little") for p in parts).hex()


def zip_cases(data: bytes) -> Iterator[dict[str, Any]]:
    """Damage to the bytes of the zip."""
    z = _Zip(data)

    def patch(name: str, *patches: tuple[int, str], **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "steps": [step("replace", "", at=at, hex=value) for at, value in patches],
            **more,
        }

    plan, sig, values = "plan.json", "manifest.json.sig", "tensors.safetensors"
    at = z.entry(plan)
    yield {"name": "the zip as it is", "steps": [], "key": "right"}
    yield {"name": "the zip as it is, without a key", "steps": []}
    for keep in (0, 1, 3, 4, 100, z.directory, z.end, z.end + 21):
        yield {"name": f"the first {keep} bytes of the zip", "steps": [step("cut", "", keep=keep)]}
    yield {"name": "text, no zip", "steps": [step("write", "", text="hello")]}
    yield {"name": "the zip is a folder of its own", "steps": [step("remove", ""), step("folder", "")]}
    yield {"name": "the zip is gone", "steps": [step("remove", "")]}
    yield {"name": "something before the zip", "steps": [step("insert", "", at=0, hex="00" * 10)]}
    yield {
        "name": "something between directory and end",
        "steps": [step("insert", "", at=z.end, hex="00" * 4)],
    }
    yield {"name": "something behind the zip", "steps": [step("insert", "", at=len(data), hex="00" * 10)]}
    yield patch("a comment that is shorter than it says", (z.end + 20, _hex(9)))
    yield patch("a directory that begins elsewhere", (z.end + 16, _hex(0, 1)))
    yield patch("a directory that is longer", (z.end + 12, _hex(0xFFFF, 0x7FFF)))
    yield patch("a directory that is shorter", (z.end + 12, _hex(z.end - z.directory - 1, 0)))
    yield patch("another magic number in the directory", (z.directory, _hex(b"XX")))
    yield patch("a changed byte of content", (z.content(plan), _hex(b"[")))
    yield patch("a changed byte of content, with its CRC", (z.content(values) + 200, _hex(b"\x77")))
    yield patch("another CRC", (at + 16, _hex(0, 0)))
    yield patch("a length that is smaller", (at + 24, _hex(5, 0)))
    yield patch("a packed length that is smaller", (at + 20, _hex(5, 0)))
    yield patch("an entry that begins elsewhere", (at + 42, _hex(7, 0)))
    yield patch("an entry that begins behind the end", (at + 42, _hex(0, 0x7FFF)))
    yield patch("encrypted", (at + 8, _hex(1)))
    yield patch("encrypted, in the header of the entry only", (z.header(plan) + 6, _hex(1)))
    yield patch("strong encryption", (at + 8, _hex(0x40)))
    yield patch("packed by LZMA", (at + 10, _hex(14)))
    yield patch("deflated, it says", (at + 10, _hex(8)))
    yield patch("a newer kind of zip", (at + 6, _hex(b"\xff")))
    yield patch("a symbolic link", (at + 40, _hex(0o120777)))
    yield patch("a pipe", (at + 40, _hex(0o010644)))
    yield patch("a folder by its mode", (at + 40, _hex(0o040755)))
    yield patch("no mode", (at + 40, _hex(0)))
    yield patch("another name in the header of the entry", (z.header(plan) + 30, _hex(b"q")))
    for name in (
        b"../n.json",
        b"/lan.json",
        b"pl\\n.json",
        b"plan.js\0n",
        b".lan.json",
        b"plan.jso.",
        b"plan\xff.jsn"[:9],
        b"aux.jsonn",
        b"a/../json",
        b"PLAN\xc3\xa9.js"[:9],
    ):
        yield patch(
            f"named {name.decode('latin-1')!r}", (z.header(plan) + 30, name.hex()), (at + 46, name.hex())
        )
    yield patch(
        "a name that is not listed",
        (z.header(plan) + 30, b"plam.json".hex()),
        (at + 46, b"plam.json".hex()),
    )
    golden, gat = "golden.safetensors", z.entry("golden.safetensors")
    yield patch("a name that is not UTF-8", (gat + 8, _hex(0x800)), (gat + 46, b"\xff".hex()))
    same = b"manifest.json/sig"
    yield patch("a file and a folder of one name", (z.entry(sig) + 46, same.hex()))
    upper = b"Manifest.json.sig"
    yield patch("names that differ in case", (z.entry(golden) + 46, (b"TENSORS" + b"x" * 11).hex()))
    yield patch("the signature by another name", (z.entry(sig) + 46, upper.hex()), key="right")
    twice = z.entry(values)  # the same length as the other, so that its name can be put there
    yield {
        "name": "one name twice",
        "steps": [
            step(
                "insert", "", at=z.end, hex=data[twice : twice + 46 + len(values)].hex()
            ),  # one more entry in the directory
            step(
                "replace",
                "",
                at=z.end + 46 + len(values) + 12,
                hex=(z.end - z.directory + 46 + len(values)).to_bytes(4, "little").hex(),
            ),
        ],
    }


def folder_cases() -> Iterator[dict[str, Any]]:
    """Damage to files and fields of the small bundle as a folder."""
    right = {"key": "right"}
    yield {"name": "as it is", "steps": [], **right}
    yield {"name": "as it is, without a key", "steps": []}
    yield {"name": "another key is pinned", "steps": [], "key": "other"}
    yield {"name": "unsigned", "steps": [UNSIGNED]}
    yield {"name": "unsigned, with a key", "steps": [UNSIGNED], **right}
    yield {"name": "unsigned, a signature is required", "steps": [UNSIGNED], "require": True}
    yield {"name": "signed, a signature is required", "steps": [], "require": True}
    sig = "manifest.json.sig"
    for name, change in {
        "is empty": step("write", sig, text=""),
        "is no JSON": step("write", sig, text="{"),
        "is a list": step("write", sig, text="[]"),
        "is long": step("write", sig, text=" " * 5000),
        "is of 4097 bytes": step("write", sig, text=" " * 4097),
        "has another algorithm": bad_json("algorithm", file=sig, value="rsa"),
        "has no key": bad_json("public_key", file=sig),
        "has a number as key": bad_json("public_key", file=sig, value=1),
        "has a short key": bad_json("public_key", file=sig, value="00" * 31),
        "has another key": bad_json("public_key", file=sig, value="00" * 32),
        "has a field too many": bad_json("note", file=sig, value=1),
        "has another value": bad_json("signature", file=sig, value="00" * 64),
        "has no hex": bad_json("signature", file=sig, value="zz" * 64),
        "is a folder": step("folder", sig),
    }.items():
        yield {"name": f"the signature {name}", "steps": [*([UNSIGNED] if "folder" in name else []), change]}
    yield {"name": "the signature is a link", "steps": [UNSIGNED, step("link", sig, to="plan.json")]}
    yield {
        "name": "a signed manifest with one more space",
        "steps": [step("insert", "manifest.json", at=0, hex="20")],
    }
    yield {"name": "the manifest is gone", "steps": [step("remove", "manifest.json")]}
    yield {
        "name": "the manifest is a link",
        "steps": [step("remove", "manifest.json"), step("link", "manifest.json", to="plan.json")],
    }
    yield {
        "name": "the manifest is a folder",
        "steps": [step("remove", "manifest.json"), step("folder", "manifest.json")],
    }
    for name in ("onnx/gradients.onnx", "plan.json", "tensors.safetensors"):
        yield {"name": f"{name} is gone", "steps": [step("remove", name)]}
        yield {"name": f"{name} is shorter", "steps": [step("cut", name, keep=5)]}
        yield {"name": f"{name} is longer", "steps": [step("insert", name, at=5, hex="00")]}
        yield {"name": f"{name} has another byte", "steps": [step("replace", name, at=5, hex="fe")]}
        yield {
            "name": f"{name} is a link",
            "steps": [step("remove", name), step("link", name, to="plan.json")],
        }
        yield {"name": f"{name} is a folder", "steps": [step("remove", name), step("folder", name)]}
    yield {"name": "a file that is not listed", "steps": [step("write", "more.bin", text="x")]}
    yield {"name": "a hidden file", "steps": [step("write", ".more", text="")]}
    yield {"name": "a link that is not listed", "steps": [step("link", "more", to="plan.json")]}
    yield {"name": "an empty folder that is not listed", "steps": [step("folder", "more")]}
    yield {"name": "larger than allowed", "steps": [], "max_bytes": 100}


def manifest_cases() -> Iterator[dict[str, Any]]:
    """Unsigned manifests that break the schema or its rules."""

    def text(name: str, old: str, new: str) -> dict[str, Any]:
        return {"name": name, "steps": [UNSIGNED, step("text", "manifest.json", old=old, new=new)]}

    def field(name: str, *path: str | int, **value: Any) -> dict[str, Any]:
        return {"name": name, "steps": [UNSIGNED, bad_json(*path, **value)]}

    def whole(name: str, value: str) -> dict[str, Any]:
        return {"name": name, "steps": [UNSIGNED, step("write", "manifest.json", text=value)]}

    def raw(name: str, at: int, value: str) -> dict[str, Any]:
        return {"name": name, "steps": [UNSIGNED, step("insert", "manifest.json", at=at, hex=value)]}

    for value in ("", "{", "[]", "1", "null", '"x"', "{}"):
        yield whole(f"the manifest is {value!r}", value)
    yield whole("the manifest is 101 lists", "[" * 101 + "]" * 101)
    yield whole("the manifest is 5000 lists without end", "[" * 5000)
    yield raw("with a byte order mark", 0, "efbbbf")
    yield raw("not UTF-8", 1, "ff")
    yield raw("spaces before it", 0, "20090d0a")
    yield raw("a vertical tab before it", 0, "0b")
    yield {
        "name": "in UTF-16 and of a newer schema",
        "steps": [
            UNSIGNED,
            step("write", "manifest.json", text=""),
            step(
                "insert",
                "manifest.json",
                at=0,
                hex='\ufeff{"schema_version": 2}'.encode("utf-16-le").hex(),
            ),
        ],
    }
    yield text("NaN", '"alpha": 1.5', '"alpha": NaN')
    yield text("infinity", '"alpha": 1.5', '"alpha": 1e999')
    yield text("a large number", '"alpha": 1.5', '"alpha": 1e300')
    yield text("many digits", '"alpha": 1.5', '"alpha": ' + "1" * 41)
    yield text("40 digits", '"alpha": 1.5', '"alpha": ' + "1" * 40)
    yield text("a key twice", '"rank": 2', '"rank": 2, "rank": 2')
    yield text("half of a surrogate pair", '"name": "small"', '"name": "small\\ud800"')
    yield text("a whole surrogate pair", '"name": "small"', '"name": "small\\ud83d\\ude00"')
    yield text("half of a pair as a key", '"rank": 2', '"\\udc00": 2')
    yield text("a comma too many", '"rank": 2', '"rank": 2,')
    yield text("single quotes", '"rank": 2', "'rank': 2")
    yield field("no schema_version", "schema_version")
    for number in (0, 2, 10**30, 1.0, 2.0, True, "1", "2", None):
        yield field(f"schema_version {number!r}", "schema_version", value=number)
    yield field("no kind", "kind")
    yield field("another kind", "kind", value="zip")
    yield {
        "name": "a newer schema with other fields",
        "steps": [UNSIGNED, step("write", "manifest.json", text='{"schema_version": 7, "x": 1}')],
    }
    for name in ("name", "version", "programs", "engines", "tensors", "task", "measured", "files"):
        yield field(f"no {name}", name)
        yield field(f"{name} null", name, value=None)
        yield field(f"{name} of another type", name, value=3)
    for name in (
        "frozen_sha256",
        "modules",
        "encoder",
        "tokenizer",
        "plan",
        "strategy",
        "values",
        "golden",
        "limits",
    ):
        yield field(f"no {name}", name)
        yield field(f"{name} null", name, value=None)
        yield field(f"{name} of another type", name, value=3)
    yield field("a field too many", "note", value=1)
    yield field("a field too many in a tensor", "tensors", 0, "note", value=1)
    yield field("a field too many in an entry of files", "files", "plan.json", "note", value=1)
    yield field("a name without characters", "name", value="")
    yield field("a name of 200 characters", "name", value="😀" * 200)
    yield field("a name of 201 characters", "name", value="x" * 201)
    yield field("a name with a control character", "name", value="a\nb")
    yield field("a name with DEL", "name", value="a\x7fb")
    yield field("a name with NEL", "name", value="a\x85b")
    yield field("no program", "programs", value=[])
    yield field("no engine", "engines", value={})
    yield field("an engine without files", "engines", "onnxruntime", "files", value={})
    yield field("a program called G", "programs", 0, "name", value="G")
    yield field("a program called g-1", "programs", 0, "name", value="g-1")
    yield field("a program of 65 letters", "programs", 0, "name", value="g" * 65)
    yield field("a program without outputs", "programs", 0, "outputs", value=[])
    yield field("a program without inputs", "programs", 0, "inputs", value=[])
    spec = {"name": "weight", "shape": [2, 4], "dtype": "float32"}
    yield field("an input twice", "programs", 0, "inputs", 0, value=spec)
    yield field("an output twice", "programs", 0, "outputs", 1, "name", value="loss_sum")
    yield field("bfloat16", "programs", 0, "inputs", 1, "dtype", value="bfloat16")
    for length in (-1, 1.0, "1", True, None, 2**53 + 1, 2**40):
        yield field(f"a length {length!r}", "programs", 0, "inputs", 1, "shape", 0, value=length)
    yield field("a length of 0", "programs", 0, "inputs", 1, "shape", 0, value=0)
    yield field("33 dimensions", "programs", 0, "inputs", 1, "shape", value=[1] * 33)
    yield field("32 dimensions", "programs", 0, "inputs", 1, "shape", value=[1] * 32)
    yield field("5 GiB", "programs", 0, "inputs", 1, "shape", value=[5 << 10, 1 << 18])
    yield field("a product beyond 64 bits", "programs", 0, "inputs", 1, "shape", value=[1 << 30] * 4)
    yield field(
        "an input of another shape than its tensor", "programs", 0, "inputs", 2, "shape", value=[2, 3]
    )
    yield field("an input of another dtype", "programs", 0, "inputs", 2, "dtype", value="float64")
    yield field("a gradient of no tensor", "programs", 0, "outputs", 1, "name", value="grad.b")
    yield field("a gradient of another shape", "programs", 0, "outputs", 1, "shape", value=[6])
    yield field("a gradient of an assigned tensor", "tensors", 0, "update", value="assign")
    yield field("a role that is unknown", "tensors", 0, "role", value="frozen")
    yield field("an update that is unknown", "tensors", 0, "update", value="none")
    yield field("a group without its role", "tensors", 0, "group", value="team")
    yield field("a group's role without a group", "tensors", 1, "group")
    yield field("a tensor twice", "tensors", 1, "name", value="a.lora_A")
    yield field("a module that is not listed", "tensors", 0, "module", value="lara")
    yield field("a module without a name", "tensors", 0, "module", value=None)
    yield field(
        "a module twice",
        "modules",
        value=[{"name": "lora", "kind": "lora"}, {"name": "lora", "kind": "lora"}],
    )
    yield field("a configuration that is a list", "modules", 0, "config", value=[])
    yield field("a task that is unknown", "task", "kind", value="music")
    yield field("another vocabulary", "task", "vocabulary", value=11)
    yield field("no vocabulary", "task", "vocabulary", value=None)
    yield field("a vocabulary of 0", "task", "vocabulary", value=0)
    yield field("an encoder without a kind", "encoder", "kind")
    yield field("an encoder of arrays", "encoder", value={"kind": "arrays", "batch": 2})
    yield field(
        "an encoder of arrays with a length", "encoder", value={"kind": "arrays", "batch": 2, "length": 1}
    )
    yield field("an encoder of sounds", "encoder", value={"kind": "sounds", "batch": 2})
    yield field("an encoder of other batches", "encoder", "batch", value=3)
    yield field("slots below 0", "encoder", "slots", value=-1)
    for rules in (1, 2, 3, 0, 2.0, "2", None):
        yield field(f"piece rules {rules!r}", "encoder", "rules", value=rules)
    special = {"pad": 0, "bos": 1, "eos": 2, "unk": None}
    over = {"kind": "text", "length": 4, "batch": 2, "vocabulary": 12, "subwords": special}
    yield field("subwords", "encoder", value=over)
    yield field("subwords with slots", "encoder", "subwords", value=special)
    yield field("subwords without a beginning", "encoder", value={**over, "subwords": {"pad": 0, "eos": 2}})
    yield field("subwords of a field too many", "encoder", value={**over, "subwords": {**special, "x": 1}})
    yield field("limits of 0", "limits", "max_steps", value=0)
    yield field("a limit too many", "limits", "max_rounds", value=1)
    yield field("measured below 0", "engines", "onnxruntime", "measured", "model_bytes", value=-1)
    for version in (
        "1.18",
        "1",
        "1.2.3.4",
        "1.2.3.4.5",
        "1.18.0rc1",
        "",
        "v1",
        "1.",
        "1234567.0",
        1.18,
        None,
    ):
        value = {"at_least": version, "verified": "1.20"}
        yield field(f"a runtime of {version!r}", "engines", "onnxruntime", "runtime", value=value)
    yield field("a runtime that is not known", "engines", "onnxruntime", "runtime", value=None)
    yield field(
        "a runtime that nobody verified", "engines", "onnxruntime", "runtime", value={"at_least": "1.18"}
    )
    mixed = {
        "kind": "mixed",
        "loss_scale": 64.0,
        "products": 3,
        "of_products": 4,
        "tolerance": 0.05,
        "steps": 50,
        "trained_rel_err": 0.001,
    }
    yield field("mixed precision", "engines", "onnxruntime", "precision", value=mixed)
    yield field("no precision", "engines", "onnxruntime", "precision", value=None)
    for name, wrong in (
        ("kind", "half"),
        ("loss_scale", 0),
        ("loss_scale", "64"),
        ("products", -1),
        ("products", 1.5),
        ("of_products", None),
        ("tolerance", 0.2),
        ("tolerance", 0.0),
        ("tolerance", True),
        ("steps", 0),
        ("trained_rel_err", -1e-9),
    ):
        value = {**mixed, name: wrong}
        yield field(
            f"mixed precision with {name} {wrong!r}", "engines", "onnxruntime", "precision", value=value
        )
    value = {name: entry for name, entry in mixed.items() if name != "steps"}
    yield field("mixed precision without steps", "engines", "onnxruntime", "precision", value=value)
    small = {
        "kind": "int4",
        "group": 32,
        "tensors": {"a.weight": 0.08, "é": 0},
        "loss": 2.5,
        "loss_float32": 2,
        "output_rel_err": 0.1,
    }
    yield field("weights of 4 bits", "weights", value=small)
    yield field("weights of 8 bits", "weights", value={**small, "kind": "int8", "group": None})
    yield field("weights null", "weights", value=None)
    yield field("weights of another type", "weights", value="int8")
    for name, wrong in (
        ("kind", "int5"),
        ("kind", "int8"),
        ("group", None),
        ("group", 0),
        ("group", 32.5),
        ("tensors", {}),
        ("tensors", ["a.weight"]),
        ("tensors", {"a.weight": -1e-9}),
        ("tensors", {"a.weight": "0.1"}),
        ("tensors", {"": 0.1}),
        ("loss", None),
        ("loss_float32", True),
        ("output_rel_err", -1),
        ("output_rel_err", None),
        ("note", 1),
    ):
        yield field(f"weights with {name} {wrong!r}", "weights", value={**small, name: wrong})
    yield field("weights without a loss", "weights", value={k: v for k, v in small.items() if k != "loss"})
    yield field("another total", "measured", "total_bytes", value=5)
    yield field("another length in files", "files", "plan.json", "bytes", value=5)
    yield field("a digest in capitals", "files", "plan.json", "sha256", value="AB" * 32)
    yield field("a short digest", "files", "plan.json", "sha256", value="ab")
    yield field("a digest of the backbone that is none", "frozen_sha256", value="x")
    yield field("a plan that is not listed", "plan", value="plam.json")
    yield field(
        "a program that is not listed", "engines", "onnxruntime", "files", "gradients", value="x.onnx"
    )
    for path in (
        "../plan.json",
        "/plan.json",
        "C:plan.json",
        "a\\b",
        "",
        ".",
        "a//b",
        "a/",
        "con",
        "a/NUL.txt",
        "é",
        "a b",
        "a.",
        "-a",
        "a\n",
        "x" * 101,
        "/".join("abcdefghi"),
    ):
        yield field(f"a plan at {path!r}", "plan", value=path)
    yield field("an unsafe path in an engine", "engines", "onnxruntime", "files", "gradients", value="../x")
    yield field("an unsafe path in files", "files", "../x", value={"sha256": "00" * 32, "bytes": 0})
    entry = {"sha256": "00" * 32, "bytes": 0}
    yield field("files that differ in case", "files", "PLAN.json", value=entry)
    yield field("a file and a folder", "files", "plan.json/x", value=entry)
    yield field("the manifest is listed", "files", "manifest.json", value=entry)
    yield field("a file that is missing", "files", "z.bin", value=entry)
    unsafe = bad_json("tokenizer", value="../x")
    yield {
        "name": "an unsafe path beside another fault",
        "steps": [UNSIGNED, bad_json("name", value=3), unsafe],
    }
    for name, value in {
        "a strategy without a name": {},
        "a strategy of a field too many": {"name": "x", "y": 1},
        "a strategy with a clip of 0": {"name": "x", "clip": 0},
        "a strategy with a clip as text": {"name": "x", "clip": "1"},
        "a strategy with epochs of 0": {"name": "x", "epochs": 0},
        "an optimizer that is unknown": {"name": "x", "optimizer": {"kind": "lion", "lr": 1}},
        "an optimizer without lr": {"name": "x", "optimizer": {"kind": "sgd"}},
        "an optimizer of a field too many": {"name": "x", "optimizer": {"kind": "sgd", "lr": 1, "eps": 1}},
        "an optimizer with an lr of 0": {"name": "x", "optimizer": {"kind": "sgd", "lr": 0}},
        "an optimizer with a momentum of 1": {
            "name": "x",
            "optimizer": {"kind": "momentum", "lr": 1, "momentum": 1},
        },
        "an optimizer with one beta": {"name": "x", "optimizer": {"kind": "adamw", "lr": 1, "betas": [0.9]}},
        "SGD": {"name": "x", "optimizer": {"kind": "sgd", "lr": 1, "weight_decay": 0}},
        "momentum": {"name": "x", "optimizer": {"kind": "momentum", "lr": 0.1, "nesterov": True}},
        "AdamW": {"name": "x", "optimizer": {"kind": "adamw", "lr": 0.1, "betas": [0, 0.5], "eps": 1e-3}},
        "a parameter that is null": {"name": "x", "parameters": {"p": None}, "fairness": None},
        "parameters that are null": {"name": "x", "parameters": None},
    }.items():
        yield field(name, "strategy", value=value)


def content_cases() -> Iterator[dict[str, Any]]:
    """Files that the manifest lists as they are, and which do not hold what it says."""

    def case(name: str, ask: str, file: str, *steps: Step) -> dict[str, Any]:
        return {"name": name, "ask": ask, "steps": [UNSIGNED, *steps, step("list", file)]}

    values, golden = "tensors.safetensors", "golden.safetensors"
    yield {"name": "the values as they are", "ask": "values", "steps": []}
    yield {"name": "the golden calls as they are", "ask": "golden", "steps": []}
    yield {"name": "the plan as it is", "ask": "plan", "steps": []}
    yield case("a plan that is not UTF-8", "plan", "plan.json", step("insert", "plan.json", at=1, hex="ff"))
    for ask, file in (("values", values), ("golden", golden)):
        yield case(f"listed {file} is empty", ask, file, step("write", file, text=""))
        yield case(f"listed {file} is cut", ask, file, step("cut", file, keep=60))
        yield case(f"listed {file} is one byte short", ask, file, step("drop", file, bytes=1))
        yield case(f"listed {file} is longer", ask, file, step("insert", file, at=-1, hex="00"))
        yield case(
            f"listed {file} has a header of another length", ask, file, step("replace", file, at=0, hex="ff")
        )
        yield case(f"listed {file} has a huge header", ask, file, step("replace", file, at=7, hex="80"))
        yield case(
            f"listed {file} has a dtype that is unknown",
            ask,
            file,
            step("text", file, old='"F32"', new='"F31"'),
        )
        yield case(
            f"listed {file} has another dtype", ask, file, step("text", file, old='"F32"', new='"I32"')
        )
        yield case(
            f"listed {file} has another shape", ask, file, step("text", file, old="[3,2]", new="[2,3]")
        )
        yield case(
            f"listed {file} has a shape that does not fit",
            ask,
            file,
            step("text", file, old="[3,2]", new="[3,3]"),
        )
    yield case("values: another name", "values", values, step("text", values, old="lora_A", new="lora_B"))
    entry = '{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}'
    other = '{"dtype":"F32","shape":[2],"data_offsets":[24,32]}'
    header = f'{{"a.lora_A":{entry},"a.lora_A":{entry},"é":{other}}}'.encode()
    twice = (len(header).to_bytes(8, "little") + header + bytes(32)).hex()
    yield case(
        "values: a tensor twice",
        "values",
        values,
        step("write", values, text=""),
        step("insert", values, at=0, hex=twice),
    )
    yield case(
        "golden: another program",
        "golden",
        golden,
        step("text", golden, old="in.gradients.w", new="in.Gradients.w"),
    )
    yield case(
        "golden: another input",
        "golden",
        golden,
        step("text", golden, old="in.gradients.w", new="in.gradients.v"),
    )
    empty = step("write", golden, text="")
    none = step("insert", golden, at=0, hex=tensors_to_bytes({}).hex())
    yield case("golden: no call", "golden", golden, empty, none)


def apply(steps: Sequence[Step], base: Path) -> None:
    """Do the damage to a copy of a bundle."""
    for one in steps:
        _apply(one, base, base / one["file"] if one["file"] else base)


def _apply(one: Step, base: Path, path: Path) -> None:
    match one["op"]:
        case "remove":
            path.unlink()
        case "folder":
            path.mkdir(parents=True, exist_ok=True)
        case "link":
            path.symlink_to(one["to"])
        case "write":
            path.write_text(one["text"], encoding="utf-8", newline="")
        case "cut":
            path.write_bytes(path.read_bytes()[: one["keep"]])
        case "drop":
            path.write_bytes(path.read_bytes()[: -one["bytes"]])
        case "replace":
            value, data = bytes.fromhex(one["hex"]), path.read_bytes()
            path.write_bytes(data[: one["at"]] + value + data[one["at"] + len(value) :])
        case "insert":
            value, data = bytes.fromhex(one["hex"]), path.read_bytes()
            at = len(data) if one["at"] < 0 else one["at"]
            path.write_bytes(data[:at] + value + data[at:])
        case "text":
            data = path.read_bytes()
            old, new = one["old"].encode(), one["new"].encode()
            assert old in data, (one, path)
            path.write_bytes(data.replace(old, new, 1))
        case "json":
            _edit(path, one)
        case "list":
            _list(base, one["file"])
        case other:
            raise ValueError(f"no step {other}")


def _edit(path: Path, one: Step) -> None:
    content = json.loads(path.read_bytes())
    *above, last = one["path"]
    inner = content
    for key in above:
        inner = inner[key]
    if "value" in one:
        inner[last] = one["value"]
    else:
        inner.pop(last, None)
    path.write_text(json.dumps(content), encoding="utf-8")


def _list(base: Path, file: str) -> None:
    manifest = json.loads((base / "manifest.json").read_bytes())
    data = (base / file).read_bytes()
    manifest["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["measured"]["total_bytes"] = sum(entry["bytes"] for entry in manifest["files"].values())
    (base / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def code(case: dict[str, Any], data: bytes, keys: dict[str, str], where: Path) -> str | None:
    """What Python says of a damaged bundle; None where it has nothing against it."""
    base = where / "small.pflb"
    base.write_bytes(data)
    if case["bundle"] == "small":
        folder = where / "small"
        with zipfile.ZipFile(base) as archive:
            archive.extractall(folder)
        base = folder
    apply(case["steps"], base)
    key = case.get("key")
    try:
        with Bundle.open(
            base,
            public_key=None if key is None else keys[key],
            require_signature=case.get("require", False),
            cache_dir=where,
            max_bytes=case.get("max_bytes", 4 << 30),
        ) as bundle:
            ask = {"values": bundle.values, "golden": bundle.golden, "plan": bundle.plan_json}.get(
                case.get("ask", "")
            )
            if ask is not None:
                ask()
    except PflError as error:
        return error.code
    return None


def bundle_files() -> dict[str, bytes]:
    """bundles.json and bundles/small.pflb."""
    data = small()
    keys = {
        name: public_hex(load_private_key(value).public_key())
        for name, value in (("right", SECRET), ("other", OTHER))
    }
    groups = {
        "small.pflb": list(zip_cases(data)),
        "small": [*folder_cases(), *manifest_cases(), *content_cases()],
    }
    cases = [{"bundle": bundle, **copy.deepcopy(case)} for bundle, group in groups.items() for case in group]
    for case in cases:
        where = Path(tempfile.mkdtemp())
        try:
            case["code"] = code(case, data, keys, where)
        finally:
            shutil.rmtree(where)
    names = [(case["bundle"], case["name"]) for case in cases]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = f'{{"keys": {json.dumps(keys)},\n"cases": [\n{lines}\n]}}\n'
    return {"bundles.json": text.encode(), "bundles/small.pflb": data}


def main() -> None:
    """Export the classifier of the tests for ONNX Runtime."""
    import sys

    sys.path.insert(0, str(FOLDER.parents[1]))
    from pfl_exporters.export import export_bundle
    from tests import tiny

    export_bundle(tiny.arrays(), ["onnx"], FOLDER / "arrays", sign_key=SECRET)


if __name__ == "__main__":
    main()

"""The artifact a phone gets: a folder, or the zip of it (``.pflb``), in which every byte is accounted for.

The format in a page::

    manifest.json          what is in the bundle; schema: manifest.schema.json beside this file
    manifest.json.sig      optional Ed25519 signature over the exact bytes of manifest.json
    plan.json              what a device does locally: phases, guard, seed
    tensors.safetensors    initial values of all device tensors
    golden.safetensors     calls of programs with the outputs that PyTorch gave
    tokenizer.json         for text models, in the Hugging Face format
    vocabulary.json        how the tokenizer's words were chosen from users' text; a device does not need it
    model.pte, *.onnx ...  the programs, as the entry of each engine in the manifest says

**Manifest.** ``schema_version`` (1), ``kind`` ("pfl-bundle"), ``name``, ``version``; ``programs`` with the
name, shape and dtype of each input and output, the same for every engine; ``engines`` with the files of
each; ``tensors``, those that change on the device, with role (shared, group, personal) and who writes them
(update: gradient, memorize, assign); ``modules`` and their configuration; ``task``, ``encoder``,
``tokenizer``, ``plan``, ``values``, ``golden``; ``strategy``, which ``pfl serve`` runs in rounds with the
bundle; ``limits``; ``measured``; and ``files``, the length and
sha256 of every file but the manifest and its signature. A field that the schema does not know is an error:
a reader never skips what it does not understand. A newer ``schema_version`` is reported as such before
anything else is looked at.

**Text.** The ``encoder`` of a text model says by which version of the piece rules its words were cut (``rules``;
absent in older bundles, which have 1; see ``pfl_mobile.text.pieces``); or, with ``subwords``, that the tokenizer's
file alone says how a text is cut, and which ids its special tokens have.

**Agreement.** An input of a program that has the name of a device tensor has its shape and dtype; an output
``grad.<tensor>`` is the gradient of a tensor with update "gradient"; all files named are in ``files``;
names are unique. `pfl_mobile.bundle.consistency` has these rules.

**Paths** are relative, with ``/``, of ASCII letters, digits and ``_ . + -``; no part begins with a dot, and
no two differ only in case. The bundle has no links and no file that is not listed.

**Tensor files** are safetensors, little-endian. The golden file has ``in.<program>.<input>`` and
``out.<program>.<output>``; a device tensor that a call takes is left out when it has its initial value.

**Signature file**: JSON with ``algorithm`` ("ed25519"), ``public_key`` and ``signature`` in hex. A device
pins the public key; the one in the file only helps to say whose signature it is.

**Zip**: stored or deflated, no encryption, no zip64. Programs and tensors are stored, and begin at
multiples of 16384 bytes, so that a phone can map them; small text is deflated. The manifest comes after the
files that it lists. Times are fixed, so that the same files give the same zip.

**Running** programs that nobody vouches for (`pfl_mobile.engines.isolated`): a runtime trusts the file it loads, and
a damaged one can end the process. So a reader that has not checked the signature against a pinned key loads and runs
all programs in a child process first (on Android a service with ``android:isolatedProcess``, on iOS, which has none,
only bundles with a pinned signature), with limits on time and memory, and ExecuTorch's full check of the file
(``Verification.InternalConsistency``); what ends the child is an error that names the file. The golden calls are what
is run. Programs that lived are remembered by the digest of the manifest, which has those of all files, and the
version of the runtime.

**Reading** (`Bundle.open`): signature, schema version, schema and rules, names and lengths, then the digest
of each file; a zip is unpacked into a new folder, never more bytes than the manifest says. **Writing**
(`write_bundle`): into a hidden folder or file beside the destination, which takes its place in one rename.
"""

from pfl_mobile.bundle.content import GoldenCase
from pfl_mobile.bundle.manifest import (
    SCHEMA_VERSION,
    ArrayEncoderEntry,
    BundleSizes,
    DeviceTensor,
    EngineEntry,
    FileEntry,
    Limits,
    Manifest,
    ModuleEntry,
    PrecisionEntry,
    ProgramSpec,
    RuntimeEntry,
    StrategyEntry,
    TaskEntry,
    TensorSpec,
    TextEncoderEntry,
    WeightsEntry,
    json_schema,
    parse_manifest,
)
from pfl_mobile.bundle.read import Bundle
from pfl_mobile.bundle.sign import generate_key, load_private_key, load_public_key, public_hex, sign, verify
from pfl_mobile.bundle.write import ZIP_SUFFIX, copy_bundle, write_bundle
from pfl_mobile.files.tensors import (
    check_finite,
    load_metadata,
    load_tensors,
    metadata_from_bytes,
    save_tensors,
    tensors_from_bytes,
    tensors_to_bytes,
)

__all__ = [
    "SCHEMA_VERSION",
    "ZIP_SUFFIX",
    "ArrayEncoderEntry",
    "Bundle",
    "BundleSizes",
    "DeviceTensor",
    "EngineEntry",
    "FileEntry",
    "GoldenCase",
    "Limits",
    "Manifest",
    "ModuleEntry",
    "PrecisionEntry",
    "ProgramSpec",
    "RuntimeEntry",
    "StrategyEntry",
    "TaskEntry",
    "TensorSpec",
    "TextEncoderEntry",
    "WeightsEntry",
    "check_finite",
    "copy_bundle",
    "generate_key",
    "json_schema",
    "load_metadata",
    "load_private_key",
    "load_public_key",
    "load_tensors",
    "metadata_from_bytes",
    "parse_manifest",
    "public_hex",
    "save_tensors",
    "sign",
    "tensors_from_bytes",
    "tensors_to_bytes",
    "verify",
    "write_bundle",
]

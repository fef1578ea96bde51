"""The manifest of a bundle: its schema, the rules between its fields, and how it is parsed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pfl_mobile.bundle import consistency
from pfl_mobile.bundle.paths import MANIFEST, PATH_PATTERN, check_path
from pfl_mobile.errors import (
    EngineUnavailableError,
    InvalidManifestError,
    SchemaVersionError,
    UnknownNameError,
    near,
)
from pfl_mobile.files.reading import parse_json
from pfl_mobile.plan.optimizers import Optimizer

#: The newest manifest schema that this version writes and reads.
SCHEMA_VERSION = 1

DType = Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
Role = Literal["shared", "group", "personal"]
Update = Literal["gradient", "memorize", "assign"]

FilePath = Annotated[str, AfterValidator(check_path), Field(json_schema_extra={"pattern": PATH_PATTERN})]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
ProgramName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
#: One to four numbers; what builds put behind them is left out.
Version = Annotated[str, Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]  # every language holds it exactly, JavaScript too
PositiveCount = Annotated[int, Field(ge=1, le=2**53)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorSpec(_Model):
    """An input or output of a program; the shape is fixed at export."""

    name: Name
    shape: tuple[Count, ...]
    dtype: DType


class ProgramSpec(_Model):
    """A pure function with named inputs and outputs, the same on every engine."""

    name: ProgramName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> ProgramSpec:
        consistency.unique(f"input of program {self.name!r}", (t.name for t in self.inputs))
        consistency.unique(f"output of program {self.name!r}", (t.name for t in self.outputs))
        return self


class DeviceTensor(_Model):
    """A tensor that changes on the device.

    ``update`` says who writes it: ``gradient`` the update rule, ``memorize`` a memorize phase, ``assign`` the
    host when it gives vocabulary slots to words. ``module`` is null for a tensor of the backbone itself.
    """

    name: Name
    role: Role
    group: Name | None = None
    shape: tuple[Count, ...]
    dtype: DType
    update: Update
    module: Name | None = None

    @model_validator(mode="after")
    def _group_goes_with_its_role(self) -> DeviceTensor:
        if (self.role == "group") != (self.group is not None):
            raise ValueError(
                f"tensor {self.name!r} has role {self.role!r} and group {self.group!r}; "
                "a group is named when, and only when, the role is 'group'"
            )
        return self


class ModuleEntry(_Model):
    """A module put into the backbone, with the configuration it was made from."""

    name: Name
    kind: Name
    config: dict[str, Any] = {}


class RuntimeEntry(_Model):
    """Versions of an engine's runtime: the oldest that loads the programs, and the one that they were compared with
    PyTorch on."""

    at_least: Version
    verified: Version


class PrecisionEntry(_Model):
    """What programs are that compute in fewer than 32 bits, which no gradient of a bundle does otherwise.

    ``products`` of ``of_products`` matrix products and the like compute in 16 bits, the loss is scaled by
    ``loss_scale`` inside (what comes out is not). ``tolerance`` is the largest error, relative to the largest entry of
    an output, with which a device may train; ``trained_rel_err`` how far ``steps`` steps ended from those of 32 bits,
    relative to their way.
    """

    kind: Literal["mixed"]
    loss_scale: Annotated[float, Field(gt=0, strict=True)]
    products: Count
    of_products: Count
    tolerance: Annotated[float, Field(gt=0, le=0.1, strict=True)]
    steps: PositiveCount
    trained_rel_err: Annotated[float, Field(ge=0, strict=True)]


class WeightsEntry(_Model):
    """How frozen weights are stored that have fewer than 32 bits, with which the programs compute in float32.

    ``group`` is how many numbers of ``int4`` share a scale. ``tensors`` are the weights that are stored so; the value
    is the length of the difference from the model's own weight, relative to the length of that. What it does on the
    example batch: ``loss`` and ``loss_float32``, the mean loss with them and with the model's own weights, and
    ``output_rel_err``, the length of the difference of the outputs, relative to the length of the output (null where a
    model gives no single tensor).
    """

    kind: Literal["int8", "int4"]
    group: PositiveCount | None = None
    tensors: dict[Name, Annotated[float, Field(ge=0, strict=True)]] = Field(min_length=1)
    loss: Annotated[float, Field(strict=True)]
    loss_float32: Annotated[float, Field(strict=True)]
    output_rel_err: Annotated[float, Field(ge=0, strict=True)] | None = None

    @model_validator(mode="after")
    def _a_group_goes_with_int4(self) -> WeightsEntry:
        if (self.kind == "int4") != (self.group is not None):
            raise ValueError(f"weights are {self.kind!r} with group {self.group!r}; a group goes with 'int4'")
        return self


class EngineEntry(_Model):
    """The files that one engine loads, by purpose (``model``, ``weights``), what was measured, which versions of
    the runtime load them (null where that is not known), and in what precision they compute (null: float32)."""

    files: dict[Name, FilePath] = Field(min_length=1)
    measured: dict[Name, Count] = {}
    runtime: RuntimeEntry | None = None
    precision: PrecisionEntry | None = None


class FileEntry(_Model):
    """Length and digest of a file."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class TaskEntry(_Model):
    """What the model predicts. ``vocabulary`` counts all token ids, slots included."""

    kind: Literal["tokens", "classification", "regression", "custom"]
    metrics: tuple[Name, ...] = ()
    vocabulary: PositiveCount | None = None


class Subwords(_Model):
    """Ids of the special tokens of a tokenizer of subwords; ``unk`` is null where it has none."""

    pad: Count
    bos: Count
    eos: Count
    unk: Count | None = None

    def ids(self) -> dict[str, int]:
        """By name; -1 for none."""
        return {
            "pad": self.pad,
            "bos": self.bos,
            "eos": self.eos,
            "unk": -1 if self.unk is None else self.unk,
        }


#: The newest version of the piece rules (``pfl_mobile.text.rules``) that this version writes and reads.
PIECE_RULES = 2


def _known_rules(version: int) -> int:
    if version > PIECE_RULES:
        raise SchemaVersionError(
            f"{MANIFEST} says version {version} of the piece rules; this pfl-mobile knows up to {PIECE_RULES}",
            mend="upgrade pfl-mobile, or export the bundle with the version in use here",
        )
    return version


class TextEncoderEntry(_Model):
    """Text to ``batch`` rows of ``length`` tokens, of ``vocabulary`` base words and ``slots`` own words.

    ``rules`` is the version of the piece rules that the tokenizer's words were cut by; bundles from before there were
    several do not say it, and have 1. With ``subwords`` the tokenizer's file says alone how a text is cut: there are
    no slots, and ``rules`` tells words apart in what a user blocks. ``scripts_not_served`` are the ISO 15924 codes of
    scripts in which the model is of no use, for an app to tell its users; empty where the bundle does not say.
    """

    kind: Literal["text"] = "text"
    length: PositiveCount
    batch: PositiveCount
    vocabulary: PositiveCount
    slots: Count = 0
    rules: Annotated[PositiveCount, AfterValidator(_known_rules)] = 1
    subwords: Subwords | None = None
    scripts_not_served: tuple[Annotated[str, Field(pattern=r"^[A-Z][a-z]{3}$")], ...] = ()


class ArrayEncoderEntry(_Model):
    """Examples are arrays already; ``batch`` of them go into a program."""

    kind: Literal["arrays"] = "arrays"
    batch: PositiveCount


EncoderEntry = Annotated[TextEncoderEntry | ArrayEncoderEntry, Field(discriminator="kind")]


class Limits(_Model):
    """What a device must not exceed; null means that the bundle sets no limit.

    Of more examples than `max_examples` the newest are taken. A plan that makes more optimizer steps than `max_steps`
    on the examples is not begun. Training that takes longer than `max_seconds` in one go is stopped.
    """

    max_examples: PositiveCount | None = None
    max_steps: PositiveCount | None = None
    max_seconds: PositiveCount | None = None


class StrategyEntry(_Model):
    """The strategy of the rounds that a bundle is made for, in the names that ``pfl strategies`` lists.

    Attributes:
        name: of the strategy.
        parameters: its hyper-parameters.
        fairness: how devices are weighted, by the name of a strategy that says it; None: as the strategy does.
        fairness_parameters: hyper-parameters of that.
        epochs, steps, optimizer, clip: local training, as in ``pfl_mobile.strategies.Local``.
    """

    name: Name
    parameters: dict[Name, Any] = {}
    fairness: Name | None = None
    fairness_parameters: dict[Name, Any] = {}
    epochs: PositiveCount | None = None
    steps: PositiveCount | None = None
    optimizer: Optimizer | None = None
    clip: Annotated[float, Field(gt=0)] | None = None


class BundleSizes(_Model):
    """Sizes in bytes: of all files listed, of the memory that the programs plan, and of the frozen tensors
    that the programs need, as they are stored."""

    total_bytes: Count
    planned_memory_bytes: Count | None = None
    frozen_bytes: Count | None = None


class Manifest(_Model):
    """Everything a phone must know of a bundle before it opens another file."""

    schema_version: Literal[1] = 1
    kind: Literal["pfl-bundle"] = "pfl-bundle"
    name: Name
    version: Name
    programs: tuple[ProgramSpec, ...] = Field(min_length=1)
    engines: dict[Name, EngineEntry] = Field(min_length=1)
    tensors: tuple[DeviceTensor, ...]
    frozen_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    modules: tuple[ModuleEntry, ...] = ()
    task: TaskEntry
    encoder: EncoderEntry | None = None
    tokenizer: FilePath | None = None
    plan: FilePath = "plan.json"
    strategy: StrategyEntry | None = None
    values: FilePath = "tensors.safetensors"
    golden: FilePath = "golden.safetensors"
    limits: Limits = Limits()
    weights: WeightsEntry | None = None
    measured: BundleSizes
    files: dict[FilePath, FileEntry]

    @model_validator(mode="after")
    def _fields_agree(self) -> Manifest:
        consistency.check(self)
        return self

    def program(self, name: str) -> ProgramSpec:
        """The program called ``name``; raises UnknownNameError with near names."""
        for program in self.programs:
            if program.name == name:
                return program
        mend = near(name, (p.name for p in self.programs))
        raise UnknownNameError(f"bundle {self.name!r} has no program {name!r}", mend=mend)

    def engine(self, name: str) -> EngineEntry:
        """The files of engine ``name``; raises EngineUnavailableError when the bundle has none for it."""
        if name not in self.engines:
            raise EngineUnavailableError(
                f"bundle {self.name!r} has no programs for engine {name!r}",
                mend=f"{near(name, self.engines)} Or export the model for that engine too",
            )
        return self.engines[name]

    def batch_inputs(self, program: str) -> tuple[TensorSpec, ...]:
        """The inputs of ``program`` that come from data, not from device tensors."""
        state = {t.name for t in self.tensors}
        return tuple(spec for spec in self.program(program).inputs if spec.name not in state)

    def to_json(self) -> bytes:
        """The bytes of ``manifest.json``: the same manifest always gives the same bytes."""
        values = self.model_dump(mode="json")
        if self.weights is None:
            del values["weights"]  # so that readers from before there were any take it
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check the bytes of a ``manifest.json``.

    Raises:
        SchemaVersionError: it is of a newer schema; nothing else of it is looked at.
        UnsafePathError: it names a file outside the bundle.
        InvalidManifestError: it is not JSON, or breaks the schema; the first faults are named.
    """
    return parse_document(
        data,
        Manifest,
        what=MANIFEST,
        not_one=f"{MANIFEST} is not of a bundle: it needs",
        kind="pfl-bundle",
        newest=SCHEMA_VERSION,
        values=_MOST_VALUES,
    )


M = TypeVar("M", bound=BaseModel)


def parse_document(
    data: bytes, model: type[M], *, what: str, not_one: str, kind: str, newest: int, values: int
) -> M:
    """Parse and check the bytes of a JSON document of a bundle that says its kind and schema.

    Args:
        data: of the file.
        model: the schema.
        what: it is, for messages.
        not_one: the beginning of the message for something else.
        kind: that it has to say.
        newest: the newest schema version that is read.
        values: that it has at most.

    Raises:
        SchemaVersionError: it is of a newer schema; nothing else of it is looked at.
        InvalidManifestError: it is not JSON, or breaks the schema; the first faults are named.
    """
    try:
        raw = parse_json(data, values=values)
    except ValueError as error:
        raise InvalidManifestError(f"{what} is not valid JSON: {error}", mend=_AGAIN) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is int and version > newest:
        raise SchemaVersionError(
            f"{what} has schema version {version}; this pfl-mobile reads up to {newest}",
            mend="upgrade pfl-mobile, or export the bundle with the version in use here",
        )
    if type(version) is not int or raw.get("kind") != kind:  # `true` is an int, and equal to 1
        raise InvalidManifestError(f"{not_one} an integer schema_version and kind {kind!r}", mend=_AGAIN)
    try:
        # From the bytes and not from `raw`: in strict mode only JSON input lets an array be a tuple.
        return model.model_validate_json(data, strict=True)
    except pydantic.ValidationError as error:
        raise InvalidManifestError(describe(error, what), mend=_AGAIN) from error


def describe(error: pydantic.ValidationError, what: str, limit: int = 5) -> str:
    """The first faults of a validation error in a line each, with the path of the field."""
    faults = error.errors(include_url=False, include_input=False)
    lines = [
        f"{'.'.join(str(part) for part in f['loc']) or 'as a whole'}: {f['msg']}" for f in faults[:limit]
    ]
    more = f"\n  and {len(faults) - limit} more" if len(faults) > limit else ""
    return f"{what} is not valid:\n  " + "\n  ".join(lines) + more


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ``manifest.json``; the rules between fields are in this module only."""
    schema = Manifest.model_json_schema(mode="validation")
    required = {
        "schema_version",
        "kind",
    }  # have a default for whoever writes one, must be there when it is read
    schema["required"] = [name for name in schema["properties"] if name in {*schema["required"], *required}]
    schema["$defs"] = dict(sorted(schema["$defs"].items()))
    _close(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _close(node: Any) -> None:
    """Where keys have a pattern, allow no other key (pydantic leaves that out)."""
    if isinstance(node, dict):
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for child in node.values():
            _close(child)


_AGAIN = "obtain the bundle again, or export it again"


#: Values in a manifest; one with a thousand tensors and three programs has 40,000.
_MOST_VALUES = 300_000

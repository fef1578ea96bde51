"""The error tree: every error names the thing that is wrong and the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from typing_extensions import override


class PflError(Exception):
    """Base of all errors that pfl-mobile raises on purpose.

    Args:
        message: what is wrong, naming the file, tensor, layer or value.
        mend: what the user can do about it.
    """

    #: Exit status of the commands when this error ends them.
    exit_code = 2

    def __init__(self, message: str, *, mend: str) -> None:
        self.message = shown(message)
        self.mend = shown(mend)
        super().__init__(self.message)

    @override
    def __str__(self) -> str:
        return f"{self.message}\n  mend: {self.mend}"

    @override
    def __reduce__(self) -> tuple[Callable[..., PflError], tuple[object, ...]]:
        # by its attributes, as constructors differ: errors go from one process to another
        return _again, (type(self), self.args, dict(vars(self)))

    @property
    def code(self) -> str:
        """Stable identifier for scripts, for instance ``TamperedBundleError``."""
        return type(self).__name__


def _again(kind: type[PflError], arguments: tuple[object, ...], attributes: dict[str, object]) -> PflError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error


#: Characters of a message: what a file or a server said may be a part of it, of any length.
_MOST_SHOWN = 6000
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def shown(text: str) -> str:
    """Text that a terminal and a log can show: control characters and broken surrogates as escapes, and not
    without end."""
    if len(text) > _MOST_SHOWN:
        text = f"{text[: _MOST_SHOWN - 1000]} [...] {text[-900:]}"
    return _UNSHOWN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class ConfigError(PflError):
    """A setting, plan or argument is invalid."""


class UnknownNameError(ConfigError):
    """A name (layer pattern, recipe, engine, module kind, user) matches nothing."""


class RoleConflictError(ConfigError):
    """Two patterns give one tensor different roles."""


class KeyFileError(ConfigError):
    """A signing or verification key is missing or not an Ed25519 key."""


class MissingDependencyError(PflError):
    """An optional package is not installed."""


class PluginError(PflError):
    """What another distribution adds through an entry point cannot be loaded."""


class DataError(PflError):
    """A dataset or example is missing, damaged, or not what it claims to be."""


class UnusableRowsError(DataError):
    """The rows of a user cannot be read, or a model cannot be run on them."""


class NetworkError(DataError):
    """A dataset could not be obtained from its registry."""


class TooFewUsersError(DataError):
    """What would ship is learned from fewer users than it needs, so it would give single users away."""


class OutOfVocabularyError(DataError):
    """A token id lies outside the model's vocabulary."""


class UserCodeError(ConfigError):
    """A Python file or function that the user named failed."""


class ExportError(PflError):
    """A model cannot be turned into a program."""


class UnsupportedOperatorError(ExportError):
    """The target engine has no kernel for an operator of the traced graph."""


class GradientMismatchError(ExportError):
    """An exported program disagrees with PyTorch.

    Attributes:
        program: that disagrees; empty where it is not one program.
        output: of it that differs.
        batch: on which it does.
    """

    exit_code = 1
    program = output = batch = ""


class BundleError(PflError):
    """A bundle cannot be used."""


class MissingFileError(BundleError):
    """A file that the manifest names is not there."""


class TruncatedFileError(BundleError):
    """A file is shorter or longer than the manifest says."""


class TamperedBundleError(BundleError):
    """A file's bytes are not those the manifest lists, or a file is there that it does not list."""


class NotABundleError(BundleError):
    """The path is neither the folder nor the zip of a bundle."""


class BundleTooLargeError(BundleError):
    """A bundle, or a file in it, is larger than the reader accepts."""


class UnreadableFileError(BundleError):
    """The system refuses to read a file of the bundle."""


class SchemaVersionError(BundleError):
    """The manifest has a newer schema than this version reads."""


class InvalidManifestError(BundleError):
    """The manifest is not valid JSON or breaks its schema."""


class SignatureError(BundleError):
    """The signature is missing, by another key, or does not match."""


class UnsafePathError(BundleError):
    """A path in a bundle or archive would leave its folder."""


class TensorFileError(PflError):
    """Bytes are not a valid safetensors file, or tensors cannot be stored in one."""


class NewerFileError(TensorFileError):
    """A file of a newer version of pfl-mobile."""


class UpdateFileError(TensorFileError):
    """Bytes are not a canonical update file."""


class UpdateTensorsError(UpdateFileError):
    """An update file holds other tensors than the task asks for."""


class UnwritableError(PflError):
    """A place on the disk cannot be written."""


class EngineError(PflError):
    """An engine failed to load or run a program."""


class EngineUnavailableError(EngineError):
    """The engine's runtime is not installed, or the bundle has no programs for it."""


class ProgramDiedError(EngineError):
    """A program that nobody vouches for ended the process it was tried in, or used more than it was given."""


class EngineMismatchError(EngineError):
    """The golden batch gives other numbers here than in PyTorch."""

    exit_code = 1


class TensorMismatchError(EngineError):
    """A tensor has the wrong name, shape or dtype."""


class TrainingError(PflError):
    """Local training could not go on; the state before it is kept."""


class NonFiniteError(TrainingError):
    """A loss, gradient or tensor is NaN or infinite."""


class TooManyStepsError(TrainingError):
    """A plan makes more steps on these examples than the bundle allows on a device."""


class TooSlowError(TrainingError):
    """Training took longer than the bundle allows on a device."""


class NoExamplesError(TrainingError):
    """There is nothing to train on or to evaluate with."""


class CohortFailedError(TrainingError):
    """All devices that were asked failed, round after round; the server is as it was before."""


class TrainingFailedError(TrainingError):
    """So many users failed that there is nothing to tell of the others.

    Attributes:
        failed: the users that failed, and why.
    """

    exit_code = 1
    failed: Mapping[str, str] = MappingProxyType({})


class TooFewUpdatesError(TrainingError):
    """A round has fewer updates than its merge rule needs."""


class StateError(PflError):
    """A saved personal state is damaged or belongs to another model."""


class StorageFullError(StateError):
    """The disk is full; the last good state is kept."""


class SimulationError(PflError):
    """A simulated round could not be carried out."""


class WorkerDiedError(SimulationError):
    """Processes that trained the same devices died again and again."""


class CheckpointError(SimulationError):
    """A checkpoint of rounds is damaged, or its folder is in use."""


class OtherSettingsError(ConfigError):
    """A checkpoint belongs to a run with other settings."""


class PrivacyError(PflError):
    """Something would read more of single updates than the private merge lets out."""


class PrivacyBudgetError(PflError):
    """One more round would spend more privacy than the budget allows; training ends here."""

    exit_code = 1


class LedgerError(PflError):
    """A privacy ledger is damaged, or belongs to another configuration."""


class DeviceError(PflError):
    """A device cannot take part in a federation, or no longer."""


class DeviceFolderError(DeviceError):
    """A device's folder is in use, damaged, or belongs to another federation or model."""


class UnreachableError(DeviceError):
    """The aggregator could not be reached, or the connection broke; trying again may help.

    Args:
        message: what is wrong.
        mend: what can be done.
        retry_after_s: seconds after which what answered in its place asks to try again; None where it does not say.
    """

    def __init__(self, message: str, *, mend: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, mend=mend)
        self.retry_after_s = retry_after_s


class NotTheAggregatorError(DeviceError):
    """What answers at the address is not the aggregator: waiting does not mend that, another network may."""


class CertificateError(NotTheAggregatorError):
    """The certificate of what answers does not show that it is the aggregator."""


class TlsError(NotTheAggregatorError):
    """No connection that TLS protects could be agreed on, or one side speaks TLS and the other does not."""


class RedirectedError(NotTheAggregatorError):
    """The address sends its visitors to another one; a device follows nowhere."""


class TooLargeOnTheWayError(DeviceError):
    """Something between the device and the aggregator refuses bodies of this size."""


class ProtocolError(DeviceError):
    """The aggregator's answer is not one of the protocol."""


class OtherProtocolError(ProtocolError):
    """The aggregator speaks another version of the protocol."""


#: Statuses of problems after which the same request may work later.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class ServerProblem(DeviceError):
    """A problem that the aggregator answered with (RFC 9457).

    Args:
        code: of the problem, for instance ``round-closed``.
        status: of the answer.
        message: what is wrong.
        mend: what can be done.
        retry_after_s: seconds after which the aggregator asks to try again; None where it does not say.
    """

    def __init__(
        self, code: str, status: int, message: str, *, mend: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, mend=mend)
        self.problem, self.status, self.retry_after_s = code, status, retry_after_s

    @property
    @override
    def code(self) -> str:
        return self.problem

    @property
    def passing(self) -> bool:
        """Whether the same request may work later."""
        return self.status in PASSING


def near(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Words for a mend: the known names nearest to ``name``, or all when none is near."""
    # Comparing takes the product of the lengths, for each name: what is longer than a name is not looked at, nor
    # are more names than a person gives.
    names = sorted({n for n in known if len(n) <= 200})
    close = difflib.get_close_matches(name[:200], names[:5000], n=limit, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known: {shown}" if names else "none are known"


#: Package -> extra of this distribution that brings it.
EXTRAS = {
    "torch": "torch",
    "coremltools": "ios",
    "executorch": "android",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "peft": "peft",
    "transformers": "transformers",
    "matplotlib": "report",
    "dp_accounting": "privacy",
    "alembic": "server",
    "fastapi": "server",
    "fastapi_offline": "server",
    "jinja2": "server",
    "prometheus_client": "server",
    "sqlalchemy": "server",
    "uvicorn": "server",
    "psycopg": "postgres",
    "boto3": "s3",
    "httpx2": "device",
}


def install_hint(package: str) -> str:
    """Words for a mend: how to get a package that is not installed."""
    return f"pip install 'pfl-mobile[{EXTRAS[package]}]'" if package in EXTRAS else f"install {package}"


def missing_package(error: ModuleNotFoundError, what: str) -> MissingDependencyError | None:
    """The error for an optional package that is not installed; None when it is none of ours."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return None
    return MissingDependencyError(f"{what} needs the package {package!r}", mend=install_hint(package))

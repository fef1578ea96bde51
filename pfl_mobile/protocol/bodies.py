"""The bodies of the protocol, version 1 (``server/PROTOCOL.md``). Field names are shared by all languages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Version of the protocol, first part of every path.
PROTOCOL = 1
#: ``format`` in the metadata of an update file.
UPDATE_FORMAT = "pfl-update"
#: Media type of tensor files.
SAFETENSORS = "application/vnd.safetensors"
PROBLEM_JSON = "application/problem+json"

Text = Annotated[str, Field(min_length=1, max_length=200)]
Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Base of all bodies: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BundleId(Body):
    """Which model a device has: name, version and fingerprint of its bundle (``ModelId``)."""

    name: Text
    version: Text
    fingerprint: Hex64


class FederationInfo(Body):
    """Answer of ``GET /v1/federation``; needs no credential."""

    protocol: Literal[1] = 1
    server: Text
    bundle: BundleId
    enrolment: Literal["open", "token"]
    attestation: tuple[str, ...] = Field(
        (), description="Kinds of attestation, one of which is needed; empty: none."
    )
    privacy: dict[str, Any] = Field(description="The privacy statement, see PROTOCOL.md.")
    groups: tuple[str, ...] = ()
    max_update_bytes: Count
    state: Literal["running", "paused", "finished", "spent"]


class Challenge(Body):
    """Answer of ``POST /v1/challenges``: what an attestation must be bound to."""

    challenge: Text
    expires: float = Field(description="Seconds since 1970.")


class Attestation(Body):
    """A verdict of the platform, for instance Play Integrity or App Attest."""

    kind: Text
    challenge: Text
    verdict: Annotated[str, Field(min_length=1, max_length=20_000)]


class Enrolment(Body):
    """Body of ``POST /v1/devices``."""

    bundle: BundleId
    token: Annotated[str, Field(max_length=200)] | None = None
    group: Annotated[str, Field(max_length=100)] = ""
    attestation: Attestation | None = None


class Enrolled(Body):
    """Answer to an enrolment; the credential is told once."""

    device: Id
    credential: Text


class Facts(Body):
    """What a device tells at check-in, so that it is asked only when it can; none of it identifies a person."""

    engine: Annotated[str, Field(max_length=40)] = ""
    platform: Annotated[str, Field(max_length=40)] = ""
    sdk: Annotated[str, Field(max_length=40)] = ""
    idle: bool = True
    charging: bool = True
    unmetered: bool = True
    free_bytes: Count | None = None


class CheckIn(Body):
    """Body of ``POST /v1/check-in``.

    ``examples`` is how many training examples there are, rounded down to two digits.
    """

    bundle: BundleId
    examples: Count
    facts: Facts = Facts()


class Download(Body):
    """A set of values to download from ``url``; its address is its content, so a device fetches each once."""

    sha256: Hex64
    bytes: Count
    url: Text


class TensorLayout(Body):
    """One tensor of an update."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    shape: tuple[Count, ...]


class TaskPrivacy(Body):
    """What protects the update. A device that asks for protection uploads nothing where ``mechanism`` is none."""

    mechanism: Literal["gaussian", "matrix", "local", "none"]
    clip_norm: float | None = Field(
        description="L2 norm that the device clips its whole update to; null: none."
    )
    noise_multiplier: float = Field(
        description="Of the noise that the aggregator adds, relative to clip_norm."
    )
    local_noise_multiplier: float = Field(0.0, description="Of the noise that the device adds itself.")
    statement: dict[str, Any] = Field(
        default_factory=dict,
        description="Of the version that the task begins with: what was spent before its round.",
    )
    epsilon_after: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None,
        description="Epsilon once the update is in a model, at the statement's delta; null: no guarantee.",
    )

    @property
    def guarantees(self) -> bool:
        """Whether any noise is named, so that something is promised."""
        return self.mechanism != "none"

    @property
    def trusts_aggregator(self) -> bool:
        """False where the device's own noise is all that protects."""
        return self.mechanism != "local"


class RoundTask(Body):
    """What a device is to do in a round."""

    id: Id
    round: Count
    version: Count
    plan: dict[str, Any] = Field(description="The plan of this round (plan.schema.json), with its seed.")
    sets: dict[str, Download] = Field(
        description="Values that the plan names; `global` is always among them."
    )
    layout: tuple[TensorLayout, ...] = Field(
        description="The tensors of the update, float32, in this order: sorted by the bytes of their UTF-8 names."
    )
    reports: tuple[str, ...] = Field((), description="Names of the numbers to send along (measure phases).")
    privacy: TaskPrivacy
    evaluate: bool = Field(description="Whether an evaluation report is asked for.")
    expires: float = Field(description="Seconds since 1970; later updates are refused.")
    expires_in_s: float
    update_url: Text


Reason = Literal[
    "not_selected", "full", "between_rounds", "not_eligible", "too_soon", "paused", "finished", "spent"
]


class CheckedIn(Body):
    """Answer to a check-in: a task, or when to ask again and why."""

    status: Literal["task", "wait", "done"]
    task: RoundTask | None = None
    retry_after_s: float | None = None
    reason: Reason | None = None


class LatestVersion(Body):
    """Answer of ``GET /v1/versions/latest``: the model as it is served."""

    version: Count
    round: Count | None = Field(description="The round that made it; null for version 0 and roll-backs.")
    sets: dict[str, Download] = Field(description="`global`: the shared values.")
    privacy: dict[str, Any] = Field(description="What protects those who trained it, see PROTOCOL.md.")
    created: float = Field(description="Seconds since 1970.")


class UpdateHead(Body):
    """``head`` in the metadata of an update file, as JSON.

    ``clipped``: whether clipping shortened the update. ``examples``: what it was trained on.
    """

    task: Id
    round: Count
    version: Count
    examples: Count
    steps: Count
    clipped: bool = False
    reports: dict[str, Number] = Field(default_factory=dict, max_length=64)


class UploadState(Body):
    """Answer to an upload: ``accepted`` (also when the same was sent before), or ``partial`` with what is there."""

    status: Literal["accepted", "partial"]
    task: Id
    received: Count
    duplicate: bool = False


class Decline(Body):
    """Body of ``POST /v1/tasks/{id}/decline``: the device will not send an update."""

    reason: Literal[
        "no_examples",
        "good_enough",
        "diverged",
        "cancelled",
        "privacy",
        "engine",
        "storage",
        "plan",
        "out_of_memory",
        "too_slow",
    ]


class MetricSum(Body):
    """A metric over held-out labels: its sum and how many there were, a whole number."""

    sum: Number
    weight: Annotated[float, Field(ge=1, le=1e9, multiple_of=1)]


class EvaluationReport(Body):
    """Body of ``POST /v1/tasks/{id}/evaluation``: sums over this device's held-out labels; added to others' at once.

    ``global_`` (JSON: ``global``) is measured with the shared values as sent, ``personalized`` with what serves after
    training. Both hold the same metrics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    global_: dict[str, MetricSum] = Field(alias="global", max_length=32)
    personalized: dict[str, MetricSum] = Field(max_length=32)
    adopted: bool


class ProblemBody(BaseModel):
    """An RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    mend: str
    instance: str | None = None

"""The model that a device trains: a bundle whose programs were checked on this device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from pfl_mobile.engines.compare import golden_check
from pfl_mobile.errors import EngineError, NonFiniteError, ProtocolError
from pfl_mobile.local.evaluation import model_id, text_encoder
from pfl_mobile.local.session import Programs
from pfl_mobile.local.trainer import Most
from pfl_mobile.protocol.bodies import BundleId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pfl_mobile.bundle.read import Bundle
    from pfl_mobile.engines.base import Session as EngineSession
    from pfl_mobile.local.session import Encoder, TrainingSession
    from pfl_mobile.local.state import ModelId
    from pfl_mobile.plan.select import TensorEntry


@dataclass(frozen=True)
class Model:
    """What a device can train.

    Attributes:
        id: which model it is.
        session: its programs on an engine, ``gradients`` and ``evaluate`` among them.
        tensors: the device tensors.
        initial: their shipped values.
        encoder: for examples that are texts.
        most: examples that a device keeps; None for no limit.
        work: what training must not exceed.
        engine: name of the engine.
    """

    id: ModelId
    session: TrainingSession
    tensors: Sequence[TensorEntry]
    initial: Mapping[str, np.ndarray]
    encoder: Encoder | None = None
    most: int | None = None
    engine: str = ""
    work: Most = field(default_factory=Most)

    @classmethod
    def open(cls, bundle: Bundle, session: EngineSession) -> Self:
        """Check that this engine trains as PyTorch did at the export.

        Raises:
            EngineError: there is no program ``gradients``, or no golden call of it.
            EngineMismatchError: other numbers than PyTorch's. Such a device must not train.
        """
        if "gradients" not in bundle.golden():
            raise EngineError(
                f"bundle {bundle.manifest.name!r} has no golden call of the program 'gradients', so nobody knows "
                "whether this engine trains it right",
                mend="export it again",
            )
        golden_check(bundle, session).require()
        limits = bundle.manifest.limits
        model = cls(
            model_id(bundle),
            session,
            bundle.manifest.tensors,
            bundle.values(),
            text_encoder(bundle),
            limits.max_examples,
            session.name,
            Most(limits.max_steps, limits.max_seconds),
        )
        Programs(session, [t.name for t in model.tensors])
        return model

    @property
    def bundle(self) -> BundleId:
        """As the protocol names it."""
        return BundleId(name=self.id.name, version=self.id.version, fingerprint=self.id.fingerprint)

    def most_set_bytes(self) -> int:
        """No set of values that belongs to this model has more bytes."""
        return 4 * sum(value.nbytes + 1024 for value in self.initial.values()) + (1 << 20)

    def check_set(self, name: str, values: Mapping[str, np.ndarray]) -> None:
        """Refuse values that do not belong to the model.

        Raises:
            ProtocolError: a tensor that the model does not have, or of another shape or type. One value may stand
                for a whole tensor, except in ``global``.
            NonFiniteError: a value is NaN or infinite.
        """
        shapes = {t.name: tuple(t.shape) for t in self.tensors if t.update == "gradient"}
        for tensor, value in values.items():
            fits = tensor in shapes and (
                value.shape == shapes[tensor] or (value.size == 1 and name != "global")
            )
            if not fits or value.dtype.name != "float32":
                raise ProtocolError(
                    f"the set {name!r} has a tensor {tensor!r}, {value.dtype.name} {list(value.shape)}, that this "
                    "model has not",
                    mend="update the bundle, or the aggregator's",
                )
            if not np.isfinite(value).all():
                raise NonFiniteError(f"{tensor!r} in the set {name!r} is not finite", mend="ask the operator")

"""Reads privacy configurations of version 1, which had the fields of all mechanisms side by side.

They lie in ``privacy.json`` files, in ledgers, in databases of servers and in checkpoints of studies. A field that says
something the mechanism cannot keep was refused, and is refused here; one that says nothing is left out.
"""

from __future__ import annotations

from typing import Any, Literal

from pfl_mobile.fields import Frozen, Positive, Whole
from pfl_mobile.privacy.gaussian import AdaptiveClipping
from pfl_mobile.privacy.mechanism import ClipNorm, Inside, NoiseMultiplier


class _Flat(Frozen):
    """The fields and their ranges, as they were."""

    version: Literal[1] = 1
    mechanism: Literal["gaussian", "matrix", "local", "none"] = "gaussian"
    clip_norm: ClipNorm
    noise_multiplier: NoiseMultiplier = 0.0
    adaptive: AdaptiveClipping | None = None
    sampling: Literal["poisson", "fixed", "none"] = "none"
    population: Whole | None = None
    cohort: Whole
    rounds: Whole | None = None
    min_separation: Whole = 1
    band: Whole | None = None
    max_participations: Whole | None = None
    delta: Inside = 1e-6
    budget_epsilon: Positive | None = None
    example_cap: Whole | None = None
    denominator: Positive | None = None
    local_noise_multiplier: NoiseMultiplier = 0.0


#: Fields of all mechanisms.
_SHARED = ("mechanism", "clip_norm", "cohort", "population", "rounds", "example_cap", "denominator")
#: Others by mechanism.
_OWN = {
    "gaussian": ("noise_multiplier", "local_noise_multiplier", "adaptive", "delta", "budget_epsilon"),
    "matrix": ("noise_multiplier", "local_noise_multiplier", "band", "delta", "budget_epsilon"),
    "local": ("local_noise_multiplier", "delta", "budget_epsilon"),
    "none": (),
}
#: Why a field that says something goes with no mechanism but its own.
_FOREIGN = {
    "noise_multiplier": "the aggregator adds no noise; set noise_multiplier to 0",
    "local_noise_multiplier": "devices add no noise; set local_noise_multiplier to 0",
    "adaptive": "it needs one clip norm for all rounds, so clipping cannot be adaptive; remove adaptive",
    "band": "its noise is independent; remove band",
    "budget_epsilon": "it guarantees nothing, so budget_epsilon cannot be kept; remove it",
}


def as_version_2(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of version 2 that say the same; those of version 2 go through.

    Args:
        fields: JSON values. Without a version they are of version 1, as they always were, unless they have a field
            that only version 2 has.

    Raises:
        ValueError: the version or a field is unknown, or out of range, or says what the mechanism cannot keep.
    """
    version = fields.get("version", 2 if "participation" in fields else 1)
    if version == 2:
        return fields
    if version != 1:
        raise ValueError(f"its version is {version!r}, and 1 and 2 are known here; update pfl-mobile")
    flat = _Flat.model_validate(fields)  # the values go on as they are: who reads says how strictly
    kept = {*_SHARED, *_OWN[flat.mechanism]}
    for name, why in _FOREIGN.items():
        if name not in kept and fields.get(name) not in (0, None):
            raise ValueError(f"the mechanism {flat.mechanism!r} does not go with {name}: {why}")
    values = {name: 0.0 for name in kept if name.endswith("noise_multiplier")}
    values |= {name: fields[name] for name in fields if name in kept}
    return {"version": 2, "mechanism": flat.mechanism, "participation": _participation(flat, fields)} | values


def _participation(flat: _Flat, fields: dict[str, Any]) -> dict[str, Any]:
    """Who may take part, in the fields of version 2."""
    limits = {name: fields[name] for name in ("min_separation", "max_participations") if name in fields}
    if flat.sampling == "none":
        return {"sampling": "none"} | limits
    if flat.mechanism in ("matrix", "local"):
        raise ValueError(f"the mechanism {flat.mechanism!r} uses no sampling: set sampling to 'none'")
    if (flat.min_separation, flat.max_participations) != (1, None):
        raise ValueError(
            f"with sampling {flat.sampling!r} any device can be drawn in any round, so min_separation and "
            "max_participations cannot hold; remove them, or set sampling to 'none'"
        )
    return {"sampling": flat.sampling}

"""What a server does, in words for who starts it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pfl_mobile.federation.bundle_plan import BUNDLE
from pfl_mobile.privacy.plan import noise_to_update
from pfl_server.storage.database import shown
from pfl_server.storage.models import Federation, Version

if TYPE_CHECKING:
    from pfl_mobile.bundle.manifest import StrategyEntry
    from pfl_server.federation.config import FederationConfig
    from pfl_server.services import Services


def summary(services: Services, url: str) -> dict[str, Any]:
    """The effective settings by name: what is trained, by which rules, where everything lies, who may do what.

    Args:
        services: of the server.
        url: where it answers.
    """
    settings, config = services.settings, services.runtime.config
    admin = services.admin_token is not None
    with services.database.read() as session:
        row = session.get_one(Federation, 1)
        statement = session.get_one(Version, row.version).privacy
    rounds = config.rounds
    return {
        "url": url,
        "bundle": f"{row.bundle_name} {row.bundle_version} ({row.fingerprint[:12]})",
        "state": f"{row.state}, model version {row.version}, next round {row.next_round}",
        "strategy": _strategy(services.runtime.said, of_bundle=config.strategy.name == BUNDLE),
        "merge rule": _named(config.rule.name, config.rule.parameters),
        "rounds": f"{rounds.mode}, {rounds.total or 'without end'}, {rounds.deadline_s:g} s each",
        "cohort": f"{rounds.cohort}, at least {rounds.minimum}",
        "weights": _weights(services),
        "privacy": _protection(config, statement),
        "noise": _noise(services),
        "database": shown(services.database.url),
        "files": services.blobs.place.partition("?")[0],
        "processes": settings.processes,
        "enrolment": "open to any device"
        if settings.enrolment == "open"
        else "with a token that an admin issues",
        "attestation": ", ".join(services.attestation.kinds) if services.attestation else "none",
        "admin": "token set" if admin else "off: no PFL_ADMIN_TOKEN",
        "dashboard": settings.access("dashboard", admin=admin),
        "metrics": settings.access("metrics", admin=admin),
    }


def noise_ratio(services: Services) -> float:
    """Norm of the noise in the mean of a round, in clip norms, which no mean of updates is longer than."""
    return noise_to_update(services.runtime.config.privacy, services.runtime.width)


def _noise(services: Services) -> str:
    width, ratio = services.runtime.width, noise_ratio(services)
    return f"{ratio:.3g} clip norms in a round's mean of {width} values" if ratio else "none"


def _weights(services: Services) -> str:
    """How much one device counts at most."""
    runtime = services.runtime
    config, cap = runtime.config, runtime.config.privacy.example_cap
    if runtime.definition.central:
        return (
            f"at most 1 in a sum, at {cap} examples" if cap else "at most 1 in a sum, whatever a device names"
        )
    return (
        f"a device counts for at most {runtime.definition.most_examples} examples, and for at most "
        f"{config.rounds.max_part:g} equal shares of a mean or half of it"
    )


def _protection(config: FederationConfig, statement: dict[str, Any]) -> str:
    privacy, total = config.privacy, config.rounds.total
    if not privacy.guarantees:
        return f"no noise; updates are clipped to {privacy.clip_norm:g}"
    stop = f"at most epsilon {privacy.budget_epsilon:g}" if privacy.budget_epsilon else "no budget"
    spent = statement.get("epsilon")
    planned = f", for {privacy.rounds} rounds" if privacy.rounds not in (None, total) else ""
    return "; ".join(
        (
            str(statement.get("mechanism", privacy.mechanism)),
            f"{stop} at delta {privacy.delta:g}, {f'{spent:.3g}' if spent else 'nothing'} spent",
            f"sampling {privacy.sampling}",
            f"clip norm {privacy.clip_norm:g}, noise multiplier {privacy.noise_multiplier:.3g}{planned}",
        )
    )


def _strategy(said: StrategyEntry, *, of_bundle: bool) -> str:
    if said.name == BUNDLE:
        text = "the bundle's plan, merged by federated averaging"
    else:
        text = _named(said.name, said.parameters) + (", as the bundle says" if of_bundle else "")
    fair = "" if said.fairness is None else f"; fairness {_named(said.fairness, said.fairness_parameters)}"
    return text + fair


def _named(name: str, values: dict[str, Any]) -> str:
    return f"{name} {json.dumps(values)}" if values else name

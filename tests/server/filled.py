"""A federation with a history, written straight into the database: 30 rounds, groups, refusals, a roll-back."""

from __future__ import annotations

import hashlib
import random
import secrets
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from pfl_mobile.privacy import Matrix, Unsampled
from pfl_mobile.privacy.statement import statement
from pfl_server.federation.config import EvaluationConfig, FederationConfig, RoundsConfig
from pfl_server.services import Services
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EnrolledDevice,
    EnrolmentToken,
    EvaluationSum,
    Federation,
    LedgerEntry,
    Refusal,
    Round,
    Version,
)

#: Groups by their share of the devices, and how much worse they fare.
GROUPS = {
    "english": (0.46, 0.0),
    "deutsch": (0.24, 0.02),
    "français": (0.18, 0.035),
    "føroyskt": (0.12, 0.08),
}
COHORT, ROUND_S = 50, 640.0
_REFUSED = ("update-not-finite", "update-too-large", "wrong-tensors")
_DECLINED = ("no_examples", "too_slow", "out_of_memory", "diverged")


def filled_config(**changes: Any) -> FederationConfig:
    """Groups, and noise that assumes nothing about sampling, with a budget."""
    values: dict[str, Any] = {
        "rounds": RoundsConfig(cohort=COHORT, minimum=20, total=100),
        "privacy": Matrix(
            clip_norm=1.0,
            noise_multiplier=4.0,
            cohort=COHORT,
            rounds=100,
            delta=1e-6,
            budget_epsilon=8.0,
            participation=Unsampled(min_separation=8),
        ),
        "evaluation": EvaluationConfig(min_devices=3),
        "groups": tuple(GROUPS),
    }
    return FederationConfig(**(values | changes))


def fill(
    services: Services, rounds: int = 30, devices: int = 600, *, cohort: int = COHORT, seed: int = 0
) -> None:
    """Write ``rounds`` merged, failed and abandoned rounds, and one that is open.

    The state of version 0 stands for the state of every version.
    """
    rng, now = random.Random(seed), services.clock()
    start = now - rounds * ROUND_S - 420.0
    with services.database.write() as session:
        federation = session.get_one(Federation, 1)
        ids = _devices(session, rng, devices, start, now)
        version = federation.version
        for number in range(rounds):
            opened = start + number * ROUND_S
            version = _round(session, services, rng, number, version, opened, ids, cohort)
            if number == rounds // 2 and version > 3:
                version = _roll_back(session, version, version - 3, opened + ROUND_S - 20)
        _open_round(session, rng, rounds, version, now, ids, cohort)
        session.flush()
        federation.version, federation.next_round, federation.next_index = version, rounds + 1, devices
        for code, count in (
            ("rate-limited", 112),
            ("unauthorized", 9),
            ("other-bundle", 41),
            ("enrolment-refused", 3),
        ):
            session.add(Refusal(round=-1, code=code, count=count))
        _tokens(session, now)


def _devices(
    session: Session, rng: random.Random, count: int, start: float, now: float
) -> list[tuple[str, str]]:
    rows = []
    for index in range(count):
        state = "active" if rng.random() < 0.93 else rng.choice(["left", "left", "revoked"])
        group = rng.choices(list(GROUPS), [share for share, _ in GROUPS.values()])[0]
        seen = now - rng.expovariate(1 / 50_000)
        rows.append(
            {
                "id": f"{rng.getrandbits(128):032x}",
                "index": index,
                "secret_sha256": "0" * 64,
                "state": state,
                "group": "" if state == "left" else group,
                "facts": {"platform": rng.choice(["android", "ios"]), "sdk": "0.1.0", "engine": "executorch"},
                "attestation": "",
                "last_round": -1,
                "enrolled": start - rng.random() * 1e6,
                "seen": seen,
            }
        )
    session.execute(insert(EnrolledDevice), rows)
    return [(str(row["id"]), str(row["group"])) for row in rows if row["state"] == "active"]


def _assign(
    rng: random.Random,
    number: int,
    base: int,
    opened: float,
    ids: list[tuple[str, str]],
    accepted: int,
    *,
    over: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a round's tasks, and the groups of the devices whose update was accepted."""
    invited = rng.sample(ids, min(len(ids), int(accepted * 1.3) + 4))
    rows: list[dict[str, Any]] = []
    groups = []
    for place, (device, group) in enumerate(invited):
        at = opened + rng.random() * 100
        row: dict[str, Any] = {
            "id": f"{rng.getrandbits(128):032x}",
            "round": number,
            "device": device,
            "base": base,
            "sets": {},
            "assigned": at,
            "expires": opened + 600,
            "downloaded": at + 3,
            "finished": at + 60,
            "reports": {},
            "evaluated": False,
            "state": "merged" if over else "accepted",
            "reason": None,
            "norm": None,
        }
        draw = rng.random()
        if place < accepted:
            groups.append(group)
            row |= {"norm": rng.lognormvariate(0, 0.4), "evaluated": True}
        elif draw < 0.18:
            row |= {"state": "refused", "reason": rng.choice(_REFUSED)}
        elif draw < 0.45:
            row |= {"state": "declined", "reason": rng.choice(_DECLINED)}
        else:
            row |= {"state": "expired" if over else "assigned", "finished": None}
            row["downloaded"] = row["downloaded"] if rng.random() < 0.6 else None
        rows.append(row)
    return rows, groups


def _round(
    session: Session,
    services: Services,
    rng: random.Random,
    number: int,
    base: int,
    opened: float,
    ids: list[tuple[str, str]],
    cohort: int,
) -> int:
    """One round that is over; returns the version that is served after it."""
    state = {7: "abandoned", 19: "failed"}.get(number, "merged")
    accepted = 14 if state == "abandoned" else min(cohort, len(ids))
    rows, groups = _assign(rng, number, base, opened, ids, accepted, over=True)
    result = None
    newest = session.scalars(select(Version).order_by(Version.number.desc()).limit(1)).one()
    if state == "merged":
        result = newest.number + 1
    else:
        for row in rows:
            row["state"] = "discarded" if row["state"] == "merged" else row["state"]
    error = {
        "abandoned": "14 updates by the deadline, 20 are needed",
        "failed": "the mean of the updates is not finite",
    }.get(state)
    summary = {
        "updates": accepted,
        "weight": float(accepted),
        "median_norm": 0.97,
        "largest_norm": 3.1,
        "clipped": 0.48,
    }
    session.add(
        Round(
            number=number,
            state=state,
            base=base,
            result=result,
            plan={},
            seed=number,
            sets={},
            clip_norm=1.0,
            selection=None,
            target=cohort,
            minimum=20,
            most=None,
            opened=opened,
            deadline=opened + 600,
            closed=opened + 300 + rng.random() * 300,
            lease_owner=None,
            lease_until=0.0,
            error=error,
            summary=summary if state == "merged" else {},
        )
    )
    session.flush()
    session.execute(insert(Assignment), rows)
    for code in _REFUSED:
        found = sum(row["reason"] == code for row in rows)
        if found:
            session.add(Refusal(round=number, code=code, count=found + rng.randrange(2)))
    if result is None:
        return base
    config = services.runtime.config.privacy
    epsilon = 1.9 + 0.75 * result**0.5
    session.add(
        Version(
            number=result,
            round=number,
            parent=base,
            state_blob=newest.state_blob,
            values_sha256=newest.values_sha256,
            values_bytes=newest.values_bytes,
            privacy=statement(config, result, epsilon, "dp-accounting"),
            created=opened + 602,
        )
    )
    session.add(LedgerEntry(round=number, event={"kind": "matrix"}, epsilon=epsilon, created=opened + 602))
    _evaluations(session, rng, base, number, groups)
    session.flush()
    return result


def _evaluations(session: Session, rng: random.Random, version: int, number: int, groups: list[str]) -> None:
    quality = 0.34 + 0.17 * (1 - 0.9**number)
    sums: dict[tuple[str, str, str], list[float]] = {}
    for group in groups:
        for metric, shift in (("top3", 0.0), ("top1", -0.13), ("loss", 0.0)):
            weight = rng.randint(40, 160)
            shared = quality + shift - GROUPS[group][1] + rng.gauss(0, 0.03)
            own = shared + 0.05 + rng.gauss(0, 0.05)
            if metric == "loss":
                shared, own = 4.2 - 3 * shared, 4.2 - 3 * own
            for place in ("", group):
                for kind, value in (("global", shared), ("personalized", own)):
                    row = sums.setdefault((kind, place, metric), [0.0, 0.0, 0, 0, 0, 0])
                    better = (own < shared) == (metric == "loss")
                    row[0] += value * weight
                    row[1] += weight
                    row[2] += 1
                    if kind == "personalized":
                        row[3] += better
                        row[4] += not better
                        row[5] += better
    there = {
        (found.kind, found.group, found.metric): found
        for found in session.scalars(select(EvaluationSum).where(EvaluationSum.version == version))
    }
    for (kind, place, metric), (total, weight, devices, better, worse, adopted) in sums.items():
        found = there.get((kind, place, metric))
        if found is None:
            found = EvaluationSum(
                version=version,
                kind=kind,
                group=place,
                metric=metric,
                total=0.0,
                weight=0.0,
                devices=0,
                better=0,
                worse=0,
                adopted=0,
            )
            session.add(found)
        found.total += total
        found.weight += weight
        found.devices += int(devices)
        found.better += int(better)
        found.worse += int(worse)
        found.adopted += int(adopted)


def _roll_back(session: Session, served: int, to: int, at: float) -> int:
    newest, old = session.get_one(Version, served), session.get_one(Version, to)
    session.add(
        Version(
            number=served + 1,
            round=None,
            parent=to,
            state_blob=old.state_blob,
            values_sha256=old.values_sha256,
            values_bytes=old.values_bytes,
            privacy=newest.privacy,
            created=at,
            note=f"rolled back to version {to}: føroyskt got worse",
        )
    )
    session.add(
        AuditEntry(
            at=at,
            actor="admin (dashboard)",
            action="roll-back",
            detail={"to": to, "version": served + 1, "note": "føroyskt got worse"},
        )
    )
    session.flush()
    return served + 1


def _open_round(
    session: Session,
    rng: random.Random,
    number: int,
    base: int,
    now: float,
    ids: list[tuple[str, str]],
    cohort: int,
) -> None:
    opened = now - 350
    accepted = min(int(cohort * 0.62), len(ids))
    rows, groups = _assign(rng, number, base, opened, ids, accepted, over=False)
    session.add(
        Round(
            number=number,
            state="open",
            base=base,
            result=None,
            plan={},
            seed=number,
            sets={},
            clip_norm=1.0,
            selection=None,
            target=cohort,
            minimum=20,
            most=None,
            opened=opened,
            deadline=now + 250,
            closed=None,
            lease_owner=None,
            lease_until=0.0,
            error=None,
            summary={},
        )
    )
    session.flush()
    session.execute(insert(Assignment), rows)
    _evaluations(session, rng, base, number, groups)


def _tokens(session: Session, now: float) -> None:
    for note, group, uses, expires in (
        ("Android beta", "english", 200, now + 30 * 86400),
        ("Faroese testers", "føroyskt", None, None),
        ("lab phones", "", 3, now - 86400),
    ):
        session.add(
            EnrolmentToken(
                id=secrets.token_hex(16),
                sha256=hashlib.sha256(note.encode()).hexdigest(),
                note=note,
                group=group,
                uses_left=uses,
                expires=expires,
                created=now - 5 * 86400,
            )
        )

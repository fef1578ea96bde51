"""The one row of the federation, and its open round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from pfl_server.storage.models import AuditEntry, Federation, Round

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


#: States of a round that is not over.
ACTIVE = ("open", "closing", "merging")


#: Who acts in the audit log where nobody does.
ITSELF = "aggregator"


#: Seconds after the end of a task in which its round still counts as recent.
SLACK_S = 3600.0


def pause_itself(session: Session, federation: Federation, now: float, note: str) -> None:
    """Pause a locked federation that is running, with the reason in the audit log, from where it is shown."""
    if federation.state == "running":
        federation.state = "paused"
        session.add(AuditEntry(at=now, actor=ITSELF, action="pause", detail={"note": note}))


def open_round(session: Session) -> Round | None:
    """The round that takes updates now."""
    return session.scalars(
        select(Round).where(Round.state == "open").order_by(Round.number.desc()).limit(1)
    ).first()

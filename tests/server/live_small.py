"""A real server on the small bundle, for tests that kill or flood it.

``python -m tests.server.live_small FOLDER PORT [SECONDS OF A ROUND]``
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import uvicorn

from pfl_mobile.bundle import Bundle
from pfl_server.app import create_app
from pfl_server.rounds import coordinator
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.web.connection import BoundedHttp
from tests.server.basics import GENEROUS
from tests.server.testbed import federation_config

#: So that a test need not wait long until another process takes over.
LEASE_S = 0.6


def main(folder: Path, port: int, deadline_s: float = 5.0) -> None:
    coordinator.LEASE_S, coordinator.PERIOD_S = LEASE_S, 0.02
    settings = ServerSettings(
        bundle=folder / "bundle", data=folder / "data", enrolment="open", limits=GENEROUS, dashboard="off"
    )
    config = federation_config(
        rounds={"cohort": 3, "minimum": 2, "over_selection": 1.5, "deadline_s": deadline_s, "total": 10**6}
    )
    with Bundle.open(folder / "bundle") as bundle:
        services = Services.open(settings, bundle, config)
        uvicorn.run(
            create_app(services),
            host="127.0.0.1",
            port=port,
            log_level="error",
            access_log=False,
            http=partial(BoundedHttp, limits=settings.limits),  # type: ignore[arg-type]
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

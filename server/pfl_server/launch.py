"""A server as processes: one that does everything, or several workers on one socket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from pfl_mobile.bundle.read import Bundle
from pfl_mobile.errors import ConfigError, PflError, TamperedBundleError
from pfl_server.clock import SteadyClock, elapsed
from pfl_server.counting import logs
from pfl_server.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi import FastAPI

    from pfl_server.federation.config import FederationConfig
    from pfl_server.services import Services

log = logging.getLogger("pfl_server")

#: Environment variable with the settings of workers.
_SETTINGS = "PFL_SERVER_SETTINGS"
#: Environment variable with the time that workers share (`SteadyClock.began`).
_CLOCK = "PFL_SERVER_CLOCK"
#: Seconds after which a connection without requests ends; more than load balancers keep theirs.
_KEEP_ALIVE_S = 75
#: Seconds after which a worker that does not answer its supervisor is replaced.
_WORKER_TIMEOUT_S = 60


def stored_config(settings: ServerSettings) -> FederationConfig | None:
    """What the federation in the database of ``settings`` is; None where there is none. The database is migrated.

    Raises:
        DatabaseError: it cannot be reached.
        ConfigError: what is stored is invalid.
    """
    from pfl_server.federation.config import FederationConfig
    from pfl_server.storage.database import Database
    from pfl_server.storage.models import Federation

    database = Database(settings.database_url)
    try:
        database.migrate()
        with database.read() as session:
            found = session.get(Federation, 1)
            return None if found is None else FederationConfig.load(json.dumps(found.config))
    finally:
        database.close()


def open_bundle(settings: ServerSettings) -> Bundle:
    """The bundle that is trained, checked: signed by the key that ``settings`` name, and in a worker the same one.

    Raises:
        BundleError: as ``Bundle.open``; it is another one than at the start.
        KeyFileError: the key is none.
    """
    bundle = Bundle.open(settings.bundle, public_key=settings.public_key)
    if settings.manifest_sha256 not in (None, _manifest_sha256(bundle)):
        bundle.close()
        raise TamperedBundleError(
            f"{settings.bundle} is not the bundle that the server was started with",
            mend="put it back, or stop the server and start it with the new one",
        )
    return bundle


def _manifest_sha256(bundle: Bundle) -> str:
    return hashlib.sha256(bundle.manifest_bytes).hexdigest()


def listen(settings: ServerSettings) -> socket.socket:
    """The socket that the server answers on; with port 0 the system chooses one.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, proto)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}",
            mend="choose another with --host and --port, or stop what uses it",
        ) from error
    found.set_inheritable(True)
    return found


def url(settings: ServerSettings, listening: socket.socket) -> str:
    """Where the server answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http{'s' if settings.tls_cert else ''}://{host}:{listening.getsockname()[1]}"


def run(settings: ServerSettings, bundle: Bundle, services: Services, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C: running requests are finished, then the coordinator, then the database.

    Args:
        settings: of this server.
        bundle: of `open_bundle`; workers open no other.
        services: opened; closed when this returns.
        listening: of `listen`.
    """
    # uvicorn raises the signal again once it has stopped; a server that was asked to stop and did has not failed
    with _handled(signal.SIGTERM), listening:
        if settings.processes == 1:
            from pfl_server.app import create_app

            _serve(settings, create_app(services), listening)
            return
        services.close()
        pinned = {"manifest_sha256": _manifest_sha256(bundle)}
        _supervise(settings.model_copy(update=pinned), listening, services.clock)


def worker() -> FastAPI:
    """The application of a worker process; called by uvicorn. What the first process checked is checked again."""
    from pfl_server.app import create_app
    from pfl_server.services import Services

    logs.set_up()
    settings = ServerSettings.model_validate_json(os.environ[_SETTINGS])
    clock = SteadyClock(float(os.environ[_CLOCK]))
    try:
        return create_app(Services.open(settings, open_bundle(settings), clock=clock))
    except PflError as error:
        log.error("a worker cannot start: %s (%s)", error.message, error.mend)
        raise SystemExit(1) from error


def _serve(settings: ServerSettings, app: FastAPI, listening: socket.socket) -> None:
    server = uvicorn.Server(_config(settings, app))
    server.run(sockets=[listening])
    if not server.started:  # the reason is in the logs
        raise SystemExit(1)


def _supervise(settings: ServerSettings, listening: socket.socket, clock: Callable[[], float]) -> None:
    from pfl_server.counting.metrics import FOLDER

    began = repr(clock() - elapsed())
    with (
        tempfile.TemporaryDirectory(prefix="pfl-metrics-") as folder,
        _environment({_SETTINGS: settings.model_dump_json(), _CLOCK: began, FOLDER: folder}),
    ):
        config = _config(settings, "pfl_server.launch:worker", workers=settings.processes)
        Multiprocess(config, sockets=[listening]).run()


def _config(settings: ServerSettings, app: FastAPI | str, workers: int | None = None) -> uvicorn.Config:
    from pfl_server.web.connection import BoundedHttp

    return uvicorn.Config(
        app,
        http=partial(BoundedHttp, limits=settings.limits, trusted=settings.trust_proxy),  # type: ignore[arg-type]
        factory=isinstance(app, str),
        workers=workers,
        log_config=None,
        access_log=False,  # `middleware.Observe` writes one without addresses
        server_header=False,
        ws="none",
        proxy_headers=bool(settings.trust_proxy),
        forwarded_allow_ips=list(settings.trust_proxy),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.shutdown_s),
        timeout_worker_healthcheck=_WORKER_TIMEOUT_S,
    )


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _handled(number: signal.Signals) -> Iterator[None]:
    ignore: Callable[[int, object], None] = lambda _number, _frame: None  # noqa: E731
    before = signal.signal(number, ignore)
    try:
        yield
    finally:
        signal.signal(number, before)

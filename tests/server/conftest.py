"""Servers for tests: in the process with a clock that stands still, and real ones on a port."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
import uvicorn
from starlette.testclient import TestClient

from pfl_mobile.bundle import Bundle
from pfl_mobile.privacy import NoNoise
from pfl_server.app import create_app
from pfl_server.federation.config import FederationConfig, RoundsConfig
from pfl_server.identity import credentials
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.database import Database
from pfl_server.storage.models import EnrolmentToken
from pfl_server.web.connection import BoundedHttp
from tests import tiny
from tests.server.basics import ADMIN_TOKEN, GENEROUS, Clock, free_port

if TYPE_CHECKING:
    from tests.conftest import Export

#: Tests that need a service of the system fail, instead of being skipped, where it is missing.
REQUIRED = os.environ.get("PFL_REQUIRE_SERVICES") == "1"


def missing(what: str) -> None:
    """Skip the test because ``what`` is not there; fail where all services must be."""
    if REQUIRED:
        pytest.fail(f"{what} is missing, and PFL_REQUIRE_SERVICES=1")
    pytest.skip(f"{what} is missing")


@dataclass
class Server:
    """An application in this process, and a client of it.

    The coordinator does not run by itself: tests call its ``step``.
    """

    services: Services
    client: TestClient
    clock: Clock
    admin: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {ADMIN_TOKEN}"})

    @property
    def bundle_id(self) -> dict[str, str]:
        return dict(self.client.get("/v1/federation").json()["bundle"])

    def enrol(self, group: str = "", **more: Any) -> dict[str, str]:
        """A new device: its headers, with its id under ``device``."""
        answer = self.client.post("/v1/devices", json={"bundle": self.bundle_id, "group": group} | more)
        assert answer.status_code == 201, answer.text
        return {"Authorization": f"Bearer {answer.json()['credential']}"}

    def token(self, **values: Any) -> str:
        """A new enrolment token."""
        token, digest = credentials.new_enrolment_token()
        values = {"id": credentials.new_id(), "sha256": digest, "created": self.clock()} | values
        with self.services.database.write() as session:
            session.add(EnrolmentToken(**values))
        return token


def device_of(headers: dict[str, str]) -> str:
    """The id of the device that these headers are of."""
    found = credentials.parse_credential(headers["Authorization"].removeprefix("Bearer "))
    assert found is not None
    return found[0]


@pytest.fixture(scope="session")
def empty_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and no rows, as ``migrate`` makes it."""
    path = tmp_path_factory.mktemp("tables") / "empty.db"
    made = Database(f"sqlite:///{path}")
    made.migrate()
    made.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name], "all of it is in the one file"
    return path


@pytest.fixture(autouse=True)
def migrated_once(empty_tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New SQLite files are copies of one that was migrated: 0.2 ms in place of 40 ms.

    Every other database is migrated as ever; a module that tests this overrides the fixture.
    """
    migrate = Database.migrate

    def copy_or_migrate(self: Database) -> None:
        path = Path(self.url.database or "")
        if self.is_sqlite and path.stat().st_size == 0:  # it is made with the modes that it keeps
            shutil.copyfile(empty_tables, path)
        else:
            migrate(self)

    monkeypatch.setattr(Database, "migrate", copy_or_migrate)


@pytest.fixture(scope="session")
def federated_folder(exported: Export) -> Path:
    """A bundle for the torch engine with shared tensors; do not change it."""
    return exported("federated", tiny.federated, ["torch"])


@pytest.fixture
def federated_bundle(federated_folder: Path) -> Iterator[Bundle]:
    with Bundle.open(federated_folder) as bundle:
        yield bundle


def config_of(**changes: Any) -> FederationConfig:
    """Rounds of two devices without noise."""
    values: dict[str, Any] = {
        "rounds": RoundsConfig(cohort=2, minimum=1, total=10),
        "privacy": NoNoise(clip_norm=10.0, cohort=2, rounds=10),
    }
    return FederationConfig(**(values | changes))


@pytest.fixture
def federation_config() -> FederationConfig:
    """Of the servers in tests; override it in a module or class for another one."""
    return config_of()


@pytest.fixture
def settings(tmp_path: Path, federated_folder: Path) -> ServerSettings:
    """Of the servers in tests; override it for other ones."""
    return ServerSettings(
        bundle=federated_folder, data=tmp_path / "data", enrolment="open", limits=GENEROUS, dashboard="admin"
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(
    settings: ServerSettings, federated_bundle: Bundle, federation_config: FederationConfig, clock: Clock
) -> Iterator[Services]:
    """Services without an application."""
    found = Services.open(settings, federated_bundle, federation_config, clock=clock, admin_token=ADMIN_TOKEN)
    yield found
    found.close()


@pytest.fixture
def server(opened: Services, clock: Clock) -> Iterator[Server]:
    """An application with SQLite and local files; errors become answers, as they do for a real client."""
    client = TestClient(create_app(opened, coordinate=False), raise_server_exceptions=False)
    with client:
        yield Server(opened, client, clock)


@contextlib.contextmanager
def serving(services: Services, *, coordinate: bool = True) -> Iterator[str]:
    """A real HTTP server in a thread; its URL."""
    port = free_port()
    running = uvicorn.Server(
        uvicorn.Config(
            create_app(services, coordinate=coordinate),
            host="127.0.0.1",
            port=port,
            log_config=None,
            access_log=False,
            http=partial(BoundedHttp, limits=services.settings.limits),  # type: ignore[arg-type]
        )
    )
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    give_up = time.monotonic() + 30
    while not running.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < give_up, "the server took too long to start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join(30)


@pytest.fixture
def live_server(
    settings: ServerSettings, federated_bundle: Bundle, federation_config: FederationConfig
) -> Iterator[str]:
    """The URL of a real server with a running coordinator and the real clock."""
    services = Services.open(settings, federated_bundle, federation_config, admin_token=ADMIN_TOKEN)
    with serving(services) as url:
        yield url


# PostgreSQL


def _postgres_bin() -> Path | None:
    """The folder with PostgreSQL's programs: the newest that Debian has, or the one on the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test run; the URL up to the name of a database."""
    programs = _postgres_bin()
    if programs is None:
        missing("PostgreSQL")
    assert programs is not None
    folder = Path("/tmp") / f"pfl-pg-{secrets.token_hex(4)}"  # short, for the socket's name
    folder.mkdir()
    prefix: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        user = next((n for n in ("postgres", "nobody") if _is_user(pwd, n)), None)
        setpriv = shutil.which("setpriv")
        if user is None or setpriv is None:
            missing("a user for PostgreSQL")
        entry = pwd.getpwnam(str(user))
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        prefix = [str(setpriv), f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
    data, port = folder / "data", free_port()

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*prefix, str(programs / program), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stdout.decode()

    try:
        run("initdb", "-D", str(data), "-U", "pfl", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c max_connections=300 "
            "-c fsync=off -c full_page_writes=off"
        )
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://pfl@127.0.0.1:{port}/"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_user(pwd: Any, name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


class Databases:
    """PostgreSQL databases for tests. A database that was given back is emptied and used again, as making and removing
    the files of one takes far longer.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._free: list[str] = []

    def _execute(self, database: str, statement: LiteralString) -> None:
        with psycopg.connect(self._cluster + database, autocommit=True) as connection:
            connection.execute(statement)

    def take(self) -> str:
        """The URL of an empty database."""
        if not self._free:
            name = f"test_{secrets.token_hex(6)}"
            self._execute("postgres", f"CREATE DATABASE {name}")  # type: ignore[arg-type]
            self._free.append(name)
        return self._cluster + self._free.pop()

    def give_back(self, url: str) -> None:
        name = url.removeprefix(self._cluster)
        self._execute(
            name,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        self._execute(name, "DROP SCHEMA public CASCADE")
        self._execute(name, "CREATE SCHEMA public")
        self._free.append(name)


@pytest.fixture(scope="session")
def postgres_databases(postgres_cluster: str) -> Databases:
    return Databases(postgres_cluster)


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    found = postgres_databases.take()
    yield found
    postgres_databases.give_back(found)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of each kind."""
    found = Database(database_url)
    found.migrate()
    yield found
    found.close()


# S3


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real HTTP server that speaks S3: moto, or the one that PFL_TEST_S3_ENDPOINT names."""
    given = os.environ.get("PFL_TEST_S3_ENDPOINT")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if name not in os.environ:
                patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
        if given:
            yield given
            return
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


def new_bucket(s3_endpoint: str) -> str:
    """The address of a new bucket, with a prefix."""
    import boto3

    bucket = f"pfl-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix?endpoint_url={s3_endpoint}&addressing=path"


@pytest.fixture
def s3_place(s3_endpoint: str) -> str:
    """The address of a new bucket, with a prefix."""
    return new_bucket(s3_endpoint)

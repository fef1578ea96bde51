"""The database: SQLite by itself, PostgreSQL in production; the same code for both.

A unit of work is a ``with`` block that holds one session and one transaction::

    with database.write() as session:
        session.add(...)

On SQLite ``write`` begins with the write lock (BEGIN IMMEDIATE), so that what it reads stays true until it
commits. On PostgreSQL it is READ COMMITTED: rows that a decision rests on are locked (``with_for_update``)
or changed by a conditional UPDATE.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from pfl_mobile.errors import ConfigError, MissingDependencyError, UnwritableError
from pfl_mobile.files.atomic import open_private, private_folder
from pfl_server.errors import DatabaseError, SchemaTooNewError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

MIGRATIONS = Path(__file__).with_name("migrations")
#: Seconds that a transaction waits for another to end.
LOCK_TIMEOUT_S = 30.0
#: Connections of one process that are kept open, and those that are opened besides when all its threads are busy.
POOL_SIZE, OVERFLOW = 16, 28
#: Any number that no other program on the same PostgreSQL database uses.
_MIGRATION_LOCK = 0x70666C6D
_IMMEDIATE = "pfl_immediate"


class Database:
    """Transactions on one database; safe to share between threads.

    Args:
        url: ``sqlite:///path`` or ``postgresql://user@host/name``. A password belongs into ``PFL_DATABASE_URL``
            or PostgreSQL's own files, not on a command line.

    Raises:
        ConfigError: not the URL of a database that is supported; an SQLite database in memory.
        MissingDependencyError: the driver is not installed.
        DatabaseError: the folder of an SQLite database cannot be made.
    """

    def __init__(self, url: str) -> None:
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._writing = threading.Lock()
        try:
            self._engine = _sqlite(self.url) if self.is_sqlite else _postgresql(self.url)
        except ImportError as error:  # also where psycopg is there, but not PostgreSQL's own library
            raise MissingDependencyError(
                f"PostgreSQL needs psycopg: {error}", mend="pip install 'pfl-mobile[postgres]'"
            ) from error
        self._reader: Engine
        self._writer: Engine
        if self.is_sqlite:
            self._reader = self._engine
            self._writer = self._engine.execution_options(**{_IMMEDIATE: True})
        else:
            self._reader = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._writer = self._engine

    def read(self) -> AbstractContextManager[Session]:
        """A session that sees one state of the database, whatever others write meanwhile."""
        return self._session(self._reader, write=False)

    def write(self) -> AbstractContextManager[Session]:
        """A session whose changes become durable together at the end of the block, or not at all.

        Blocks of one process wait for each other on SQLite, which has one writer at a time: keep them short, and
        never open one inside another.

        Raises:
            DatabaseError: the database cannot be reached, or others kept it locked for `LOCK_TIMEOUT_S`.
        """
        return self._session(self._writer, write=True)

    @contextlib.contextmanager
    def _session(self, engine: Engine, *, write: bool) -> Iterator[Session]:
        with self._turn(write), _typed(self.url), Session(engine, expire_on_commit=False) as session:
            try:
                yield session
                session.commit() if write else session.close()  # rows that were read stay readable
            except BaseException:
                session.rollback()
                raise

    @contextlib.contextmanager
    def _turn(self, write: bool) -> Iterator[None]:
        """Threads of this process take turns by a lock, which is fair and quick; SQLite's own is a poll."""
        if not (write and self.is_sqlite):
            yield
            return
        if not self._writing.acquire(timeout=LOCK_TIMEOUT_S):
            raise DatabaseError(
                f"the database was kept busy for {LOCK_TIMEOUT_S:.0f} s",
                mend="try again; see the logs for why",
            )
        try:
            yield
        finally:
            self._writing.release()

    def migrate(self) -> None:
        """Bring the tables up to this version; processes that start together take turns.

        Raises:
            SchemaTooNewError: the tables are newer than this version.
            DatabaseError: the database cannot be reached or changed.
        """
        with self._turn(True), _typed(self.url), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            config = _alembic()
            self._refuse_newer(connection, config)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check(self) -> None:
        """Ask the database whether it is there and has the tables of this version.

        Raises:
            DatabaseError: it is not, or has not.
        """
        with _typed(self.url), self._reader.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        head = ScriptDirectory.from_config(_alembic()).get_current_head()
        if found != head:
            raise DatabaseError(
                f"the database {shown(self.url)} has revision {found} of the tables, this version needs {head}",
                mend="start `pfl serve` of this version on it, which migrates it",
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @staticmethod
    def _refuse_newer(connection: Connection, config: Config) -> None:
        found = MigrationContext.configure(connection).get_current_revision()
        if found is None:
            return
        try:
            ScriptDirectory.from_config(config).get_revision(found)
        except CommandError as error:
            raise SchemaTooNewError(
                f"the database has revision {found} of the tables, which this version does not know",
                mend="run the newer version of pfl-mobile that made it, or restore a copy from before",
            ) from error


def shown(url: URL) -> str:
    """The URL without its password."""
    return url.render_as_string(hide_password=True)


def _parsed(url: str) -> URL:
    try:
        found = make_url(url)
    except ArgumentError as error:  # its text may hold the password
        raise ConfigError(
            "the URL of the database cannot be read",
            mend="use sqlite:///PATH or postgresql://USER@HOST/NAME",
        ) from error
    backend = found.get_backend_name()
    if backend == "postgresql":
        if found.drivername not in ("postgresql", "postgresql+psycopg"):
            raise ConfigError(
                f"the driver {found.drivername!r} is not supported",
                mend="use postgresql://, which takes psycopg 3",
            )
        return found.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and found.drivername in ("sqlite", "sqlite+pysqlite"):
        if not found.database or found.database == ":memory:" or found.database.startswith("file:"):
            raise ConfigError(
                "an SQLite database in memory cannot be shared by threads and processes",
                mend="name a file: sqlite:///PATH",
            )
        return found
    raise ConfigError(
        f"the database {found.drivername!r} is not supported",
        mend="use sqlite:///PATH or postgresql://USER@HOST/NAME",
    )


def _sqlite(url: URL) -> Engine:
    file = Path(str(url.database)).expanduser().absolute()
    folder = file.parent
    try:
        if not folder.exists():
            private_folder(folder)
        os.close(
            open_private(file, os.O_CREAT | os.O_RDWR)
        )  # it holds secrets, as do the files that SQLite adds
    except (OSError, UnwritableError) as error:
        why = error.message if isinstance(error, UnwritableError) else error.strerror
        raise DatabaseError(
            f"the database cannot be made in {folder}: {why}",
            mend="choose another place",
        ) from error
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=OVERFLOW,
        connect_args={"timeout": LOCK_TIMEOUT_S},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transactions by itself; `_begin` does
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
        cursor.execute("PRAGMA synchronous=FULL")  # what was answered "accepted" survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        now = connection.get_execution_options().get(_IMMEDIATE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if now else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    return sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=OVERFLOW,
        pool_timeout=LOCK_TIMEOUT_S,
        pool_pre_ping=True,  # a connection that the server closed is replaced, not used
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": 10, "options": f"-c lock_timeout={int(LOCK_TIMEOUT_S * 1000)}"},
    )


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextlib.contextmanager
def _typed(url: URL) -> Iterator[None]:
    """Failures of the database itself as `DatabaseError`; broken constraints stay what they are."""
    try:
        yield
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, PoolTimeoutError) as error:
        raise DatabaseError(
            _words(url, error), mend="see that it runs and may be used, then try again"
        ) from error
    except sqlalchemy.exc.DatabaseError as error:
        if type(error) not in (sqlalchemy.exc.DatabaseError, sqlalchemy.exc.InternalError):
            raise  # a mistake in a statement, or a broken constraint
        raise DatabaseError(
            _words(url, error), mend="its files are damaged, or no database: restore a copy from before"
        ) from error
    except NoSuchModuleError as error:
        raise ConfigError(
            f"there is no driver for {shown(url)}", mend="pip install 'pfl-mobile[postgres]'"
        ) from error


def _words(url: URL, error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    first = str(cause).strip().splitlines()
    return f"the database {shown(url)} failed: {first[0] if first else type(cause).__name__}"

"""Transactions and migrations, on SQLite and on PostgreSQL."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, update

from pfl_mobile.errors import ConfigError
from pfl_server.errors import DatabaseError, SchemaTooNewError
from pfl_server.storage.database import Database
from pfl_server.storage.models import AuditEntry, Base, Refusal


@pytest.fixture(autouse=True)
def migrated_once() -> None:
    """Here every database is really migrated."""


def _count(database: Database, code: str = "x") -> int | None:
    with database.read() as session:
        return session.scalar(select(Refusal.count).where(Refusal.code == code))


def _add(database: Database, code: str = "x", count: int = 0) -> None:
    with database.write() as session:
        session.add(Refusal(round=-1, code=code, count=count))


def test_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database._writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(database: Database) -> None:
    _add(database)
    database.migrate()
    database.check()
    assert _count(database) == 0


def test_a_database_without_tables_is_not_ready(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(DatabaseError, match="needs 0004"):
        database.check()
    database.close()


def test_tables_of_a_newer_version_are_refused(database: Database) -> None:
    with database.write() as session:
        session.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNewError, match="9999"):
        database.migrate()


def test_migrations_can_be_taken_back(database: Database) -> None:
    from alembic import command

    from pfl_server.storage.database import _alembic

    with database._writer.begin() as connection:
        config = _alembic()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database._writer.connect() as connection:
        assert set(sqlalchemy.inspect(connection).get_table_names()) == {"alembic_version"}


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.check()
    database.close()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(database_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_failed_block_changes_nothing(database: Database) -> None:
    _add(database)

    def fail() -> None:
        with database.write() as session:
            session.execute(update(Refusal).values(count=7))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _count(database) == 0


def test_a_reader_sees_one_state_while_another_writes(database: Database) -> None:
    _add(database)
    with database.read() as session:
        before = session.scalar(select(Refusal.count))
        thread = threading.Thread(target=_increment, args=(database,))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert session.scalar(select(Refusal.count)) == before
    assert _count(database) == 1


def _increment(database: Database, times: int = 1) -> None:
    for _ in range(times):
        with database.write() as session:
            row = session.scalars(select(Refusal).with_for_update()).one()
            row.count += 1


def test_concurrent_read_modify_write_loses_nothing(database: Database) -> None:
    _add(database)
    threads = [threading.Thread(target=_increment, args=(database, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _count(database) == 80


def _increment_in_process(url: str) -> None:
    database = Database(url)
    _increment(database, 20)
    database.close()


def test_concurrent_processes_lose_nothing(database: Database, database_url: str) -> None:
    _add(database)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_increment_in_process, args=(database_url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert _count(database) == 60


def test_ids_count_up_by_themselves(database: Database) -> None:
    for _ in range(2):
        with database.write() as session:
            session.add(AuditEntry(at=0.0, actor="a", action="b", detail={}))
    with database.read() as session:
        first, second = session.scalars(select(AuditEntry.id).order_by(AuditEntry.id)).all()
    assert second > first


def test_a_read_session_cannot_write_to_postgresql(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.migrate()
    statement = sqlalchemy.insert(Refusal).values(round=-1, code="x", count=1)
    with database.read() as session, pytest.raises(sqlalchemy.exc.InternalError, match="read-only"):
        session.execute(statement)
    database.close()


def test_sqlite_keeps_what_was_committed_through_a_power_cut(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.read() as session:
        assert session.scalar(sqlalchemy.text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(sqlalchemy.text("PRAGMA synchronous")) == 2
        assert session.scalar(sqlalchemy.text("PRAGMA foreign_keys")) == 1
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:p@h/d",
        "postgresql+psycopg2://h/d",
        "junk",
        "sqlite+aiosqlite:///x",
    ],
)
def test_unsupported_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(url)
    assert caught.value.mend


def test_errors_do_not_hold_the_password() -> None:
    database = Database("postgresql://pfl:hunter2hunter2@127.0.0.1:1/none")
    with pytest.raises(DatabaseError) as caught:
        database.check()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(caught.value.__cause__)
    database.close()


def test_the_folder_of_an_sqlite_database_is_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'new' / 'folder' / 'a.db'}")
    database.migrate()
    database.close()
    assert (tmp_path / "new" / "folder" / "a.db").is_file()

"""What is PostgreSQL's own: a server that refuses, is away or holds something else. The contract is tests/test_store.py."""

from __future__ import annotations

import logging
import socket
import sys
import traceback
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import PostgresServer
from test_store import ARCH, LATENCY, TARGET, start

from explorer.errors import StoreError
from explorer.store import Store, exists, schema, storage_url


def refusal(storage: str, *, create: bool = False) -> str:
    """The message of a refused opening; neither it nor its traceback shows a password."""
    with pytest.raises(StoreError) as refused:
        Store.open(storage, create=create)
    shown = "".join(traceback.format_exception(refused.value)) + str(refused.value)
    assert "s3cret" not in shown
    assert "wrong-word" not in shown
    return str(refused.value)


def test_url_may_name_the_driver_or_not(postgres_url: str) -> None:
    Store.open(postgres_url, create=True).close()
    store = Store.open(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    assert store.studies() == []
    assert "s3cret" not in store.place
    assert store.place.startswith("postgresql://explorer@127.0.0.1:")
    store.close()


@pytest.mark.parametrize("create", [False, True])
def test_wrong_password_is_told_without_it(create: bool, postgres: PostgresServer, postgres_url: str) -> None:
    wrong = postgres_url.replace(postgres.password, "wrong-word")
    message = refusal(wrong, create=create)
    assert "password authentication failed" in message
    assert "check that the server runs, and host, port, user and password" in message
    with pytest.raises(StoreError, match="password authentication failed"):
        exists(wrong)


def test_missing_database_is_told_with_how_to_make_one(postgres: PostgresServer) -> None:
    message = refusal(postgres.url("nowhere"), create=True)
    assert 'database "nowhere" does not exist' in message
    assert "createdb" in message


def test_server_that_is_away_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage = f"postgresql://explorer:s3cret-w0rd@127.0.0.1:{port}/db"
    assert f"postgresql://explorer@127.0.0.1:{port}/db: cannot be opened" in refusal(storage)
    with pytest.raises(StoreError, match="cannot be opened"):
        exists(storage)


def test_host_that_is_none_is_told() -> None:
    assert "cannot be opened" in refusal("postgresql://explorer:s3cret-w0rd@no-such-host.invalid/db?application_name=x")


def test_password_among_the_options_is_not_shown_either(postgres: PostgresServer) -> None:
    message = refusal(f"postgresql://explorer@127.0.0.1:{postgres.port}/postgres?password=wrong-word")
    assert "password authentication failed" in message


def test_missing_driver_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "run: pip install 'swinexplore[postgres]'" in refusal("postgresql://explorer:s3cret-w0rd@127.0.0.1/db")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgresql://explorer:s3cret-w0rd@host", "names no database"),
        ("postgresql://explorer:s3@cret-w0rd@host/db", "an @ stands in the password; write it as %40"),
        ("postgresql+psycopg2://explorer:s3cret-w0rd@host/db", "is not supported; allowed"),
        ("postgresql://explorer:s3cret-w0rd@host:port/db", "is no database URL; allowed"),
    ],
)
def test_url_that_cannot_be_meant_is_refused(storage: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as refused:
        storage_url(storage)
    assert "cret" not in str(refused.value)


def test_empty_database_is_made_ours_only_when_asked(postgres_url: str) -> None:
    assert not exists(postgres_url)
    assert "holds no studies yet; run `swinexplore search` first" in refusal(postgres_url)
    assert not exists(postgres_url)
    Store.open(postgres_url, create=True).close()
    assert exists(postgres_url)


@pytest.mark.parametrize("create", [False, True])
def test_another_programs_database_is_refused_and_left_alone(
    create: bool, postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.execute("CREATE TABLE customers (name TEXT)", postgres_url.rpartition("/")[2])
    assert "another program's database (it holds customers); nothing was written" in refusal(
        postgres_url, create=create
    )
    assert tables(postgres_url) == {"customers"}


def test_database_of_optuna_alone_is_taken_only_when_asked(postgres_url: str) -> None:
    import optuna

    theirs = optuna.storages.RDBStorage(storage_url(postgres_url))
    theirs.engine.dispose()
    before = tables(postgres_url)
    assert "holds studies of Optuna, none of swinexplore" in refusal(postgres_url)
    assert not exists(postgres_url)
    assert tables(postgres_url) == before
    Store.open(postgres_url, create=True).close()
    assert tables(postgres_url) == before | set(schema.metadata.tables)


def tables(url: str) -> set[str]:
    engine = sa.create_engine(storage_url(url))
    found = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return found


@pytest.mark.parametrize("create", [False, True])
def test_newer_schema_is_refused(create: bool, postgres: PostgresServer, postgres_url: str) -> None:
    Store.open(postgres_url, create=True).close()
    postgres.execute("UPDATE explorer_version SET version = 99", postgres_url.rpartition("/")[2])
    assert f"schema version 99 is newer than {schema.VERSION}" in refusal(postgres_url, create=create)


def _open(storage: str, go: Any) -> None:
    go.recv()
    Store.open(storage, create=True).close()


def test_several_processes_make_the_tables_at_once(postgres_url: str) -> None:
    import multiprocessing

    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(4)]
    openers = [start(_open, postgres_url, receiver) for receiver, _ in pipes]
    for _, sender in pipes:
        sender.send("go")
    for opener in openers:
        opener.join(120)
    for receiver, sender in pipes:
        receiver.close()
        sender.close()
    assert [opener.exitcode for opener in openers] == [0] * 4
    store = Store.open(postgres_url)
    with store.database.reading() as connection:
        assert connection.execute(sa.select(schema.version)).fetchall() == [(schema.VERSION,)]
    store.close()


def test_server_that_came_back_is_used_again(postgres: PostgresServer, postgres_url: str) -> None:
    store = Store.open(postgres_url, create=True)
    store.add_latency(ARCH, TARGET, LATENCY)
    name = postgres_url.rpartition("/")[2]
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert store.latency(ARCH.id, TARGET.id) == LATENCY
    store.close()


def test_study_of_one_name_in_two_databases_is_two_studies(postgres: PostgresServer, postgres_url: str) -> None:
    postgres.execute("CREATE DATABASE another")
    here, there = (Store.open(url, create=True) for url in (postgres_url, postgres.url("another")))
    with here.alone("one"), there.alone("one"):
        pass
    here.close()
    there.close()
    postgres.execute("DROP DATABASE another WITH (FORCE)")


def test_nothing_is_logged_that_holds_the_password(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        store = Store.open(postgres_url, create=True)
        with store.alone("one"):
            store.add_latency(ARCH, TARGET, LATENCY)
        store.close()
    assert "s3cret" not in caplog.text

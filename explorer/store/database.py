"""Where a store lies: a SQLite file or a PostgreSQL database. Opening it, its schema's version, transactions, locks.

Knows tables by their names only; what stands in them is `facts` and `studies`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url

from explorer.errors import StoreError
from explorer.records import digest
from explorer.store import schema

#: So long a writer waits for another, in either kind of database.
BUSY_TIMEOUT_S: Final = 30
#: So long a server may take to answer at all; libpq itself would wait for minutes.
CONNECT_TIMEOUT_S: Final = 10
ALLOWED: Final = "allowed: a file's path, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"


def storage_url(storage: str) -> str:
    """A SQLAlchemy URL, with its driver and password, from a URL or a file's path.

    Raises StoreError for what is neither SQLite nor PostgreSQL; no message shows a password.
    """
    text = storage if "://" in storage else f"sqlite:///{storage}"
    shown = storage.rpartition("@")[2].partition("?")[0]
    try:
        url = make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError(f"storage: {shown!r} is no database URL; {ALLOWED}") from None
    match url.drivername:
        case name if name.partition("+")[0] == "sqlite" and url.database and url.database != ":memory:":
            return text
        case "postgresql" | "postgresql+psycopg" if url.database and "@" not in (url.host or ""):
            return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        case "postgresql" | "postgresql+psycopg" if url.database:
            raise StoreError(
                f"storage: {shown!r}: an @ stands in the password; write it as %40 (and / as %2F, : as %3A)"
            )
        case "postgresql" | "postgresql+psycopg":
            raise StoreError(f"storage: {shown!r} names no database; {ALLOWED}")
    raise StoreError(f"storage: {shown!r} is not supported; {ALLOWED}")


def place_of(url: str) -> str:
    """What messages call a database: its file, or its URL without password and options."""
    parsed = make_url(url)
    if _is_file(parsed):
        return parsed.database or ""
    return URL.create("postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database).render_as_string()


def file_of(storage: str) -> Path | None:
    """The file of a SQLite storage, there or not; None for a server. Raises StoreError for what is no storage."""
    url = make_url(storage_url(storage))
    return Path(url.database or "") if _is_file(url) else None


def exists(storage: str) -> bool:
    """Whether `Store.open` would find anything to read at `storage`: not where only Optuna's tables are.

    Raises StoreError for what is no storage, and for a server that cannot be reached.
    """
    url = storage_url(storage)
    file = file_of(url)
    if file is not None and not file.is_file():
        return file.exists()
    database = Database(url)
    try:
        tables = database.table_names()
    except StoreError:
        if file is None:
            raise
        return True
    finally:
        database.close()
    return bool(tables) and ("explorer_version" in tables or "version_info" not in tables)


def engine_options(url: str) -> dict[str, Any]:
    """Arguments of SQLAlchemy's `create_engine`, ours and Optuna's."""
    if _is_file(make_url(url)):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    return {"connect_args": {"connect_timeout": CONNECT_TIMEOUT_S}, "pool_pre_ping": True}


def insert(connection: Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT of the connection's dialect, which knows what to do on a conflict."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def leave_or_add(connection: Connection, table: sa.Table, **values: Any) -> None:
    """Inserts a row where there is none of its key."""
    connection.execute(insert(connection, table).values(**values).on_conflict_do_nothing())


class Database:
    """One open database. Raises StoreError when it cannot be reached, read or written (locked, full, damaged)."""

    def __init__(self, url: str, place: str | None = None) -> None:
        self.url = url
        self.place = place or place_of(url)
        self.is_file = _is_file(make_url(url))
        try:
            self.engine: Engine = sa.create_engine(url, **engine_options(url))
        except ModuleNotFoundError as error:
            raise StoreError(
                f"storage: {self.place}: PostgreSQL needs the package {error.name}; "
                "run: pip install 'swinexplore[postgres]'"
            ) from None
        sa.event.listen(self.engine, "connect", _configure_file if self.is_file else _configure_session)

    @staticmethod
    def open(storage: str, *, create: bool = False, place: str | None = None) -> Database:
        """Opens what `Store.open` describes; `place`: what messages call it."""
        database = Database(storage_url(storage), place)
        try:
            database._prepare(create=create)
            database._migrate()
        except OSError as error:
            database.close()
            raise StoreError(f"storage: {database.place}: cannot be made: {error.strerror}") from None
        except StoreError:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    @property
    def path(self) -> Path:
        """The file; only where `is_file`."""
        return Path(make_url(self.url).database or "")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database from beginning to end."""
        with self._guarded(), self.engine.connect() as connection:
            if self.is_file:
                connection.exec_driver_sql("BEGIN")
            else:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is kept as a whole, or not at all where the body raises or the process dies."""
        with self._guarded(), self.engine.begin() as connection:
            if self.is_file:  # what is read here must still be so when it is written
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def alone(self, study: str) -> Iterator[None]:
        """Holds a study against other processes; raises StoreError while one has it. The lock goes with the process."""
        with self._file_lock(study) if self.is_file else self._server_lock(study):
            yield

    @contextmanager
    def _file_lock(self, study: str) -> Iterator[None]:
        # Beside the file: processes may have temp folders of their own.
        path = self.path.resolve()
        lock = FileLock(path.with_name(f"{path.name}.{digest('study', {'study': study})}.lock"), mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _held(study) from None
        except OSError as error:
            raise StoreError(f"storage: {self.place}: {lock.lock_file}: cannot be made: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _server_lock(self, study: str) -> Iterator[None]:
        with self._guarded():
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # closing it ends the session, and the lock
        try:
            with self._guarded():
                # A client that lost its power closes nothing: the server asks after 30 s and gives up after 60 s.
                for name, value in (("idle", 30), ("interval", 10), ("count", 3)):
                    connection.exec_driver_sql(f"SET tcp_keepalives_{name} = {value}")
                is_held = connection.execute(sa.select(sa.func.pg_try_advisory_lock(lock_number(study)))).scalar_one()
            if not is_held:
                raise _held(study)
            yield
        finally:
            connection.close()

    def table_names(self) -> set[str]:
        """Names of all tables, whoever made them."""
        with self._guarded(), self.engine.connect() as connection:
            return set(sa.inspect(connection).get_table_names())

    def _prepare(self, *, create: bool) -> None:
        """Raises StoreError where there is nothing to open, or another program's; makes an empty file where `create`."""
        is_new = self.is_file and (not self.path.exists() or self.path.stat().st_size == 0)
        if self.is_file and self.path.is_dir():
            raise StoreError(f"storage: {self.place}: is a folder; give a file")
        tables = set() if is_new else self.table_names()
        if not create and (is_new or (not tables and not self.is_file)):
            missing = "no such database" if self.is_file else "holds no studies yet"
            raise StoreError(f"storage: {self.place}: {missing}; run `swinexplore search` first, or give --storage")
        if tables and "explorer_version" not in tables:
            if "version_info" not in tables:
                raise StoreError(
                    f"storage: {self.place}: another program's database (it holds {', '.join(sorted(tables)[:3])}); "
                    "nothing was written"
                )
            if not create:
                raise StoreError(
                    f"storage: {self.place}: holds studies of Optuna, none of swinexplore; give another --storage"
                )
        if is_new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._guarded(), self.engine.connect() as connection:
                # Readers and one writer at a time; stays with the file.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _version(connection) == schema.VERSION:  # reading needs no lock, nor a file that can be written
                return
        with self.writing() as connection:
            if not self.is_file:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_number("", "schema"))))
            version = _version(connection)
            if version is None:
                schema.metadata.create_all(connection)
            elif version > schema.VERSION:
                raise StoreError(
                    f"storage: {self.place}: schema version {version} is newer than {schema.VERSION}, the newest that "
                    "this swinexplore knows; upgrade it: pip install --upgrade swinexplore"
                )
            else:
                for upgrade in schema.UPGRADES[version - 1 :]:
                    upgrade(connection)
            if version != schema.VERSION:
                connection.execute(schema.version.delete())
                connection.execute(schema.version.insert().values(version=schema.VERSION))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            text = " ".join(str(error.orig).split())
            for secret in _secrets(self.url):
                text = text.replace(secret, "***")
            if not self.is_file and error.statement is None:
                text = (
                    f"cannot be opened: {text}; check that the server runs, and host, port, user and password; "
                    "`createdb NAME` makes a database"
                )
            raise StoreError(f"storage: {self.place}: {text}") from (error if self.is_file else None)


def lock_number(study: str, what: str = "study") -> int:
    """The number (64 bits, signed) under which PostgreSQL knows the lock of a study."""
    content = hashlib.sha256(f"swinexplore/{what}/{study}".encode()).digest()
    return int.from_bytes(content[:8], "big", signed=True)


def _held(study: str) -> StoreError:
    return StoreError(f"study: {study!r} is being searched by another process; wait for it, or stop it")


def _is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _secrets(url: str) -> list[str]:
    parsed = make_url(url)
    found = [parsed.password, *(str(parsed.query[key]) for key in parsed.query if "pass" in key)]
    return [secret for secret in found if secret]


def _version(connection: Connection) -> int | None:
    """The schema's version; None where there are no tables of ours."""
    if not sa.inspect(connection).has_table("explorer_version"):
        return None
    version: int | None = connection.execute(sa.select(schema.version.c.version)).scalar()
    return version


def _configure_file(connection: Any, _record: object) -> None:
    """Foreign keys are checked, and a fact that was kept survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _configure_session(connection: Any, _record: object) -> None:
    """A writer waits for another as long as with a file."""
    cursor = connection.cursor()
    cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S}s'")
    cursor.close()
    connection.commit()  # a setting made in a transaction goes with it

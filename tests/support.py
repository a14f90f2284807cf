"""What the tests share beside fixtures: child processes, and waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

TESTS = Path(__file__).parent


def wait_until(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """Return the first true value of ``condition()``; fail when there is none in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout} s in vain for {condition}")
        time.sleep(0.02)
    return value


def break_other_connections() -> int:
    """Cut every connection to the test's database but this one; return how many there were."""
    numbers = _other_connections()
    end = "SELECT pg_terminate_backend(%s)" if connection.vendor == "postgresql" else "KILL %s"
    with connection.cursor() as cursor:
        for number in numbers:
            with contextlib.suppress(OperationalError):  # it has closed by itself meanwhile
                cursor.execute(end, [number])
    wait_until(lambda: numbers.isdisjoint(_other_connections()))
    return len(numbers)


def _other_connections() -> set[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            if connection.vendor == "postgresql"
            else "SELECT id FROM information_schema.processlist "
            "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        )
        return {number for (number,) in cursor.fetchall()}


def open_transactions() -> int:
    """Return how many transactions others have open in the test's database."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":  # no more than one may write
            try:
                cursor.execute("BEGIN IMMEDIATE")
            except OperationalError:
                return 1
            cursor.execute("ROLLBACK")
            return 0
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
            )
        else:
            cursor.execute(
                "SELECT count(*) FROM information_schema.innodb_trx JOIN "
                "information_schema.processlist ON id = trx_mysql_thread_id "
                "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
        return int(cursor.fetchone()[0])


def waits_for_a_lock() -> bool:
    """Tell whether somebody in the test's database waits for a row that somebody else has."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # or a transaction sees what it saw first
            cursor.execute("SELECT pg_stat_clear_snapshot()")
        else:  # or it tells what it told a moment ago
            time.sleep(0.15)
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            if connection.vendor == "postgresql"
            else "SELECT count(*) FROM information_schema.innodb_trx JOIN "
            "information_schema.processlist AS p ON p.id = trx_mysql_thread_id "
            "WHERE db = DATABASE() AND trx_state = 'LOCK WAIT'"
        )
        return bool(cursor.fetchone()[0])


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child process that works on this test's database."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "PYTHONPATH": os.pathsep.join([str(TESTS), extra.pop("TEST_PATH", str(TESTS))]),
        "PYTHONUNBUFFERED": "1",
        "TEST_NAME": str(connection.settings_dict["NAME"]),
        **extra,
    }


def app_in(folder: Path, name: str, models: str) -> dict[str, str]:
    """Write an app that has nothing but models; return what a child needs to have it installed."""
    app = folder / name
    app.mkdir()
    (app / "__init__.py").touch()
    (app / "models.py").write_text(models)
    return {"TEST_APPS": name, "TEST_PATH": str(folder)}


class Child:
    """A management command, or another module, in a process of its own."""

    def __init__(self, *arguments: str, output: Path, **environment: str) -> None:
        self.output = output
        module = environment.pop("TEST_MODULE", "django")
        folder = environment.pop("TEST_FOLDER", None)
        with output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=child_environment(**environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send a signal to it and what it has started, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """Return the exit code."""
        return self.process.wait(timeout)

    def stop_twice(self, second: signal.Signals = signal.SIGTERM) -> int:
        """Ask a worker to end, and again when that was heard; return the exit code."""
        self.send(signal.SIGTERM)
        wait_until(lambda: "Stopping when what runs has ended" in self.text())
        self.send(second)
        return self.wait()

    def end(self) -> None:
        """Kill it and what it has started, such as the process that an autoreloader watches."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        return self.output.read_text()

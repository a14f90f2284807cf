"""Fixtures of all tests: a worker in a real child process, and waiting for what it does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import OperationalError, connection, connections

TESTS = Path(__file__).parent


def wait_until(condition: Callable[[], object], timeout: float = 30.0) -> object:
    """Return the first true value of ``condition()``; fail when there is none in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout} s in vain for {condition}")
        time.sleep(0.02)
    return value


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


class Child:
    """A management command in a process of its own."""

    def __init__(self, *arguments: str, output: Path, **environment: str) -> None:
        self.output = output
        with output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "django", *arguments],
                env=child_environment(**environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Return the exit code."""
        return self.process.wait(timeout)

    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture
def command(tmp_path: Path, transactional_db: None) -> Iterator[Callable[..., Child]]:
    """Start management commands that work on the test's database; none outlives the test."""
    children: list[Child] = []

    def start(*arguments: str, **environment: str) -> Child:
        output = tmp_path / f"child-{len(children)}.log"
        children.append(Child(*arguments, output=output, **environment))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.wait()


@pytest.fixture
def worker(command: Callable[..., Child]) -> Callable[..., Child]:
    """Start ``process_tasks`` in a child process, looking for work ten times a second."""
    return lambda *arguments, **environment: command(
        "process_tasks", "--sleep", "0.1", *arguments, **environment
    )


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Iterator[None]:
    """Forget the tasks that a test registers, and a runner it puts in."""
    from background_task.tasks import tasks

    before = dict(tasks._tasks), tasks._runner
    yield
    tasks._tasks.clear()
    tasks._tasks.update(before[0])
    tasks._runner = before[1]


def pytest_report_header() -> str:
    return f"database: {settings.DATABASES['default']['ENGINE']}"


@pytest.fixture
def vendor() -> str:
    return connections["default"].vendor


@pytest.fixture
def empty_database(tmp_path: Path, vendor: str) -> Iterator[str]:
    """A database without a single table; returns its name."""
    if vendor == "sqlite":
        yield str(tmp_path / "empty.sqlite3")
        return
    name = f"{connection.settings_dict['NAME']}_empty"
    quoted = connection.ops.quote_name(name)
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {quoted}")
        cursor.execute(f"CREATE DATABASE {quoted}")
    yield name
    with connection.cursor() as cursor, contextlib.suppress(OperationalError):
        cursor.execute(f"DROP DATABASE {quoted}")

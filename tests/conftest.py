"""Fixtures of all tests: a worker in a real child process, and waiting for what it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.conf import settings
from django.db import OperationalError, connection, connections
from support import Child

if TYPE_CHECKING:
    from background_task.storage.engine import Engine


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
        child.end()


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


@pytest.fixture(autouse=True)
def nothing_left_locked() -> Iterator[None]:
    """Forget the rows that a test has left locked; they are gone with it."""
    from background_task.execution.runs import runs

    yield
    for each in (runs._left, runs._stuck, runs._in_doubt, runs._doubtful_until):
        each.clear()


def pytest_configure() -> None:
    # A shell ignores Ctrl-C for what it starts in the background, and children inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"database: {settings.DATABASES['default']['ENGINE']}"


@pytest.fixture
def vendor() -> str:
    return connections["default"].vendor


@pytest.fixture
def engine(transactional_db: None) -> Iterator[Engine]:
    """A connection of its own, as a worker has it."""
    from background_task.storage.engine import Engine

    engine = Engine("default")
    engine.fetch("SELECT 1")  # it is made, and made ready, by the first statement
    yield engine
    engine.close()


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

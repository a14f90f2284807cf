"""Both packages on databases of their own: ours, and the predecessor as PyPI has it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connection
from environments import FORK, PREDECESSOR, python_with
from legacy import Database
from pytest_django import DjangoDbBlocker

numbers = itertools.count()


@pytest.fixture(scope="session")
def predecessor() -> str:
    """The Python of an environment with the real predecessor."""
    return python_with(PREDECESSOR)


@pytest.fixture(scope="session")
def fork() -> str:
    """The Python of an environment with the fork that left migrations of its own."""
    return python_with(FORK)


@pytest.fixture
def new_database(
    predecessor: str, tmp_path: Path, vendor: str, django_db_blocker: DjangoDbBlocker
) -> Iterator[Callable[[], Database]]:
    """Make empty databases that every package can be let loose on; they go with the test."""
    with contextlib.ExitStack() as stack:

        def make() -> Database:
            name = f"background_task_upgrade_{os.getpid()}_{next(numbers)}"
            if vendor == "sqlite":
                name = str(tmp_path / f"{name}.sqlite3")
            else:
                stack.enter_context(_created(name, vendor, django_db_blocker))
            database = Database(predecessor, name, django_db_blocker)
            stack.callback(database.close)
            return database

        yield make


@contextlib.contextmanager
def _created(name: str, vendor: str, blocker: DjangoDbBlocker) -> Iterator[None]:
    _execute(f"CREATE DATABASE {name}", blocker)
    try:
        yield
    finally:
        force = " WITH (FORCE)" if vendor == "postgresql" else ""
        _execute(f"DROP DATABASE {name}{force}", blocker)


def _execute(statement: str, blocker: DjangoDbBlocker) -> None:
    """Run a statement that no transaction may hold, beside the database of the tests."""
    with (
        blocker.unblock(),
        contextlib.closing(connection.copy()) as own,
        own._nodb_cursor() as cursor,
    ):
        cursor.execute(statement)


@pytest.fixture
def database(new_database: Callable[[], Database]) -> Database:
    """One such database."""
    return new_database()

"""Both packages on databases of their own: ours, and the predecessor as PyPI has it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import django
import pytest
from django.db import connection
from legacy import Database
from support import TESTS

CACHE = TESTS.parent / ".cache"
PREDECESSOR = "django-background-tasks==1.2.8"
DRIVERS = ["psycopg[binary]", "PyMySQL"]
numbers = itertools.count()


@pytest.fixture(scope="session")
def predecessor() -> str:
    """The Python of an environment with the real predecessor and the Django of this run."""
    name = f"predecessor-{sys.version_info[0]}.{sys.version_info[1]}-{django.get_version()}"
    home = CACHE / name
    python = home / "bin" / "python"
    complete = home / ".complete"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one test run come here at the same time
        if not complete.exists():
            install(home, python)
            complete.touch()
    return str(python)


def install(home: Path, python: Path) -> None:
    """Make the environment, or skip what needs it."""
    venv.create(home, with_pip=True, clear=True)
    packages = [PREDECESSOR, f"Django=={django.get_version()}", *DRIVERS]
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        reason = f"{PREDECESSOR} cannot be installed: {installed.stderr[-300:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def database(
    predecessor: str, tmp_path: Path, vendor: str, django_db_blocker: pytest.FixtureRequest
) -> Iterator[Database]:
    """An empty database that both packages can be let loose on."""
    if vendor == "sqlite":
        yield Database(predecessor, str(tmp_path / "upgraded.sqlite3"))
        return
    name = f"background_task_upgrade_{os.getpid()}_{next(numbers)}"
    with django_db_blocker.unblock():
        _execute(f"CREATE DATABASE {name}")
        try:
            yield Database(predecessor, name)
        finally:
            force = " WITH (FORCE)" if vendor == "postgresql" else ""
            _execute(f"DROP DATABASE {name}{force}")


def _execute(statement: str) -> None:
    """Run a statement that no transaction may hold, beside the database of the tests."""
    with contextlib.closing(connection.copy()) as own, own._nodb_cursor() as cursor:
        cursor.execute(statement)

"""Virtual environments with what this package continues, as PyPI has it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from pathlib import Path

import django
import pytest
from support import TESTS

CACHE = TESTS.parent / ".cache"
PREDECESSOR = "django-background-tasks==1.2.8"
FORK = "django4-background-tasks==1.2.10"
TASKS_DB = "django-tasks-db==0.13.0"
DRIVERS = ["psycopg[binary]", "PyMySQL"]


def python_with(distribution: str, *more: str) -> str:
    """Return the interpreter of an environment with the Python and the Django of this run.

    It is kept for the next run, and skips the test when the distribution cannot be had.
    """
    packages = [distribution, *more, f"Django=={django.get_version()}", *DRIVERS]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    name = f"{distribution.replace('==', '-')}-python{version}-django{django.get_version()}"
    home = CACHE / name
    python = home / "bin" / "python"
    complete = home / ".complete"
    stamp = f"{sys.version} {sys.base_prefix} {packages}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one test run come here at the same time
        if not complete.exists() or complete.read_text() != stamp:
            _install(home, python, packages)
            complete.write_text(stamp)
    return str(python)


def _install(home: Path, python: Path, packages: list[str]) -> None:
    venv.create(home, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--retries", "2", *packages]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        reason = f"{packages[0]} cannot be installed: {installed.stderr[-300:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

"""A database that two packages work on in turn or at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import TESTS

HERE = Path(__file__).parent
COLUMNS = (
    "id, task_name, task_params, task_hash, verbose_name, priority, run_at, repeat, repeat_until, "
    "queue, attempts, failed_at, last_error, locked_by, locked_at, creator_content_type_id, "
    "creator_object_id"
)
TABLES = ("background_task", "background_task_completedtask")
OLD, NEW = "old", "new"


class Database:
    """Runs code of the legacy project with either package."""

    def __init__(self, predecessor: str, name: str) -> None:
        self.name = name
        self._pythons = {OLD: predecessor, NEW: sys.executable}

    def start(self, which: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``python ARGUMENT…``."""
        variables = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "legacy_project.settings",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(TESTS)]),
            "TEST_NAME": self.name,
            **environment,
        }
        return subprocess.Popen(
            [self._pythons[which], *arguments],
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, which: str, *arguments: str, ok: bool = True, **environment: str) -> str:
        """Run ``python ARGUMENT…`` to its end; return what it printed."""
        return finish(self.start(which, *arguments, **environment), ok=ok)

    def manage(self, which: str, *arguments: str, ok: bool = True, **environment: str) -> str:
        """Run a management command to its end; return what it printed."""
        return self.run(which, "-m", "django", *arguments, ok=ok, **environment)

    def code(self, which: str, code: str) -> str:
        """Run ``code`` in the project; return what it printed."""
        setup = (
            "import django, json; django.setup()\n"
            "from datetime import datetime, timedelta, timezone as tz\n"
            "from django.contrib.auth.models import User\n"
            "from django.db import connection\n"
            "from background_task.models import Task, CompletedTask\n"
            "from background_task.tasks import tasks\n"
            "from legacy_project.models import Note, Watch\n"
            "from legacy_project.tasks import note, failing, unhurried\n"
        )
        return self.run(which, "-c", setup + code)

    def rows(self) -> dict[str, dict[int, list[Any]]]:
        """Return both tables, every column of the predecessor as text, by primary key."""
        code = (
            f"columns = ', '.join(map(connection.ops.quote_name, {COLUMNS!r}.split(', ')))\n"
            f"found = {{}}\nfor table in {TABLES!r}:\n"
            "    with connection.cursor() as cursor:\n"
            "        cursor.execute(f'SELECT {columns} FROM {table} ORDER BY id')\n"
            "        found[table] = [[str(v) for v in row] for row in cursor.fetchall()]\n"
            "print(json.dumps(found))\n"
        )
        found = json.loads(self.code(NEW, code).splitlines()[-1])
        return {table: {int(row[0]): row for row in rows} for table, rows in found.items()}

    def work(self, which: str, seconds: int = 2, **environment: str) -> None:
        """Let a worker run for so long."""
        arguments = ["process_tasks", "--duration", str(seconds), "--sleep", "0.1"]
        self.manage(which, *arguments, **environment)


def finish(child: subprocess.Popen[str], *, ok: bool = True) -> str:
    """Wait for a child; return what it printed."""
    printed, _ = child.communicate(timeout=150)
    assert (child.returncode == 0) is ok, printed
    return printed

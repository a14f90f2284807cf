"""A database that several packages work on, in turn or at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.db import connection
from pytest_django import DjangoDbBlocker
from support import TESTS, wait_until

HERE = Path(__file__).parent
COLUMNS = (
    "id",
    "task_name",
    "task_params",
    "task_hash",
    "verbose_name",
    "priority",
    "run_at",
    "repeat",
    "repeat_until",
    "queue",
    "attempts",
    "failed_at",
    "last_error",
    "locked_by",
    "locked_at",
    "creator_content_type_id",
    "creator_object_id",
)
TASKS, HISTORY = "background_task", "background_task_completedtask"
PROJECT = ("archive_watch", "archive_report", "archive_batch_tasks")
OLD, NEW = "1.2.8", "ours"
Row = dict[str, Any]


class Database:
    """Runs code of the legacy project with one package or another, and looks at what it left."""

    def __init__(self, predecessor: str, name: str, blocker: DjangoDbBlocker) -> None:
        self.name = name
        self.pythons = {OLD: predecessor, NEW: sys.executable}
        self._children: list[subprocess.Popen[str]] = []
        self._unblock = blocker.unblock
        self._connection = connection.copy()
        self._connection.settings_dict["NAME"] = name

    def close(self) -> None:
        """End every child and the connection."""
        for child in self._children:
            child.kill()
            child.communicate()
        with self._unblock():
            self._connection.close()

    def start(self, which: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``python ARGUMENT…``."""
        path = [environment.pop("FIRST_ON_PATH", ""), str(HERE), str(TESTS)]
        variables = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "legacy_project.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "TEST_NAME": self.name,
            **environment,
        }
        child = subprocess.Popen(
            [self.pythons[which], *arguments],
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._children.append(child)
        return child

    def run(self, which: str, *arguments: str, ok: bool = True, **environment: str) -> str:
        """Run ``python ARGUMENT…`` to its end; return what it printed."""
        child = self.start(which, *arguments, **environment)
        printed, _ = child.communicate(timeout=150)
        assert (child.returncode == 0) is ok, printed
        return printed

    def manage(self, which: str, *arguments: str, ok: bool = True, **environment: str) -> str:
        """Run a management command to its end; return what it printed."""
        return self.run(which, "-m", "django", *arguments, ok=ok, **environment)

    def call(self, which: str, function: str, *arguments: Any, **environment: str) -> Any:
        """Return what a function of ``legacy_project.script`` returns there, by way of JSON."""
        code = (
            "import django, json, sys; django.setup()\n"
            "from legacy_project import script\n"
            "function, *arguments = sys.argv[1:]\n"
            "answer = getattr(script, function)(*map(json.loads, arguments))\n"
            "print(json.dumps(answer))"
        )
        texts = map(json.dumps, arguments)
        printed = self.run(which, "-c", code, function, *texts, **environment)
        return json.loads(printed.splitlines()[-1])  # after what was logged

    @contextlib.contextmanager
    def worker(self, which: str, **environment: str) -> Iterator[None]:
        """Keep ``process_tasks`` running, and let it finish what it runs in the end."""
        child = self.start(which, "-m", "django", "process_tasks", "--sleep", "0.1", **environment)
        yield
        # Tells the predecessor too to finish first.
        child.send_signal(signal.SIGTSTP)
        printed, _ = child.communicate(timeout=30)
        assert child.returncode == 0, printed

    def work(self, which: str, until: Callable[[], bool], **environment: str) -> None:
        """Let a worker run until something is so."""
        with self.worker(which, **environment):
            wait_until(until, timeout=60)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a statement finds."""
        with self._unblock(), self._connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def rows(self, table: str) -> dict[int, Row]:
        """Return the predecessor's columns, as the database holds them, by primary key."""
        columns = ", ".join(map(self._connection.ops.quote_name, COLUMNS))
        found = self.query(f"SELECT {columns} FROM {table}")
        return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in found}

    def notes(self) -> Counter[tuple[str, str]]:
        """Return what the tasks wrote down: arguments and package."""
        return Counter(self.query("SELECT text, worker FROM archive_note"))  # type: ignore[arg-type]

    def schema(self, *tables: str) -> dict[str, Any]:
        """Describe tables: types of columns, and what is indexed, unique or refers elsewhere."""
        described: dict[str, Any] = {}
        with self._unblock(), self._connection.cursor() as cursor:
            introspection = self._connection.introspection
            for table in tables:
                columns = introspection.get_table_description(cursor, table)
                described[table] = {
                    "columns": {
                        each.name: (
                            introspection.get_field_type(each.type_code, each),
                            each.internal_size,
                            each.null_ok,
                        )
                        for each in columns
                    },
                    "constraints": sorted(
                        str([(key, value) for key, value in each.items() if key != "definition"])
                        for each in introspection.get_constraints(cursor, table).values()
                    ),
                }
        return described


def column(rows: dict[int, Row], name: str) -> list[Any]:
    """Return one column of rows, in the order of their keys."""
    return [rows[key][name] for key in sorted(rows)]

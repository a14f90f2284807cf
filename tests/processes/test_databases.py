"""Projects with more than one database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Child


def test_a_queue_with_a_database_of_its_own_and_a_lagging_replica_works(
    command: Callable[..., Child], tmp_path: Path, vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("the databases of this test are SQLite files")
    environment = {"TEST_ROUTED": "1", "TEST_TMP": str(tmp_path)}

    def run(*arguments: str) -> str:
        child = command(*arguments, **environment)
        assert child.wait() == 0, child.text()
        return child.text()

    for database in ("default", "queue", "replica"):
        run("migrate", "--database", database)
    enqueuing = (
        "from project.tasks import *; note('routed', repeat=3600, remove_existing_tasks=True); "
        "note('checked', schedule={'action': 2}); note('checked', schedule={'action': 2}); "
        "leave('exit')"
    )
    run("shell", "-v0", "-c", enqueuing)
    run("process_tasks", "--duration", "2", "--sleep", "0.1")
    counting = (
        "from background_task.models import *; from project.models import Note; "
        "[print(db, Task.objects.using(db).count(), CompletedTask.objects.using(db).count()) "
        "for db in ('default', 'queue', 'replica')]; "
        "print(sorted(Note.objects.values_list('text', flat=True)))"
    )
    assert run("shell", "-v0", "-c", counting).splitlines() == [
        "default 0 0",
        "queue 2 2",
        "replica 0 0",
        "['checked', 'leaving by exit', 'routed']",
    ]

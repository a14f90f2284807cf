"""Projects with more than one database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from project.models import Note
from support import Child, wait_until

from background_task.models import CompletedTask, Task


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


@pytest.mark.django_db(transaction=True)
def test_producers_and_workers_side_by_side_lose_nothing_and_fail_at_nothing(
    command: Callable[..., Child], worker: Callable[..., Child]
) -> None:
    producing = (
        "from project.tasks import *\n"
        "for number in range(40):\n"
        "    note(f'{0} {number}')\n"
        "    note('replaced', schedule=3600, remove_existing_tasks=True)\n"
    )
    workers = [worker() for _ in range(4)]
    producers = [
        command("shell", "-v0", "-c", producing.replace("{0}", str(number))) for number in range(4)
    ]
    assert [child.wait(60) for child in producers] == [0, 0, 0, 0]
    wait_until(lambda: CompletedTask.objects.count() == 160, timeout=60)
    for child in workers:
        child.process.terminate()
    assert [child.wait() for child in workers] == [0, 0, 0, 0]
    assert Note.objects.values("text").distinct().count() == Note.objects.count() == 160
    assert Task.objects.count() >= 1
    assert "".join(child.text() for child in workers + producers) == ""

"""Projects with more than one database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from project.models import Note
from support import Child, wait_until

from background_task.models import CompletedTask, Task


@pytest.fixture
def routed(command: Callable[..., Child], tmp_path: Path, vendor: str) -> Callable[..., str]:
    """Run a command in a project whose router keeps the queue apart, and return what it prints."""
    if vendor != "sqlite":
        pytest.skip("the databases of this test are SQLite files")

    def run(*arguments: str) -> str:
        child = command(*arguments, TEST_ROUTED="1", TEST_TMP=str(tmp_path))
        assert child.wait() == 0, child.text()
        return child.text()

    migrating = (
        "from django.core.management import call_command; "
        "[call_command('migrate', database=each) for each in ('default', 'queue', 'replica')]"
    )
    run("shell", "-v0", "-c", migrating)
    return run


COUNTING = (
    "from background_task.models import *; from project.models import Note; "
    "[print(db, Task.objects.using(db).count(), CompletedTask.objects.using(db).count()) "
    "for db in ('default', 'queue', 'replica')]; "
    "print(sorted(Note.objects.values_list('text', flat=True)))"
)


def test_a_queue_with_a_database_of_its_own_and_a_lagging_replica_works(
    routed: Callable[..., str],
) -> None:
    enqueuing = (
        "from project.tasks import *; note('routed', repeat=3600, remove_existing_tasks=True); "
        "note('checked', schedule={'action': 2}); note('checked', schedule={'action': 2}); "
        "leave('exit')"
    )
    routed("shell", "-v0", "-c", enqueuing)
    routed("process_tasks", "--burst")
    assert routed("shell", "-v0", "-c", COUNTING).splitlines() == [
        "default 0 0",
        "queue 2 2",
        "replica 0 0",
        "['checked', 'leaving by exit', 'routed']",
    ]


def test_a_backend_may_name_a_database_whatever_the_router_says(
    routed: Callable[..., str],
) -> None:
    enqueuing = (
        "from project import jobs; from project.tasks import *; "
        "apart = lambda task: task.using(backend='apart'); "
        "apart(jobs.urgent).enqueue('function'); apart(jobs.add_async).enqueue(1, 2); "
        "apart(jobs.raises).enqueue('why'); apart(jobs.enqueues_note).enqueue('from inside'); "
        "apart(jobs.add).enqueue_many([(1,), (2,)]); note('the other')"
    )
    routed("shell", "-v0", "-c", enqueuing)
    routed("process_tasks", "--burst", "--database", "default")
    assert routed("shell", "-v0", "-c", COUNTING).splitlines() == [
        "default 0 6",
        "queue 2 0",
        "replica 0 0",
        "['1 + 2', 'function']",
    ]
    asking = (
        "from background_task.models import *; from project import jobs; "
        "backend = jobs.add.using(backend='apart').get_backend(); "
        "rows = CompletedTask.objects.using('default'); "
        "print([backend.get_result(str(row.result_id)).status for row in rows])"
    )
    statuses = routed("shell", "-v0", "-c", asking)
    assert (statuses.count("SUCCESSFUL"), statuses.count("FAILED")) == (5, 1)
    routed("process_tasks", "--burst")
    assert "from inside" in routed("shell", "-v0", "-c", COUNTING)


@pytest.mark.parametrize("alias", ["default", "queue", "replica"])
def test_with_on_commit_every_transaction_of_the_caller_has_to_be_committed(
    routed: Callable[..., str], alias: str
) -> None:
    enqueuing = (
        "import background_task; from contextlib import suppress\n"
        "from django.db import transaction\n"
        "from background_task.models import Task; from project import jobs\n"
        "task = background_task.task(on_commit=True)(jobs.add.func)\n"
        "count = lambda: print(Task.objects.using('queue').count())\n"
        f"with suppress(KeyError), transaction.atomic({alias!r}):\n"
        "    task.enqueue(1)\n"
        "    raise KeyError\n"
        "count()\n"
        f"with transaction.atomic('replica'), transaction.atomic({alias!r}):\n"
        "    task.enqueue(1)\n"
        "    count()\n"
        "count()\n"
    )
    assert routed("shell", "-v0", "-c", enqueuing).split() == ["0", "0", "1"]


def test_the_helpers_for_tests_find_the_database_of_a_backend(
    routed: Callable[..., str],
) -> None:
    testing = (
        "from background_task.testing import *; from project import jobs; "
        "apart = jobs.urgent.using(backend='apart'); apart.enqueue('apart'); "
        "assert_not_enqueued(jobs.urgent); assert_enqueued(apart, ['apart'], count=1); "
        "print(len(run_due_tasks()), len(run_due_tasks(database='default')))"
    )
    assert routed("shell", "-v0", "-c", testing).split() == ["0", "1"]


def test_a_database_that_does_not_exist_is_refused(worker: Callable[..., Child]) -> None:
    child = worker("--database", "defautl")
    assert child.wait() == 1
    assert "--database is 'defautl'; the databases are default" in child.text()


@pytest.mark.django_db(transaction=True)
def test_producers_and_workers_side_by_side_lose_nothing_and_fail_at_nothing(
    command: Callable[..., Child], worker: Callable[..., Child]
) -> None:
    producing = (
        "from project.tasks import *\n"
        "for number in range(25):\n"
        "    note(f'{0} {number}')\n"
        "    note('replaced', schedule=3600, remove_existing_tasks=True)\n"
    )
    workers = [worker() for _ in range(8)]
    producers = [
        command("shell", "-v0", "-c", producing.replace("{0}", str(number))) for number in range(8)
    ]
    assert [child.wait() for child in producers] == [0] * 8
    wait_until(lambda: CompletedTask.objects.count() == 200)
    for child in workers:
        child.process.terminate()
    assert [child.wait() for child in workers] == [0] * 8
    assert Note.objects.values("text").distinct().count() == Note.objects.count() == 200
    assert Task.objects.count() >= 1
    assert "".join(child.text() for child in workers + producers) == ""

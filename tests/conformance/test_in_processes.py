"""Tasks of Django's door in real worker processes, and in processes that only import them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import django
import pytest
from django.db import connection
from project import jobs
from project.models import Note
from support import Child, child_environment, wait_until

from background_task._compat import tasks_base
from background_task.models import CompletedTask, Task

pytestmark = pytest.mark.django_db(transaction=True)

Status = tasks_base.TaskResultStatus


@pytest.mark.parametrize("threads", [False, True])
def test_a_worker_runs_what_another_process_has_enqueued(
    worker: Callable[..., Child], threads: bool
) -> None:
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    results = [
        jobs.add.enqueue(1, 2),
        jobs.add_async.enqueue(3, 4),
        jobs.with_context.enqueue("text"),
        jobs.with_context_async.enqueue("text"),
        jobs.raises.enqueue("no"),
    ]
    wait_until(lambda: CompletedTask.objects.count() == len(results))
    for result in results:
        result.refresh()
    added, awaited, context, context_async, failed = results
    assert (added.return_value, awaited.return_value) == (3, 7)
    assert context.return_value == [context.id, 1, "text", context.id]
    assert context_async.return_value == [context_async.id, 1, "text", context_async.id]
    assert failed.status == Status.FAILED
    assert {result.worker_ids[0].split(":")[1] for result in results} == {str(child.process.pid)}


def test_the_result_of_a_running_task_says_so(worker: Callable[..., Child]) -> None:
    from project import tasks as own

    result = own.slow.enqueue("long", 2)
    worker()
    wait_until(lambda: Task.objects.filter(locked_by__isnull=False))
    result.refresh()
    assert (result.status, result.attempts) == (Status.RUNNING, 1)
    assert result.started_at == result.last_attempted_at
    assert result.wait(20) is None
    assert result.status == Status.SUCCESSFUL


def test_importing_the_backend_loads_no_model() -> None:
    code = (
        "import sys, background_task, background_task.backends\n"
        "from background_task import current_task, task\n"
        "assert not [name for name in sys.modules if name.startswith('background_task.models')]"
    )
    environment = child_environment(TEST_NAME=str(connection.settings_dict["NAME"]))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_without_djangos_tasks_the_door_of_the_predecessor_works_and_the_other_says_why() -> None:
    if django.VERSION >= (6, 0):
        pytest.skip("this Django has django.tasks")
    code = (
        "import sys; sys.modules['django_tasks'] = None\n"
        "import django; django.setup()\n"
        "from background_task import background, current_task\n"
        "from background_task.tasks import tasks\n"
        "from project.tasks import note\n"
        "from background_task.testing import assert_enqueued, run_due_tasks\n"
        "note('without'); assert_enqueued(note, ['without']); assert run_due_tasks()\n"
        "for call in (note.enqueue, lambda text: __import__('background_task.backends')):\n"
        "    try: call('with')\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = child_environment(
        TEST_NAME=str(connection.settings_dict["NAME"]), TEST_NO_TASKS="1"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert Note.objects.get().text == "without"
    assert child.stdout.count("ImproperlyConfigured This needs django.tasks") == 2, child.stdout

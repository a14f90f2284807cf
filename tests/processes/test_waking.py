"""An idle worker takes a task at once, whoever stored it, however rarely it looks by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.utils import timezone
from notes import noted
from project.models import Note
from support import Child, wait_until

from background_task.models import CompletedTask, Task, Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def idle(command: Callable[..., Child]) -> Callable[..., Child]:
    """Start a worker that would look after two minutes, and wait until it has nothing to do."""

    def start(*arguments: str, **environment: str) -> Child:
        Task.objects.new_task("project.tasks.note", ["awake"]).save()
        child = command("process_tasks", "--sleep", "120", *arguments, **environment)
        wait_until(CompletedTask.objects.exists)
        return child

    return start


STORE = "from project.tasks import note, query_async; "


@pytest.mark.parametrize("name", ["note", "query_async"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_task_of_another_process_is_taken_at_once(
    command: Callable[..., Child], idle: Callable[..., Child], name: str, threads: str
) -> None:
    idle("--threads", threads)
    for number in range(5):
        command("shell", "-v0", "-c", f"{STORE}{name}('{number}')").wait()
        wait_until(noted(str(number)))


def test_a_task_is_taken_as_soon_as_it_is_due(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle()
    command("shell", "-v0", "-c", f"{STORE}note('later', schedule=2)").wait()
    row = Task.objects.get()
    wait_until(noted("later"))
    assert timezone.now() >= row.run_at


def test_a_task_is_taken_when_the_transaction_that_stored_it_commits(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle()
    code = (
        "import time; from django.db import transaction; "
        "from project.models import Note; from project.tasks import note\n"
        "with transaction.atomic():\n"
        "    note('inside')\n"
        "    time.sleep(0.5)\n"
        "    Note.objects.create(text='stored')\n"
    )
    command("shell", "-v0", "-c", code).wait()
    wait_until(noted("inside"))
    order = list(Note.objects.order_by("pk").values_list("text", flat=True))
    assert order == ["awake", "stored", "inside"]


def test_many_that_are_stored_one_after_the_other_are_all_taken(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle("--processes", "2")
    command("shell", "-v0", "-c", f"{STORE}[note(str(number)) for number in range(200)]").wait()
    wait_until(lambda: CompletedTask.objects.count() == 201)
    assert Worker.objects.count() == 3


def test_a_row_that_the_predecessors_code_has_stored_is_taken_too(
    idle: Callable[..., Child],
) -> None:
    idle("--sleep", "0.2")  # nobody tells of it
    row = Task.objects.new_task("project.tasks.note", ["theirs"])
    Task.objects.bulk_create([row])
    wait_until(noted("theirs"))

"""A log whose handlers raise: what happens to tasks is recorded all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from project import jobs

from background_task import background
from background_task.models import Attempt, CompletedTask, Task
from background_task.states import State
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db(transaction=True)


class Raising(logging.Handler):
    """Such as the one of Django that mails errors, when it meets what cannot be shown."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None or record.levelno >= logging.WARNING:
            raise SystemExit("the log")


@pytest.fixture(autouse=True)
def broken_log() -> Iterator[None]:
    handler = Raising()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


async def raises_async(text: str) -> None:
    raise LookupError(text)


@pytest.mark.parametrize("options", [{}, {"threads": 2}], ids=str)
@pytest.mark.parametrize("body", [jobs.raises.func, raises_async], ids=["function", "coroutine"])
def test_a_failure_is_recorded_and_the_worker_goes_on(body: Any, options: dict[str, Any]) -> None:
    task = background("raising", max_attempts=1)(body)
    for number in range(3):
        task(str(number))
    other = jobs.add.enqueue(1)
    call_command("process_tasks", burst=True, **options)
    failed = CompletedTask.objects.filter(task_name="raising")
    assert list(failed.values_list("state", "attempts")) == [(State.FAILED, 1)] * 3
    assert set(Attempt.objects.values_list("exception_class_path", flat=True)) == {
        "builtins.LookupError"
    }
    other.refresh()
    assert other.is_finished
    assert not Task.objects.exists()


def test_a_task_that_is_taken_by_itself_has_failed_too() -> None:
    background("raising", max_attempts=1)(jobs.raises.func)("why")
    assert tasks.run_next_task()
    assert "LookupError: why" in CompletedTask.objects.get().last_error

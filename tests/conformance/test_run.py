"""What Django documents about running tasks and their results."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from conformance.conftest import OURS, Backend, make_due
from project import jobs
from project.models import Note

from background_task import background
from background_task._compat import tasks_base, tasks_signals
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks

Status = tasks_base.TaskResultStatus


def test_a_success_has_its_return_value_and_its_times(running_backend: Backend) -> None:
    result = running_backend.run(jobs.add, 1, b=2)
    assert (result.status, result.return_value, result.errors) == (Status.SUCCESSFUL, 3, [])
    assert result.is_finished
    assert result.attempts == len(result.worker_ids) == 1
    times = result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at
    assert all(times)
    assert result.started_at == result.last_attempted_at
    assert result.started_at <= result.finished_at


def test_an_async_function_runs(running_backend: Backend) -> None:
    result = running_backend.run(jobs.add_async, 1, 2)
    assert result.return_value == 3
    assert Note.objects.get().text == "1 + 2"


@pytest.mark.parametrize("leaving", [False, True])
def test_a_failure_has_its_error(running_backend: Backend, leaving: bool) -> None:
    if leaving:
        result = running_backend.run(jobs.leaves)
    else:
        result = running_backend.run(jobs.raises, "the reason")
    assert result.status == Status.FAILED
    assert (result.is_finished, result.attempts) == (True, 1)
    assert result.finished_at
    (error,) = result.errors
    assert error.exception_class is (SystemExit if leaving else LookupError)
    assert leaving or "LookupError: the reason" in error.traceback
    with pytest.raises(ValueError, match="Task failed"):
        _ = result.return_value


@pytest.mark.parametrize(
    ("value", "returned"),
    [("tuple", [1, 2]), ("bytes", "abc"), ("nested", {"a": [1, [2, None]]}), ("none", None)],
)
def test_a_return_value_is_normalised_as_json(
    running_backend: Backend, value: str, returned: Any
) -> None:
    assert running_backend.run(jobs.returns, value).return_value == returned


@pytest.mark.parametrize("value", ["set", "object"])
def test_a_return_value_that_is_no_json_fails_the_task(
    running_backend: Backend, value: str
) -> None:
    result = running_backend.run(jobs.returns, value)
    assert result.status == Status.FAILED
    assert "Unsupported type" in result.errors[0].traceback


@pytest.mark.parametrize("task", [jobs.with_context, jobs.with_context_async])
def test_a_task_gets_its_context_where_it_asks_for_it(running_backend: Backend, task: Any) -> None:
    if running_backend.alias != OURS:
        pytest.skip("current_task() is ours")
    result = running_backend.run(task, "text")
    assert result.return_value == [result.id, 1, "text", result.id]


def test_a_run_is_announced_with_the_class_of_the_backend(running_backend: Backend) -> None:
    announced = []

    def receiver(signal: Any, sender: Any, task_result: Any, **kwargs: Any) -> None:
        announced.append((signal, sender, task_result.status, task_result.attempts))

    for signal in (tasks_signals.task_started, tasks_signals.task_finished):
        signal.connect(receiver)
    try:
        running_backend.run(jobs.add, 1)
        running_backend.run(jobs.raises, "no")
    finally:
        for signal in (tasks_signals.task_started, tasks_signals.task_finished):
            signal.disconnect(receiver)
    sender = type(running_backend.backend)
    started, finished = tasks_signals.task_started, tasks_signals.task_finished
    assert announced == [
        (started, sender, Status.RUNNING, 1),
        (finished, sender, Status.SUCCESSFUL, 1),
        (started, sender, Status.RUNNING, 1),
        (finished, sender, Status.FAILED, 1),
    ]


def test_a_run_is_logged_as_django_logs_it(
    running_backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    name = tasks_signals.logger.name
    with caplog.at_level(logging.INFO, name):
        running_backend.run(jobs.raises, "the reason")
    records = [record for record in caplog.records if record.name == name]
    assert [record.levelno for record in records] == [logging.INFO, logging.ERROR]
    assert all("project.jobs.raises" in record.getMessage() for record in records)
    assert records[1].exc_info is not None
    assert records[1].exc_info[0] is LookupError


@pytest.mark.parametrize("name", ["task_started", "task_finished"])
@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_receiver_that_raises_changes_nothing(
    ours: Backend, name: str, error: type[BaseException]
) -> None:
    def receiver(**kwargs: Any) -> None:
        raise error

    signal = getattr(tasks_signals, name)
    signal.connect(receiver)
    try:
        result = ours.run(jobs.add, 1)
    finally:
        signal.disconnect(receiver)
    assert (result.status, result.attempts) == (Status.SUCCESSFUL, 1)


def test_a_task_is_tried_once_unless_it_asks_for_more(ours: Backend) -> None:
    result = ours.run(jobs.raises, "no")
    assert result.status == Status.FAILED
    assert not Task.objects.exists()
    assert CompletedTask.objects.get().attempts == 1


def test_a_retried_task_is_ready_again_and_keeps_its_errors(ours: Backend) -> None:
    task = jobs.raises.using(backend="retrying")
    finished = []

    def receiver(task_result: Any, **kwargs: Any) -> None:
        finished.append(task_result.attempts)

    tasks_signals.task_finished.connect(receiver)
    try:
        result = task.enqueue("again")
        for attempt in (1, 2):
            assert tasks.run_next_task()
            result.refresh()
            assert (result.status, result.attempts) == (Status.READY, attempt)
            assert len(result.errors) == attempt
            assert result.last_attempted_at
            make_due()
        assert tasks.run_next_task()
    finally:
        tasks_signals.task_finished.disconnect(receiver)
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == (Status.FAILED, 3, 3)
    assert finished == [3]


def test_a_result_can_be_waited_for(ours: Backend) -> None:
    result = jobs.add.enqueue(1, 2)
    with pytest.raises(TimeoutError, match="has not finished within"):
        result.wait(0.1)
    with pytest.raises(TimeoutError):
        async_to_sync(result.await_)(0.1)

    def work() -> None:
        from django.db import connection

        tasks.run_next_task()
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert result.wait(20) == 3
    thread.join()
    assert async_to_sync(result.await_)(20) == 3


def test_the_context_is_there_under_background_too_and_gone_afterwards(ours: Backend) -> None:
    from background_task import current_task

    proxy = background("whose")(jobs.whose_am_i.func)
    row = proxy()
    assert tasks.run_next_task()
    result = proxy.get_result(str(row.result_id))
    assert result.return_value == [str(row.result_id), "RUNNING"]
    assert current_task() is None

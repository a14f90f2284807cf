"""BACKGROUND_TASK_RUN_ASYNC: tasks in a pool of threads, and the receivers that tidy up there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.test import override_settings
from support import wait_until

from background_task import background, signals
from background_task.execution.runs import runs
from background_task.models import CompletedTask, Task
from background_task.tasks import PoolRunner, bg_runner, tasks

pytestmark = pytest.mark.django_db(transaction=True)

MODES = pytest.mark.parametrize("threads", [True, False], ids=["threads", "one by one"])


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolRunner]:
    """Put in a pool of two threads that leave no connection behind."""

    def run(*args: Any, **kwargs: Any) -> None:
        try:
            bg_runner(*args, **kwargs)
        finally:
            connections.close_all()

    pool = PoolRunner(run, 2)
    monkeypatch.setattr(tasks, "_pool_runner", pool)
    with override_settings(BACKGROUND_TASK_RUN_ASYNC=True, BACKGROUND_TASK_ASYNC_THREADS=2):
        yield pool
    pool.drain(20)
    if pool._pool_instance is not None:
        pool._pool_instance.terminate()
        pool._pool_instance.join()


def test_run_next_task_returns_while_the_task_runs_in_another_thread(pool: PoolRunner) -> None:
    begun, release, thread = threading.Event(), threading.Event(), []

    @background("waits")
    def waits() -> None:
        thread.append(threading.current_thread())
        begun.set()
        release.wait(20)

    waits()
    assert tasks.run_next_task() is True
    assert begun.wait(20)
    assert Task.objects.get().locked_by == tasks._runner.worker_name
    assert thread != [threading.current_thread()]
    release.set()
    assert pool.drain(20)
    assert CompletedTask.objects.succeeded().count() == 1


def test_no_more_tasks_are_taken_than_there_are_threads(pool: PoolRunner) -> None:
    release = threading.Event()
    proxy = background("waits")(lambda number: release.wait(20))
    for number in range(3):
        proxy(number)
    assert [tasks.run_next_task() for _ in range(3)] == [True, True, False]
    release.set()
    assert pool.drain(20)
    assert tasks.run_next_task() is True


def test_what_waits_for_a_thread_does_not_begin_when_its_row_was_handed_back(
    pool: PoolRunner,
) -> None:
    release, begun = threading.Event(), []

    @background("waits")
    def waits(number: int) -> None:
        begun.append(number)
        release.wait(20)

    for number in range(3):
        row = waits(number).lock("1")
        pool.run(waits, row)
    wait_until(lambda: len(begun) == 2)
    runs.hand_back()
    release.set()
    assert pool.drain(20)
    assert sorted(begun) == [0, 1]
    assert set(Task.objects.values_list("locked_by", "attempts")) == {(None, 0)}


def test_a_failure_in_a_thread_is_recorded_like_any_other(pool: PoolRunner) -> None:
    @background("fails")
    def fails() -> None:
        raise ValueError("in a thread")

    fails()
    assert tasks.run_next_task() is True
    assert pool.drain(20)
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert "in a thread" in row.last_error


def test_the_threads_are_started_when_they_are_first_needed(pool: PoolRunner) -> None:
    assert pool._pool_instance is None
    background("first")(lambda: None)()
    tasks.run_next_task()
    assert pool._pool_instance is not None
    assert pool._num_processes == 2


def test_a_worker_that_a_task_starts_in_its_thread_is_refused(pool: PoolRunner) -> None:
    @background("nested")
    def nested() -> None:
        call_command("process_tasks", duration=1, sleep=0.1)

    nested()
    assert tasks.run_next_task() is True
    assert pool.drain(20)
    assert "process_tasks was called by a task" in Task.objects.get().last_error


@MODES
def test_the_queries_that_debug_collects_are_forgotten_in_threads(threads: bool) -> None:
    connection.force_debug_cursor = True
    try:
        connection.queries_log.clear()
        Task.objects.exists()
        with override_settings(BACKGROUND_TASK_RUN_ASYNC=threads):
            signals.task_started.send(Task)
        assert bool(connection.queries_log) is not threads
    finally:
        connection.force_debug_cursor = False
        connection.queries_log.clear()


@MODES
@pytest.mark.parametrize("name", ["task_started", "task_finished"])
def test_connections_past_their_lifetime_are_closed_in_threads(name: str, threads: bool) -> None:
    connection.ensure_connection()
    before, connection.close_at = connection.close_at, 0.0
    try:
        with override_settings(BACKGROUND_TASK_RUN_ASYNC=threads):
            getattr(signals, name).send(Task)
        assert (connection.connection is None) is threads
    finally:
        connection.close_at = before

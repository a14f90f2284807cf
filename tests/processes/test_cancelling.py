"""A task can be cancelled while it runs, wherever that is."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from notes import enqueue, noted
from project.models import Note
from support import Child, wait_until

from background_task.models import Attempt, CompletedTask, Task
from background_task.states import State

pytestmark = pytest.mark.django_db(transaction=True)


def cancel(row: Task) -> CompletedTask:
    """Cancel what runs; return what the history says of it."""
    wait_until(row.cancel)  # a short while it is held, and nobody knows by whom
    done: CompletedTask = wait_until(CompletedTask.objects.first)
    assert (done.state, done.attempts, done.losses) == (State.CANCELLED, 1, None)
    assert "TaskCancelledError: The task was cancelled as it ran." in done.last_error
    assert "tasks.py" in done.last_error, "it tells where it stood"
    assert Attempt.objects.get().exception_class_path.endswith("TaskCancelledError")
    assert not Task.objects.filter(pk=row.pk).exists()
    return done


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("stay", "sleep", []),
        ("stay", "loop", []),
        ("stay", "loop", ["--threads", "2"]),
        ("stay", "sleep", ["--processes", "2"]),
        ("stay_async", "sleep", []),
    ],
)
def test_a_task_that_is_cancelled_may_tidy_up(
    worker: Callable[..., Child], name: str, how: str, options: list[str]
) -> None:
    row = enqueue(name, "long", how, repeat=3600)
    child = worker(*options)
    wait_until(noted("long begins"))
    cancel(row)
    assert noted("long tidies up")()
    assert not Task.objects.exists(), "the chain has ended with it"
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert "the process is replaced" not in child.text()


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("stay", "stubborn", []),
        ("stay", "sleep", ["--threads", "2"]),
        ("stay", "stubborn", ["--processes", "2"]),
        ("stay_async", "block", []),
    ],
)
def test_one_that_does_not_give_way_is_ended_with_its_process(
    worker: Callable[..., Child], name: str, how: str, options: list[str]
) -> None:
    row = enqueue(name, "long", how)
    child = worker(*options)
    wait_until(noted("long begins"))
    cancel(row)
    assert "the process is replaced" in child.text()
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None


def test_only_the_chosen_one_of_many_is_cancelled(worker: Callable[..., Child]) -> None:
    rows = [enqueue("slow_async", f"task {number}", 3) for number in range(20)]
    worker()
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 20)
    assert rows[7].cancel()
    wait_until(lambda: CompletedTask.objects.count() == 20)
    cancelled = CompletedTask.objects.get(state=State.CANCELLED)
    assert cancelled.result_id == rows[7].result_id
    assert Note.objects.filter(text__endswith="ends").count() == 19


def test_one_that_waits_behind_another_in_a_batch_does_not_run(
    worker: Callable[..., Child],
) -> None:
    enqueue("slow", "first", 3, priority=1)
    row = enqueue("slow", "second", 1)
    worker()
    wait_until(noted("first begins"))
    wait_until(row.cancel)
    wait_until(noted("first ends"))
    wait_until(lambda: not Task.objects.exists())
    assert not noted("second begins")()
    assert CompletedTask.objects.get(result_id=row.result_id).state == State.CANCELLED


@pytest.mark.parametrize("first", ["cancel", "kill"])
def test_one_whose_worker_dies_before_it_is_cancelled_does_not_run_again(
    worker: Callable[..., Child], first: str
) -> None:
    row = enqueue("stay", "long", "stubborn")
    child = worker()
    wait_until(noted("long begins"))
    wait_until(lambda: Task.objects.filter(locked_by__isnull=False).exists())
    if first == "kill":
        child.end()
    assert row.cancel()
    child.end()
    worker()
    done = wait_until(CompletedTask.objects.first)
    assert (done.state, "may have begun" in done.last_error) == (State.CANCELLED, True)
    assert Note.objects.filter(text="long begins").count() == 1


def test_one_that_is_handed_back_before_it_has_ended_is_cancelled(
    worker: Callable[..., Child],
) -> None:
    row = enqueue("stay", "long", "stubborn")
    child = worker()
    wait_until(noted("long begins"))
    wait_until(row.cancel)
    for _ in range(2):
        child.send(signal.SIGTERM)
    child.wait()
    worker()
    assert wait_until(CompletedTask.objects.first).state == State.CANCELLED
    assert Note.objects.filter(text="long begins").count() == 1


def test_what_was_taken_and_cannot_begin_for_long_is_cancelled_all_the_same(
    worker: Callable[..., Child],
) -> None:
    enqueue("keep_the_loop", 7)
    worker()
    wait_until(noted("the loop is kept"))
    row = enqueue("wait_async", "never")
    wait_until(lambda: Task.objects.filter(pk=row.pk, locked_by__isnull=False).exists())
    assert row.cancel()
    done = CompletedTask.objects.filter(result_id=row.result_id)
    assert wait_until(done.first).state == State.CANCELLED

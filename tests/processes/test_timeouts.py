"""A task that takes longer than it may is ended: asked to at first, then with its process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from notes import enqueue, noted
from project.models import Note
from support import Child, app_in, wait_until

from background_task.execution import fuse
from background_task.models import Attempt, CompletedTask, Task

pytestmark = pytest.mark.django_db(transaction=True)


def failed() -> Task:
    """Return the row of the first task that has failed once."""
    row: Task = wait_until(lambda: Task.objects.filter(attempts=1, locked_by=None).first())
    return row


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("overstay", "sleep", {}),
        ("overstay", "loop", {}),
        ("overstay", "loop", {"threads": "2"}),
        ("overstay", "loop", {"TEST_RUN_ASYNC": "1"}),
        ("overstay_async", "sleep", {}),
        ("overstay_async", "sleep", {"TEST_RUN_ASYNC": "1"}),
    ],
)
def test_a_task_that_takes_too_long_has_failed_and_may_tidy_up(
    worker: Callable[..., Child], name: str, how: str, options: dict[str, str]
) -> None:
    enqueue(name, "long", how)
    arguments = ["--threads", options.pop("threads")] if "threads" in options else []
    child = worker(*arguments, **options)
    row = failed()
    assert "TaskTimeoutError: " in row.last_error
    assert f"project.tasks.{name} has run for longer than its timeout of 0.5 s" in row.last_error
    assert "tasks.py" in row.last_error, "it tells where it stood"
    assert noted("long tidies up")()
    assert Attempt.objects.get().exception_class_path.endswith("TaskTimeoutError")
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None
    assert "the process is replaced" not in child.text()


@pytest.mark.parametrize(
    ("name", "how", "options"),
    [
        ("overstay", "stubborn", {}),
        ("overstay", "sleep", {"threads": "2"}),
        ("overstay_async", "block", {}),
        ("overstay_async", "stubborn", {}),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_does_not_give_way_is_ended_with_its_process_which_is_replaced(
    worker: Callable[..., Child], name: str, how: str, options: dict[str, str], processes: int
) -> None:
    enqueue(name, "long", how)
    other = enqueue("slow_async", "other", 600)
    arguments = ["--processes", str(processes)]
    if "threads" in options:
        arguments += ["--threads", options["threads"]]
    child = worker(*arguments)
    row = failed()
    assert "TaskTimeoutError" in row.last_error
    assert "tasks.py" in row.last_error, "it tells where it stood"
    assert "the process is replaced" in child.text()
    # What ran beside it is handed back, and runs again.
    again = wait_until(lambda: Task.objects.filter(pk=other.pk, locked_by__isnull=False).first())
    assert (again.attempts, again.losses) == (0, None)
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None
    assert (row.losses, Attempt.objects.count()) == (None, 1)
    os.killpg(child.process.pid, signal.SIGKILL)


def test_what_waits_beside_one_that_does_not_give_way_does_not_end_the_worker_that_starts_anew(
    worker: Callable[..., Child],
) -> None:
    other = enqueue("wait_for_a_word", "other")
    enqueue("overstay_async", "long", "block")
    child = worker()
    failed()
    wait_until(lambda: Note.objects.filter(text="other begins").count() == 2)
    enqueue("query_async", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None
    row = Task.objects.get(pk=other.pk)
    assert (row.attempts, row.losses) == (0, None)
    os.killpg(child.process.pid, signal.SIGKILL)


def test_what_has_ended_beside_one_that_does_not_give_way_is_recorded(
    worker: Callable[..., Child], tmp_path: Path
) -> None:
    # Batches of many, so that in each moment but few there is one that has ended and waits.
    short = [Task.objects.new_task("project.tasks.journal", [n, 0.002]) for n in range(4000)]
    Task.objects.bulk_create(short)
    enqueue("overstay_async", "long", "block")
    child = worker(TEST_JOURNAL=str(tmp_path / "journal"))
    failed()
    enqueue("query_async", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None
    assert not Task.objects.exclude(losses=None).exists()
    assert not CompletedTask.objects.exclude(losses=None).exists()
    os.killpg(child.process.pid, signal.SIGKILL)


@pytest.fixture
def looking_slowly(tmp_path: Path) -> dict[str, str]:
    """What lets a worker look for tasks most of the time, while a pool of threads runs them."""
    models = (
        "import time\n"
        "from background_task.tasks import Tasks\n"
        "look = Tasks.run_next_task\n"
        "Tasks.run_next_task = lambda *args: [time.sleep(0.5), look(*args)][1]\n"
    )
    return {**app_in(tmp_path, "slow", models), "TEST_RUN_ASYNC": "1"}


@pytest.mark.parametrize("looks_slowly", [False, True])
def test_a_worker_that_starts_anew_keeps_to_what_is_left_of_its_limits(
    worker: Callable[..., Child], looking_slowly: dict[str, str], looks_slowly: bool
) -> None:
    enqueue("overstay", "long", "stubborn")
    child = worker("--max-tasks", "2", **looking_slowly if looks_slowly else {})
    failed()
    enqueue("note", "the last one")
    enqueue("note", "too many")
    assert child.wait() == 0, child.text()
    assert noted("the last one")()
    assert not noted("too many")()


@pytest.fixture
def step_by_step(tmp_path: Path) -> dict[str, str]:
    """What lets a worker take tasks one by one, since an app has replaced a step of the run."""
    models = (
        "from background_task.models import Task\n"
        "lock = Task.lock\n"
        "Task.lock = lambda self, *args, **kwargs: lock(self, *args, **kwargs)\n"
    )
    return app_in(tmp_path, "replacing", models)


@pytest.mark.parametrize("limit", [["--max-tasks", "1"], ["--duration", "2"]])
@pytest.mark.parametrize("is_stepwise", [False, True])
def test_a_worker_that_is_through_does_not_start_anew(
    worker: Callable[..., Child],
    limit: list[str],
    is_stepwise: bool,
    step_by_step: dict[str, str],
) -> None:
    enqueue("overstay", "long", "stubborn")
    child = worker(*limit, **step_by_step if is_stepwise else {})
    failed()
    enqueue("note", "too many")
    assert child.wait() == 0, child.text()
    assert not noted("too many")()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_that_stops_tells_of_what_was_cut_off_with_one_that_does_not_give_way(
    worker: Callable[..., Child], processes: int
) -> None:
    for number in range(processes):
        enqueue("slow_async", str(number), 600)
        enqueue("overstay", "long", "stubborn")
    child = worker("--processes", str(processes), "--concurrency", "1")
    wait_until(lambda: child.text().count("long overstays") == processes)
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == processes)
    child.send(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.text()
    rows = Task.objects.order_by("attempts").values_list("attempts", "locked_by", "losses")
    assert list(rows) == [(0, None, None)] * processes + [(1, None, None)] * processes


def test_those_that_keep_to_the_limit_do_not_notice_it(worker: Callable[..., Child]) -> None:
    for number in range(300):
        enqueue("keep_to_the_limit", f"task {number}")
    child = worker("--burst")
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.succeeded().count() == 300
    assert Note.objects.count() == 300


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such timer")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_one_that_lets_nothing_else_run_is_ended_by_the_kernel(
    worker: Callable[..., Child], threads: str
) -> None:
    enqueue("overstay_once", "long", "lock")
    other = enqueue("slow_async", "other", 600)
    child = worker("--processes", "2", "--threads", threads)
    done = wait_until(lambda: CompletedTask.objects.failed().first())
    assert "WorkerLostError" in done.last_error
    assert "has kept Python's global lock" in child.text()
    again = wait_until(lambda: Task.objects.filter(pk=other.pk, locked_by__isnull=False).first())
    assert again.attempts == 0
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert child.process.poll() is None
    os.killpg(child.process.pid, signal.SIGKILL)


def test_a_worker_without_a_supervisor_ends_rather_than_hang(worker: Callable[..., Child]) -> None:
    enqueue("overstay_once", "long", "lock")
    child = worker()
    assert child.wait() == -fuse.SIGNAL
    assert worker("--burst").wait() == 0
    assert "WorkerLostError" in CompletedTask.objects.get().last_error

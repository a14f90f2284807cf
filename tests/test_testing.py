"""``background_task.testing``, in tests like those of a project."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TestCase, override_settings
from django.utils import timezone
from project import jobs
from project import tasks as own
from project.models import Note

import background_task
from background_task import background
from background_task.models import CompletedTask, Task
from background_task.testing import (
    Ran,
    assert_enqueued,
    assert_not_enqueued,
    captured_tasks,
    eager_tasks,
    run_due_tasks,
)

pytestmark = pytest.mark.django_db


def fails() -> None:
    raise LookupError("no")


class InsideATestCase(TestCase):
    """The test's transaction stays what it is."""

    def test_what_is_due_runs_in_the_transaction_of_the_test(self) -> None:
        before = connection.connection
        own.note("by call")
        own.note.enqueue("by the other door")
        jobs.add_async.enqueue(1, 2)
        with override_settings(BACKGROUND_TASK_RUN_ASYNC=True):
            ran = run_due_tasks()
        assert [each.name for each in ran][:2] == ["project.tasks.note"] * 2
        assert ran[0] == Ran("project.tasks.note", ["by call"], {}, None)
        assert Note.objects.count() == 3
        assert CompletedTask.objects.count() == 3
        assert connection.connection is before
        assert connection.in_atomic_block

    def test_nothing_of_another_test_is_there(self) -> None:
        assert not CompletedTask.objects.exists()
        assert run_due_tasks() == []


def test_tasks_that_tasks_enqueue_run_too() -> None:
    def parent() -> None:
        own.note("from the parent")

    background("parent")(parent)()
    assert [each.name for each in run_due_tasks()] == ["parent", "project.tasks.note"]


def test_what_a_task_raises_is_raised_once_it_is_recorded() -> None:
    background("fails")(fails)()
    with pytest.raises(LookupError, match="no"):
        run_due_tasks()
    assert Task.objects.get().attempts == 1


def test_a_failure_can_be_asked_for_instead() -> None:
    background("fails")(fails)()
    own.note("after it")
    ran = run_due_tasks(raise_errors=False)
    assert [type(each.error) for each in ran] == [LookupError, type(None)]


def test_what_is_due_later_waits_unless_it_is_asked_for() -> None:
    own.note("later", schedule=3600)
    assert run_due_tasks() == []
    assert run_due_tasks(until=timezone.now() + timedelta(minutes=59)) == []
    assert len(run_due_tasks(until=timezone.now() + timedelta(minutes=61))) == 1


def test_what_comes_due_runs_in_the_order_of_its_time() -> None:
    for minutes in (30, 10, 20):
        own.note(f"{minutes}", schedule=timedelta(minutes=minutes))
    ran = run_due_tasks(until=timezone.now() + timedelta(hours=1))
    assert [each.args for each in ran] == [["10"], ["20"], ["30"]]


def test_repetitions_and_retries_come_due_as_well() -> None:
    start = timezone.now()
    own.note("again", repeat=3600)
    background("fails", max_attempts=3, backoff=60)(fails)()
    ran = run_due_tasks(until=start + timedelta(hours=3.5), raise_errors=False)
    assert [each.name for each in ran].count("project.tasks.note") == 4
    assert [each.name for each in ran].count("fails") == 3
    assert CompletedTask.objects.get(task_name="fails").failed_at
    following = Task.objects.get()
    assert timedelta(hours=3.9) < following.run_at - start < timedelta(hours=4.1)


def test_only_one_queue_may_be_asked_for() -> None:
    own.note("here", queue="mine")
    own.note("there", queue="other")
    assert [each.args for each in run_due_tasks(queue="mine")] == [["here"]]


def test_a_task_that_enqueues_itself_for_ever_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("background_task.testing.running.MOST_RUNS", 5)
    proxy = background("endless")(lambda: proxy())
    proxy()
    with pytest.raises(RuntimeError, match="does one enqueue itself"):
        run_due_tasks()


@pytest.mark.parametrize(
    ("until", "error"),
    [(60, TypeError), (datetime(2030, 1, 1), ValueError), (timezone.now(), ValueError)],
)
def test_a_time_that_cannot_be_meant_is_refused(until: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="until"):
        run_due_tasks(until=until)


def test_what_was_enqueued_can_be_asserted() -> None:
    row = own.note("text")
    jobs.add.enqueue(1, b=(2,))
    assert assert_enqueued(own.note) == [row]
    assert_enqueued(own.note, ["text"], {}, count=1)
    assert_enqueued("project.tasks.note")
    assert_enqueued(jobs.add, (1,), {"b": [2]}, queue="default")
    assert_not_enqueued(jobs.raises)
    assert_not_enqueued(own.note, ["other text"])
    assert_not_enqueued(own.note, queue="default")


def test_an_assertion_that_fails_tells_what_is_there() -> None:
    own.note("text")
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(own.note, ["other"])
    assert "project.tasks.note('other', …) was expected" in str(caught.value)
    assert "project.tasks.note('text')" in str(caught.value)
    with pytest.raises(AssertionError, match=r"expected to be enqueued 0 time\(s\)"):
        assert_not_enqueued(own.note)
    with pytest.raises(TypeError, match="task must be"):
        assert_enqueued(5)
    own.note("text", queue="mail")
    with pytest.raises(AssertionError) as caught:
        assert_enqueued(own.note, queue="main")
    assert "expected to be enqueued once at least in the queue 'main'" in str(caught.value)
    assert "project.tasks.note('text') in the queue 'mail'" in str(caught.value)
    with pytest.raises(TypeError, match="args must be a list or tuple"):
        assert_enqueued(own.note, "text")
    with pytest.raises(TypeError, match="kwargs must be a dict"):
        assert_enqueued(own.note, kwargs=["text"])


def test_what_is_enqueued_within_a_block_is_captured() -> None:
    own.note("before")
    with captured_tasks() as captured:
        own.note("within")
        jobs.add.enqueue(1)
    own.note("after")
    assert [row.params()[0] for row in captured] == [["within"], [1]]


def test_eager_tasks_run_at_once_and_through_both_doors() -> None:
    with eager_tasks():
        own.note("called", schedule=3600)
        assert jobs.add.enqueue(1, 2).return_value == 3
        with pytest.raises(LookupError):
            jobs.raises.enqueue("no")
        with override_settings(BACKGROUND_TASK_RUN_ASYNC=True):
            own.note("in this thread")
    assert [note.text for note in Note.objects.order_by("id")] == ["called", "in this thread"]
    assert not Task.objects.exists()
    own.note("as ever")
    assert Task.objects.exists()


def test_all_of_many_run_at_once_although_one_raises() -> None:
    backend: Any = jobs.add.get_backend()
    calls = [(own.note, ["1"], {}), (jobs.raises, ["no"], {}), (own.note, ["2"], {})]
    with eager_tasks(), pytest.raises(LookupError, match="no"):
        backend.enqueue_many(calls)
    assert [note.text for note in Note.objects.order_by("id")] == ["1", "2"]


def test_what_is_stored_at_the_commit_is_explained(
    django_capture_on_commit_callbacks: Callable[..., Any],
) -> None:
    late = background_task.task(on_commit=True)(jobs.add.func)
    with django_capture_on_commit_callbacks(execute=True):
        late.enqueue(1)
        with pytest.raises(AssertionError, match="captureOnCommitCallbacks"):
            assert_enqueued(late)
    assert_enqueued(late)


@pytest.mark.parametrize("count", ["1", True, 1.0])
def test_a_count_that_is_no_number_is_refused(count: Any) -> None:
    with pytest.raises(TypeError, match="count must be a whole number"):
        assert_enqueued(own.note, count=count)


@pytest.mark.parametrize("queue", ["", 5])
def test_a_queue_that_has_no_name_is_refused(queue: Any) -> None:
    with pytest.raises(TypeError, match="queue must be the name"):
        run_due_tasks(queue=queue)


def test_the_fixtures_of_the_plugin_are_the_same(
    run_due_tasks: Callable[..., list[Ran]],
    assert_enqueued: Callable[..., list[Task]],
    captured_tasks: list[Task],
) -> None:
    row = own.note("by the fixture")
    assert captured_tasks == [row]
    assert assert_enqueued(own.note) == [row]
    assert [each.args for each in run_due_tasks()] == [["by the fixture"]]


def test_the_fixture_for_eager_tasks_is_the_same(eager_tasks: None) -> None:
    own.note("at once")
    assert Note.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_broken_statement_in_a_task_leaves_the_test_usable() -> None:
    with transaction.atomic():
        background("broken")(lambda: connection.cursor().execute("SELECT nonsense"))()
        assert len(run_due_tasks(raise_errors=False)) == 1
        own.note("on")
        assert len(run_due_tasks()) == 1


@pytest.mark.parametrize("hours", [2, -2])
def test_a_test_that_freezes_pythons_clock_freezes_the_queue(
    monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    moved = timezone.now() + timedelta(hours=hours)
    own.note("before", schedule=3600)
    monkeypatch.setattr(timezone, "now", lambda: moved)
    own.note("frozen")
    own.note("frozen, and later", schedule=60)
    ran = [each.args[0] for each in run_due_tasks()]
    assert ran == (["before", "frozen"] if hours > 0 else ["frozen"])

"""The behaviour that projects coming from django-background-tasks 1.2.8 rely on.

It ships with the package, so that ``manage.py test background_task`` tells whether that behaviour
holds on a project's own database and versions. The project's settings do not matter, save two: the
tests run as ``USE_TZ`` and ``BACKGROUND_TASK_RUN_ASYNC`` say.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, router
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from background_task import background
from background_task.exceptions import InvalidTaskError
from background_task.models import CompletedTask, Task
from background_task.settings import app_settings
from background_task.tasks import PoolRunner, TaskProxy, TaskSchedule, tasks

HOUR = timedelta(hours=1)
WEEK = timedelta(weeks=1)


def nothing() -> None:
    """A task that does nothing."""


def fails() -> None:
    """A task that raises."""
    raise RuntimeError("this task always fails")


def run_next(queue: str | None = None) -> bool:
    """Take and run one task, and wait until it is done if it runs in a thread."""
    taken = tasks.run_next_task(queue)
    tasks._pool_runner.drain()
    return taken


def an_owner(name: str) -> ContentType:
    """Store something that may be a creator; this model is installed wherever this app is."""
    return ContentType.objects.create(app_label="background_task_tests", model=name)


def expire(row: Task) -> None:
    """Make the lock of a row older than it may be."""
    row.locked_at -= timedelta(seconds=app_settings.BACKGROUND_TASK_MAX_RUN_TIME + 2)
    row.save()


class _Isolated:
    """Makes a test independent of the project's settings and tasks, and leaves no trace."""

    databases = {DEFAULT_DB_ALIAS, router.db_for_write(Task)}

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(
            self.settings(
                MAX_ATTEMPTS=25,
                MAX_RUN_TIME=3600,
                BACKGROUND_TASK_ASYNC_THREADS=2,
                BACKGROUND_TASK_PRIORITY_ORDERING="DESC",
            )
        )
        del settings.BACKGROUND_TASK_MAX_ATTEMPTS  # which would win over the bare names
        del settings.BACKGROUND_TASK_MAX_RUN_TIME
        self.enterContext(_own_registry())
        # The tracebacks of the tasks that are made to fail are for who asks for them in LOGGING.
        quiet, handler = logging.getLogger("background_task"), logging.NullHandler()
        quiet.addHandler(handler)
        self.addCleanup(quiet.removeHandler, handler)


@contextmanager
def _own_registry() -> Any:
    registered, runner = dict(tasks._tasks), tasks._pool_runner

    def run_and_disconnect(*args: Any, **kwargs: Any) -> None:
        try:
            tasks._bg_runner(*args, **kwargs)
        finally:
            connections.close_all()  # or the test database could not be dropped

    tasks._pool_runner = PoolRunner(run_and_disconnect, 2)
    try:
        yield
    finally:
        pool = tasks._pool_runner._pool_instance
        if pool is not None:
            pool.terminate()
            pool.join()
        tasks._pool_runner = runner
        tasks._tasks.clear()
        tasks._tasks.update(registered)


class StoringTestCase(_Isolated, TestCase):
    """For tests that run no task, and so need no rows that threads can see."""


class RunningTestCase(_Isolated, TransactionTestCase):
    """For tests that run tasks, in threads perhaps."""


class DecoratorTests(StoringTestCase):
    def test_decorating_gives_a_proxy(self) -> None:
        """With and without parentheses, what comes back is a TaskProxy and not the function."""
        for proxy in (tasks.background()(nothing), tasks.background(nothing)):
            self.assertIsInstance(proxy, TaskProxy)
            self.assertNotEqual(proxy, nothing)

    def test_the_name_is_module_and_function_by_default(self) -> None:
        """Rows are found by this name, so it is ``module.function`` in every form."""
        for function in (nothing, fails):
            expected = f"background_task.tests.test_tasks.{function.__name__}"
            self.assertEqual(tasks.background()(function).name, expected)
            self.assertEqual(tasks.background(function).name, expected)

    def test_a_name_that_is_given_is_the_name(self) -> None:
        """An explicit name replaces the default one, and is what the registry knows."""
        proxy = tasks.background(name="a.name.of.its.own")(nothing)
        self.assertEqual(proxy.name, "a.name.of.its.own")
        self.assertIs(tasks._tasks["a.name.of.its.own"], proxy)

    def test_the_proxy_keeps_the_function(self) -> None:
        """``task_function`` is the very function that was decorated."""
        self.assertIs(tasks.background()(nothing).task_function, nothing)
        self.assertIs(tasks.background()(fails).task_function, fails)

    def test_without_a_schedule_the_proxy_has_an_empty_one(self) -> None:
        """The default schedule equals ``TaskSchedule()``."""
        self.assertEqual(tasks.background()(nothing).schedule, TaskSchedule())

    def test_a_schedule_that_is_given_is_kept(self) -> None:
        """Seconds given to the decorator are the ``run_at`` of the proxy's schedule."""
        self.assertEqual(tasks.background(schedule=10)(nothing).schedule, TaskSchedule(run_at=10))

    def test_a_proxy_reads_as_its_name(self) -> None:
        """``str(proxy)`` is ``TaskProxy(<name>)``."""
        proxy = tasks.background()(nothing)
        self.assertEqual(str(proxy), "TaskProxy(background_task.tests.test_tasks.nothing)")

    def test_the_package_offers_the_same_decorator(self) -> None:
        """``from background_task import background`` does what ``tasks.background`` does."""
        proxy = background()(nothing)
        self.assertNotEqual(proxy, nothing)
        self.assertIsInstance(proxy, TaskProxy)
        self.assertIs(proxy.task_function, nothing)

    def test_now_calls_the_function_and_stores_nothing(self) -> None:
        """``proxy.now(...)`` is a plain call: its value comes back and no row is made."""

        @background
        def multiply(left: int, right: int) -> int:
            return left * right

        self.assertEqual(multiply.now(6, right=7), 42)
        self.assertFalse(Task.objects.exists())
        self.assertFalse(CompletedTask.objects.exists())


class RunByNameTests(RunningTestCase):
    def test_run_task_calls_with_exactly_these_arguments(self) -> None:
        """``tasks.run_task(name, args, kwargs)`` needs no row and adds no argument."""
        calls = []

        @tasks.background(name="recorder")
        def recorder(*args: Any, **kwargs: Any) -> None:
            calls.append((args, kwargs))

        for args, kwargs in (([], {}), (["one"], {}), ([], {"two": 2})):
            tasks.run_task(recorder.name, args, kwargs)
            tasks._pool_runner.drain()
        self.assertEqual(calls, [((), {}), (("one",), {}), ((), {"two": 2})])


class ScheduleTests(StoringTestCase):
    def assert_from_now(self, delay: timedelta, schedule: TaskSchedule) -> None:
        earliest = timezone.now() + delay
        run_at = schedule.run_at
        self.assertLessEqual(earliest, run_at)
        self.assertLessEqual(run_at, timezone.now() + delay)

    def test_the_priority_is_a_number_0_by_default(self) -> None:
        """A priority that is given is kept, and none is 0."""
        self.assertEqual(TaskSchedule().priority, 0)
        for priority in (0, 1, 2, -3):
            self.assertEqual(TaskSchedule(priority=priority).priority, priority)

    def test_run_at_may_be_nothing_seconds_a_timedelta_or_a_datetime(self) -> None:
        """Nothing means now, delays count from now, and a datetime is taken as it is."""
        for nothing_to_wait in (None, 0, timedelta(0)):
            self.assert_from_now(timedelta(0), TaskSchedule(run_at=nothing_to_wait))
        self.assert_from_now(timedelta(seconds=90), TaskSchedule(run_at=90))
        self.assert_from_now(timedelta(minutes=2), TaskSchedule(run_at=timedelta(minutes=2)))
        for moment in (timezone.now(), timezone.now() + HOUR):
            self.assertEqual(TaskSchedule(run_at=moment).run_at, moment)

    def test_create_takes_every_form_of_a_schedule(self) -> None:
        """A dict of some or all parts, seconds, and a TaskSchedule become a TaskSchedule."""
        moment = timezone.now() + timedelta(seconds=10)
        for given in ({"run_at": moment}, TaskSchedule(run_at=moment)):
            schedule = TaskSchedule.create(given)
            self.assertEqual(schedule.run_at, moment)
            self.assertEqual(schedule.priority, 0)
            self.assertEqual(schedule.action, TaskSchedule.SCHEDULE)

        whole = TaskSchedule.create(
            {"run_at": moment, "priority": 2, "action": TaskSchedule.RESCHEDULE_EXISTING}
        )
        self.assertEqual(whole.run_at, moment)
        self.assertEqual(whole.priority, 2)
        self.assertEqual(whole.action, TaskSchedule.RESCHEDULE_EXISTING)

        self.assert_from_now(timedelta(0), TaskSchedule.create(0))
        self.assert_from_now(timedelta(seconds=10), TaskSchedule.create(10))

    def test_merge_takes_each_part_from_the_call_before_the_default(self) -> None:
        """Parts that the call leaves out come from the default; a priority of 0 is not left out."""
        default = TaskSchedule(run_at=10, priority=2, action=TaskSchedule.RESCHEDULE_EXISTING)
        check = TaskSchedule.CHECK_EXISTING
        for call, seconds, priority, action in (
            (20, 20, 2, TaskSchedule.RESCHEDULE_EXISTING),
            ({"priority": 0}, 10, 0, TaskSchedule.RESCHEDULE_EXISTING),
            ({"action": check}, 10, 2, check),
        ):
            merged = TaskSchedule.create(call).merge(default)
            self.assert_from_now(timedelta(seconds=seconds), merged)
            self.assertEqual(merged.priority, priority)
            self.assertEqual(merged.action, action)

    def test_a_schedule_reads_as_its_time_and_priority(self) -> None:
        """``repr`` shows both parts as they were given."""
        self.assertEqual(
            repr(TaskSchedule(run_at=10, priority=0)), "TaskSchedule(run_at=10, priority=0)"
        )


class CallTests(StoringTestCase):
    def test_a_call_stores_one_row(self) -> None:
        """The row carries the name and the arguments as JSON; the function is not called."""
        calls = []

        @tasks.background(name="stored")
        def stored(value: int) -> None:
            calls.append(value)

        stored(1)
        row = Task.objects.get()
        self.assertEqual((row.task_name, row.task_params), ("stored", "[[1], {}]"))
        self.assertEqual(calls, [])

    def test_reschedule_existing_moves_the_row_that_waits(self) -> None:
        """The second call adds no row: the first one is due when the second says."""
        proxy = tasks.background(
            name="moved", schedule=TaskSchedule(action=TaskSchedule.RESCHEDULE_EXISTING)
        )(nothing)
        proxy()
        earliest = timezone.now() + timedelta(seconds=90)
        proxy(schedule=90)
        row = Task.objects.get()
        self.assertEqual(row.task_name, "moved")
        self.assertLessEqual(earliest, row.run_at)
        self.assertLessEqual(row.run_at, timezone.now() + timedelta(seconds=90))

    def test_check_existing_leaves_the_row_that_waits_alone(self) -> None:
        """The second call adds no row and changes nothing: the first one is due as before."""
        proxy = tasks.background(
            name="checked", schedule=TaskSchedule(action=TaskSchedule.CHECK_EXISTING)
        )(nothing)
        first = proxy()
        proxy(schedule=90)
        row = Task.objects.get()
        self.assertEqual((row.task_name, row.run_at), ("checked", first.run_at))
        self.assertLessEqual(row.run_at, timezone.now())

    def test_the_time_of_the_decorator_is_used(self) -> None:
        """A call that names no time gets the decorator's."""
        earliest = timezone.now() + timedelta(seconds=60)
        tasks.background(name="in.a.minute", schedule=60)(nothing)()
        row = Task.objects.get()
        self.assertLessEqual(earliest, row.run_at)
        self.assertLessEqual(row.run_at, timezone.now() + timedelta(seconds=60))

    def test_the_priority_of_the_decorator_is_used(self) -> None:
        """A call that names no priority gets the decorator's."""
        tasks.background(name="urgent", schedule={"priority": 2})(nothing)()
        self.assertEqual(Task.objects.get().priority, 2)

    def test_the_time_of_the_call_wins(self) -> None:
        """A datetime in the call replaces the decorator's, and is stored exactly."""
        default = {"run_at": timezone.now() + timedelta(seconds=90), "priority": 2}
        moment = timezone.now().replace(microsecond=0) + timedelta(seconds=60)
        tasks.background(name="at.a.moment", schedule=default)(nothing)(schedule=moment)
        row = Task.objects.get()
        self.assertEqual((row.run_at, row.priority), (moment, 2))

    def test_a_call_returns_the_row(self) -> None:
        """What comes back is the saved Task."""
        returned = tasks.background(name="returned")(nothing)()
        self.assertIsNotNone(returned.pk)
        self.assertEqual(returned, Task.objects.get())

    def test_a_call_may_carry_a_verbose_name(self) -> None:
        """``verbose_name=`` is stored."""
        row = tasks.background(name="titled")(nothing)(verbose_name="A title")
        self.assertEqual(row.verbose_name, "A title")
        self.assertEqual(Task.objects.get().verbose_name, "A title")

    def test_a_call_may_carry_a_creator(self) -> None:
        """``creator=`` is stored, whatever model it is of."""
        owner = an_owner("owner")
        row = tasks.background(name="owned")(nothing)(creator=owner)
        self.assertEqual(row.creator, owner)
        self.assertEqual(Task.objects.get().creator, owner)


class RunnerTests(StoringTestCase):
    def test_without_rows_there_is_no_task_to_run(self) -> None:
        """``get_task_to_run`` finds nothing in an empty table."""
        tasks.background(name="registered")(nothing)
        self.assertFalse(tasks._runner.get_task_to_run(tasks))

    def test_the_task_to_run_comes_locked(self) -> None:
        """The row is locked by the runner's name; its arguments may be a bare number."""
        tasks.background(name="registered")(nothing)
        row = Task.objects.new_task("registered", 1, {})
        row.save()
        self.assertEqual((row.locked_by, row.locked_at), (None, None))

        taken = tasks._runner.get_task_to_run(tasks)
        self.assertEqual(taken, row)
        self.assertEqual(taken.task_name, "registered")
        self.assertEqual(taken.locked_by, tasks._runner.worker_name)
        self.assertIsNotNone(taken.locked_at)


class ModelTests(StoringTestCase):
    def test_a_free_row_can_be_locked(self) -> None:
        """``lock`` returns the same row with the name of its holder and the time."""
        row = Task.objects.new_task("any")
        row.save()
        self.assertEqual((row.locked_by, row.locked_at), (None, None))
        locked = row.lock("first")
        self.assertEqual((locked.pk, locked.locked_by), (row.pk, "first"))
        self.assertIsNotNone(locked.locked_at)

    def test_a_locked_row_cannot_be_locked(self) -> None:
        """The database decides, so an instance that was loaded before gets None."""
        row = Task.objects.new_task("any")
        row.save()
        self.assertIsNotNone(row.lock("first"))
        self.assertIsNone(row.locked_by)
        self.assertIsNone(row.lock("second"))

    def test_a_lock_expires(self) -> None:
        """A lock older than MAX_RUN_TIME may be taken over."""
        row = Task.objects.new_task("any")
        row.save()
        expire(row.lock("first"))
        self.assertEqual(row.lock("second").locked_by, "second")

    def test_a_row_reads_as_its_verbose_name_or_name(self) -> None:
        """``str(task)`` prefers the verbose name."""
        self.assertEqual(str(Task.objects.new_task("any")), "any")
        self.assertEqual(str(Task.objects.new_task("any", verbose_name="A title")), "A title")

    def test_a_row_knows_its_creator(self) -> None:
        """The creator comes back from the database as the object it was."""
        owner = an_owner("owner")
        Task.objects.new_task("any", creator=owner).save()
        self.assertEqual(Task.objects.get().creator, owner)

    def test_a_row_knows_its_repetition(self) -> None:
        """The period and the end of a chain are stored."""
        until = timezone.now() + timedelta(days=1)
        Task.objects.new_task("any", repeat=Task.HOURLY, repeat_until=until).save()
        row = Task.objects.get()
        self.assertEqual((row.repeat, row.repeat_until), (Task.HOURLY, until))

    def test_the_history_row_copies_the_task(self) -> None:
        """``create_completed_task`` carries over what the task was and how it was asked for."""
        row = Task.objects.new_task(
            task_name="any",
            args=[1],
            kwargs={"key": "value"},
            priority=1,
            queue="somewhere",
            verbose_name="A title",
            creator=an_owner("owner"),
            repeat=Task.DAILY,
            repeat_until=timezone.now() + WEEK,
        )
        row.save()
        row.create_completed_task()
        done = CompletedTask.objects.get()
        for name in (
            "task_name",
            "task_params",
            "task_hash",
            "priority",
            "queue",
            "verbose_name",
            "creator",
            "repeat",
            "repeat_until",
        ):
            self.assertEqual(getattr(done, name), getattr(row, name), name)


class RunNextTests(RunningTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ran: list[Any] = []

        @tasks.background(name="recorder")
        def recorder(value: Any) -> None:
            self.ran.append(value)

        self.recorder = recorder

    def test_with_nothing_queued_nothing_runs(self) -> None:
        """``run_next_task`` says False."""
        self.assertIs(run_next(), False)

    def test_one_task_runs(self) -> None:
        """``run_next_task`` says True, and the function was called once, then and not before."""
        self.recorder("only")
        self.assertEqual(self.ran, [])
        self.assertIs(run_next(), True)
        self.assertEqual(self.ran, ["only"])

    def test_each_call_runs_one_of_several(self) -> None:
        """Three rows take three calls; the fourth finds nothing."""
        for value in ("one", "two", "three"):
            self.recorder(value)
        self.assertEqual([run_next() for _ in range(4)], [True, True, True, False])
        self.assertEqual(self.ran, ["one", "two", "three"])

    def test_a_failure_is_stored_and_tried_again_later(self) -> None:
        """The row stays, unlocked, with the error, one attempt, and a later time."""
        before = tasks.background(name="fails")(fails)()
        self.assertIs(run_next(), True)
        after = Task.objects.get()
        self.assertEqual(after.pk, before.pk)
        self.assertIn("RuntimeError: this task always fails", after.last_error)
        self.assertEqual(after.attempts, 1)
        self.assertGreater(after.run_at, before.run_at)
        self.assertEqual((after.failed_at, after.locked_by, after.locked_at), (None, None, None))

    def test_a_locked_row_is_not_run(self) -> None:
        """What another worker holds is left alone."""
        self.recorder("held").lock("another worker")
        self.assertIs(run_next(), False)
        self.assertEqual(self.ran, [])
        self.assertEqual(Task.objects.get().locked_by, "another worker")

    def test_a_row_whose_lock_has_expired_is_run(self) -> None:
        """After MAX_RUN_TIME another worker takes the row, runs it and removes it."""
        locked = self.recorder("taken over").lock("another worker")
        self.assertIs(run_next(), False)
        self.assertEqual(self.ran, [])

        expire(locked)
        self.assertIs(run_next(), True)
        self.assertEqual(self.ran, ["taken over"])
        self.assertFalse(Task.objects.exists())

    def test_a_dictionary_may_be_an_argument(self) -> None:
        """A dict with numbers for keys can be queued and run; JSON makes its keys text."""
        self.recorder({22222: 2, 11111: 1})
        self.assertEqual(Task.objects.count(), 1)
        run_next()
        self.assertFalse(Task.objects.exists())
        self.assertEqual(self.ran, [{"11111": 1, "22222": 2}])


class FailureTests(RunningTestCase):
    def test_without_attempts_left_a_failure_is_final(self) -> None:
        """A row with all its attempts used runs once more, and moves to the history as failed."""
        tasks.background(name="fails")(fails)()
        available = Task.objects.find_available()
        self.assertEqual(available.count(), 1)
        row = available[0]
        self.assertIsNone(row.failed_at)
        row.attempts = app_settings.BACKGROUND_TASK_MAX_ATTEMPTS
        row.save()

        self.assertIs(run_next(), True)
        self.assertEqual(Task.objects.find_available().count(), 0)
        self.assertFalse(Task.objects.exists())
        self.assertIsNotNone(CompletedTask.objects.get().failed_at)

    @override_settings(MAX_ATTEMPTS=1)
    def test_with_one_attempt_the_first_failure_is_final(self) -> None:
        """Only the row that ran moves to the history; an equal one waits for its own turn."""
        proxy = tasks.background(name="fails")(fails)
        first, second = proxy(), proxy()

        run_next()
        self.assertEqual(Task.objects.get(), second)
        self.assertEqual(Task.objects.get().attempts, 0)
        done = CompletedTask.objects.get()
        self.assertEqual((done.task_name, done.attempts), (first.task_name, 1))
        self.assertEqual(done.task_params, first.task_params)
        self.assertIn("this task always fails", done.last_error)
        self.assertIsNotNone(done.failed_at)

        run_next()
        self.assertFalse(Task.objects.exists())
        self.assertEqual(CompletedTask.objects.count(), 2)

    @override_settings(MAX_ATTEMPTS=2)
    def test_with_two_attempts_the_first_failure_is_not_final(self) -> None:
        """After one run both rows are still there, and the history is empty."""
        proxy = tasks.background(name="fails")(fails)
        proxy(), proxy()
        run_next()
        self.assertEqual(Task.objects.count(), 2)
        self.assertFalse(CompletedTask.objects.exists())

    @override_settings(MAX_ATTEMPTS=2)
    def test_an_invalid_task_is_not_tried_again(self) -> None:
        """A subclass of InvalidTaskError is final although attempts are left."""

        class NeverPossibleError(InvalidTaskError):
            pass

        @tasks.background(name="invalid")
        def invalid() -> None:
            raise NeverPossibleError("this cannot be done")

        invalid()
        run_next()
        self.assertFalse(Task.objects.exists())
        done = CompletedTask.objects.get()
        self.assertEqual(done.attempts, 1)
        self.assertIsNotNone(done.failed_at)


class QueueTests(RunningTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ran: list[str] = []

        @background(name="queued", queue="named")
        def queued(message: str) -> None:
            self.ran.append(message)

        queued("message")

    def test_a_worker_of_the_queue_runs_the_task(self) -> None:
        """The exact name of the queue finds it."""
        self.assertIs(run_next("named"), True)
        self.assertEqual(self.ran, ["message"])

    def test_a_worker_of_no_queue_runs_the_task(self) -> None:
        """Without a name every queue is served."""
        self.assertIs(run_next(), True)
        self.assertEqual(self.ran, ["message"])

    def test_a_worker_of_another_queue_leaves_the_task(self) -> None:
        """Another name does not find it."""
        self.assertIs(run_next("another"), False)
        self.assertEqual(self.ran, [])
        self.assertEqual(Task.objects.count(), 1)


class RepetitionTests(RunningTestCase):
    def hourly(self) -> Task:
        @tasks.background(name="hourly")
        def hourly(*args: Any, **kwargs: Any) -> None:
            pass

        return hourly(
            "argument",
            key="value",
            repeat=Task.HOURLY,
            repeat_until=timezone.now() + WEEK,
            verbose_name="Every hour",
        )

    def test_a_success_makes_the_next_row(self) -> None:
        """A new row with the same task, one period later, takes the place of the old one."""
        old = self.hourly()
        self.assertEqual(old.repeat, Task.HOURLY)
        run_next()
        new = Task.objects.get(repeat=Task.HOURLY)
        self.assertNotEqual(new.pk, old.pk)
        self.assertEqual(new.run_at - old.run_at, HOUR)
        self.assertEqual(new.params(), old.params())
        for name in ("task_name", "task_hash", "verbose_name", "repeat_until"):
            self.assertEqual(getattr(new, name), getattr(old, name), name)

    def test_missed_repetitions_are_skipped(self) -> None:
        """After a week of rest the next run is within the hour, at the same minute as ever."""
        old = self.hourly()
        old.run_at = timezone.now() - WEEK - timedelta(minutes=1)
        old.save()
        run_next()
        new = Task.objects.get(repeat=Task.HOURLY)
        self.assertNotEqual(new.pk, old.pk)
        self.assertEqual(new.run_at - old.run_at, WEEK + HOUR)
        self.assertGreater(new.run_at, timezone.now())
        self.assertLessEqual(new.run_at, timezone.now() + HOUR)


class ManagerTests(RunningTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.owner, self.stranger = an_owner("owner"), an_owner("stranger")
        for proxy in (
            tasks.background(name="succeeds")(nothing),
            tasks.background(name="fails")(fails),
        ):
            proxy()
            proxy(creator=self.owner)

    @override_settings(MAX_ATTEMPTS=1)
    def test_waiting_tasks_are_found_by_creator(self) -> None:
        """``Task.objects.created_by`` finds the owner's rows while they wait, and only those."""
        self.assertEqual(Task.objects.count(), 4)
        self.assertEqual(len(Task.objects.created_by(self.owner)), 2)
        self.assertEqual(len(Task.objects.created_by(self.stranger)), 0)
        for _ in range(4):
            run_next()
        self.assertEqual(Task.objects.count(), 0)
        self.assertEqual(len(Task.objects.created_by(self.owner)), 0)
        self.assertEqual(len(Task.objects.created_by(self.stranger)), 0)

    @override_settings(MAX_ATTEMPTS=1)
    def test_finished_tasks_are_found_by_creator_and_outcome(self) -> None:
        """``created_by``, ``failed`` and ``succeeded`` filter, with a period or not, and chain."""
        self.assertEqual(self.counts(), {"owner": 0, "stranger": 0, "failed": 0, "succeeded": 0})
        for _ in range(4):
            run_next()
        self.assertEqual(self.counts(), {"owner": 2, "stranger": 0, "failed": 2, "succeeded": 2})
        mine = CompletedTask.objects.created_by(self.owner)
        self.assertEqual((mine.failed().count(), mine.succeeded().count()), (1, 1))

    def counts(self) -> dict[str, int]:
        rows = CompletedTask.objects
        self.assertEqual(len(rows.failed()), len(rows.failed(within=HOUR)))
        self.assertEqual(len(rows.succeeded()), len(rows.succeeded(within=HOUR)))
        return {
            "owner": len(rows.created_by(self.owner)),
            "stranger": len(rows.created_by(self.stranger)),
            "failed": len(rows.failed()),
            "succeeded": len(rows.succeeded()),
        }


class PriorityTests(RunningTestCase):
    def test_the_higher_number_comes_first(self) -> None:
        """It is first among what is available, and is run first."""
        proxy = tasks.background(name="prioritised")(nothing)
        due = timezone.now() - timedelta(minutes=1)
        low, high = (proxy(priority=number, schedule=due) for number in (-1, 99))
        self.assertEqual((low.priority, high.priority), (-1, 99))

        available = Task.objects.find_available()
        self.assertEqual(available.count(), 2)
        self.assertEqual(available.first(), high)
        self.assertEqual(list(available), [high, low])

        for finished in ([], [99], [99, -1]):
            done = CompletedTask.objects.order_by("pk").values_list("priority", flat=True)
            self.assertEqual(list(done), finished)
            run_next()


class LoggingTests(RunningTestCase):
    def levels_of(self, function: Callable[[], None]) -> set[str]:
        tasks.background(name="logged")(function)()
        with patch("background_task.tasks.logger") as logger:
            self.assertIs(run_next(), True)
        levels = ("warning", "error", "critical")
        return {level for level in levels if getattr(logger, level).called}

    def test_a_success_is_nothing_to_worry_about(self) -> None:
        """``background_task.tasks.logger`` gets nothing above INFO."""
        self.assertEqual(self.levels_of(nothing), set())

    def test_a_failure_is_logged_as_an_error(self) -> None:
        """``background_task.tasks.logger`` gets an error, and no warning."""
        self.assertEqual(self.levels_of(fails), {"error"})


class OutageTests(RunningTestCase):
    def test_a_lost_database_is_a_warning(self) -> None:
        """When every query fails ``run_next_task`` does not raise; it warns, and works later."""
        tasks.background(name="patient")(nothing)()
        connection = connections[router.db_for_write(Task)]
        with (
            patch("background_task.tasks.logger") as logger,
            patch.object(connection, "cursor", side_effect=OperationalError("gone away")),
        ):
            self.assertIs(run_next(), False)
        self.assertTrue(logger.warning.called)
        self.assertFalse(logger.error.called)
        self.assertFalse(logger.critical.called)
        self.assertIs(run_next(), True)

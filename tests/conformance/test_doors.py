"""Both doors lead to the same rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from conformance.conftest import make_due
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils import timezone
from project import jobs
from project import tasks as own

import background_task
from background_task import background
from background_task._compat import django_tasks, tasks_base, tasks_signals
from background_task.api import registry
from background_task.backends import DatabaseBackend
from background_task.models import Attempt, CompletedTask, Task
from background_task.storage import readiness
from background_task.storage.engine import Engine
from background_task.tasks import TaskSchedule, tasks
from background_task.worker.duties import Duties

pytestmark = pytest.mark.django_db(transaction=True)

Status = tasks_base.TaskResultStatus


def test_a_function_of_background_can_be_enqueued_like_djangos() -> None:
    result = own.note.enqueue("through the other door")
    row = Task.objects.get()
    assert (row.task_name, row.queue, row.backend) == ("project.tasks.note", "default", "default")
    assert tasks.run_next_task()
    assert own.note.get_result(result.id).status == Status.SUCCESSFUL
    assert async_to_sync(own.note.aget_result)(result.id).is_finished


def test_the_call_of_the_predecessor_keeps_returning_the_row_and_no_queue() -> None:
    row = own.note("as ever")
    assert (row.queue, row.backend) == (None, None)
    result = own.note.get_result(str(row.result_id))
    assert (result.status, result.args) == (Status.READY, ["as ever"])


@pytest.mark.parametrize(
    "options",
    [{"remove_existing_tasks": True}, {"schedule": {"action": TaskSchedule.RESCHEDULE_EXISTING}}],
)
def test_no_later_call_touches_what_was_enqueued(options: dict[str, Any]) -> None:
    result = own.note.using(priority=7).enqueue("mine")
    assert own.note("mine", **options) is not None
    assert own.note.get_result(result.id).task.priority == 7
    assert Task.objects.count() == 2
    assert Task.objects.get_task("project.tasks.note", ["mine"]).get().backend is None


def test_the_options_of_a_declaration_hold_at_the_other_door() -> None:
    proxy = background("opt", schedule={"run_at": 60, "priority": 3}, queue="other")(
        own.note.task_function
    )
    proxy.enqueue("x")
    row = Task.objects.get()
    assert (row.priority, row.queue) == (3, "other")
    assert row.run_at > timezone.now() + timedelta(seconds=50)
    proxy.using(priority=9).enqueue("y")
    assert Task.objects.filter(priority=9).exists()


def test_the_predecessors_signals_tell_of_djangos_tasks_and_not_the_other_way() -> None:
    heard: list[str] = []

    def task_finished(**kwargs: Any) -> None:
        heard.append("django")

    def task_successful(**kwargs: Any) -> None:
        heard.append("predecessor")

    tasks_signals.task_finished.connect(task_finished)
    background_task.tasks.signals.task_successful.connect(task_successful)
    try:
        jobs.add.enqueue(1)
        tasks.run_next_task()
        assert heard == ["predecessor", "django"]
        own.note("x")
        tasks.run_next_task()
        assert heard == ["predecessor", "django", "predecessor"]
    finally:
        tasks_signals.task_finished.disconnect(task_finished)
        background_task.tasks.signals.task_successful.disconnect(task_successful)


def test_our_decorator_takes_the_options_on_every_version_of_django() -> None:
    task = background_task.task(max_attempts=2, backoff=0, priority=3)(jobs.raises.func)
    assert (task.max_attempts, task.priority) == (2, 3)
    assert background_task.task(jobs.add.func).func is jobs.add.func


def test_an_option_that_no_backend_has_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="Did you mean 'max_attempts'"):
        background_task.task(max_attemps=2)(jobs.add.func)
    with pytest.raises(TypeError, match="Did you mean 'max_attempts'"):
        background(max_attemps=2)(jobs.add.func)


@pytest.mark.parametrize("option", ["unique", "concurrency"])
def test_an_option_that_is_to_come_is_refused_until_it_works(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} does not work in this version"):
        background_task.task(**{option: 5})(jobs.add.func)
    with pytest.raises(ValueError, match=f"{option} does not work in this version"):
        background(**{option: 5})(jobs.add.func)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": "3"}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_losses": -1}, "max_losses"),
        ({"on_worker_loss": "cry"}, "on_worker_loss"),
        ({"on_worker_loss": "fail", "max_losses": 2}, "max_losses"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        pytest.param({"timeout": 10**400}, "timeout is 1000", id="timeout=10**400"),
        ({"atomic": 1}, "atomic"),
        ({"backoff": -1}, "backoff"),
        ({"backoff": []}, "backoff"),
        ({"backoff": "5"}, "backoff"),
        ({"backoff": [1, float("inf")]}, "backoff"),
        ({"backoff": bytearray(b"ab")}, "backoff must be seconds, a list"),
        pytest.param({"backoff": lambda: 0}, "backoff is .* cannot be called", id="lambda"),
        pytest.param({"backoff": jobs.add_async.func}, "is the async function", id="async"),
        ({"retry_on": "ValueError"}, "retry_on must be .*, not 'ValueError'"),
        ({"give_up_on": [5]}, "give_up_on"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_meant_is_refused_at_the_declaration(
    options: dict[str, Any], named: str
) -> None:
    for declare in (background, background_task.task):
        with pytest.raises((TypeError, ValueError), match=named):
            declare(**options)(jobs.add.func)


def failing(error: BaseException) -> Any:
    def body() -> None:
        raise error

    return body


def delays(proxy: Any, count: int) -> list[float]:
    """Run the task that waits so many times; return the seconds to each next attempt."""
    found = []
    for _ in range(count):
        assert tasks.run_next_task()
        row = Task.objects.first()
        if row is None:
            break
        found.append(round((row.run_at - timezone.now()).total_seconds()))
        make_due()
    return found


def by_attempts(error: BaseException, result: Any) -> float:
    return float(7 * result.attempts)


def giving_up(error: BaseException, result: Any) -> None:
    return None


def broken(error: BaseException, result: Any) -> float:
    return 1 / 0


def named(value: Any) -> str:
    return ", ".join(f"{key}={getattr(each, '__name__', each)}" for key, each in value.items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [6, 21, 86]),
        ({"backoff": 0}, [0, 0, 0]),
        ({"backoff": 30}, [30, 30, 30]),
        ({"backoff": timedelta(minutes=1)}, [60, 60, 60]),
        ({"backoff": [10, 20]}, [10, 20, 20]),
        ({"backoff": by_attempts}, [7, 14, 21]),
        ({"backoff": giving_up}, []),
        ({"backoff": broken}, [6, 21, 86]),
        ({"max_attempts": 2, "backoff": 5}, [5]),
        ({"retry_on": LookupError, "backoff": 5}, [5, 5, 5]),
        ({"retry_on": [OSError], "backoff": 5}, []),
        ({"give_up_on": KeyError}, []),
        ({"give_up_on": [OSError], "backoff": 5}, [5, 5, 5]),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_the_policy_of_a_task_decides_when_it_is_tried_again(
    options: dict[str, Any], expected: list[float]
) -> None:
    proxy = background("policy", **options)(failing(KeyError("no")))
    proxy()
    assert delays(proxy, 3) == expected
    assert CompletedTask.objects.exists() is (len(expected) < 3)


def test_the_options_of_the_backend_hold_where_the_task_says_nothing() -> None:
    jobs.raises.using(backend="retrying").enqueue("x")
    assert delays(jobs.raises, 3) == [0, 5]
    assert CompletedTask.objects.get().attempts == 3


def test_a_task_whose_worker_is_lost_runs_again_and_the_loss_is_on_record() -> None:
    result = jobs.add.enqueue(1)
    row = Task.objects.get().lock("gone")
    Task.objects.update(locked_at=timezone.now() - timedelta(days=1))
    assert tasks.run_next_task()
    result.refresh()
    assert (result.status, result.attempts) == (Status.SUCCESSFUL, 2)
    (error,) = result.errors
    assert error.exception_class.__name__ == "WorkerLostError"
    assert row is not None
    assert result.worker_ids[0] == row.worker_id
    assert CompletedTask.objects.get().attempts == 1


def test_a_task_that_loses_its_worker_too_often_has_failed() -> None:
    ran: list[int] = []
    proxy = background("lossy", max_losses=2)(lambda: ran.append(1))
    proxy()
    Task.objects.update(losses=2, locked_by="x", locked_at=timezone.now() - timedelta(days=1))
    assert tasks.run_next_task()
    done = CompletedTask.objects.get()
    assert ran == []
    assert done.failed_at
    assert "was lost 3 times" in done.last_error
    assert Attempt.objects.filter(result_id=done.result_id).exists()


def test_a_task_outside_any_tasks_module_is_found_by_the_worker() -> None:
    jobs.add.enqueue(1)
    known = registry._declared.pop("project.jobs.add")
    tasks._tasks.pop("project.jobs.add", None)
    try:
        assert not tasks.run_next_task()
        assert registry.resolve("os.path.join") is None
        assert registry.resolve("project.settings.VENDOR") is None
    finally:
        registry._declared["project.jobs.add"] = known
    Duties(tasks).run_if_due()
    assert tasks.run_next_task()


@pytest.mark.parametrize(
    ("options", "number", "words"),
    [
        ({"MAX_ATEMPTS": 2}, "E005", "Did you mean 'MAX_ATTEMPTS'"),
        ({"max_attempts": 2}, "E005", "The options are in upper case: MAX_ATTEMPTS"),
        ({"UNIQUE": 5}, "E005", "does not work in this version"),
        ({"TIMEOUT": -5}, "E006", "timeout is -5"),
        ({"ATOMIC": "yes"}, "E006", "atomic must be True or False"),
        ({"ON_WORKER_LOSS": "cry"}, "E006", "on_worker_loss is 'cry'"),
        ({"MAX_ATTEMPTS": 0}, "E006", "max_attempts is 0"),
        ({"MAX_ATTEMPTS": "3"}, "E006", "max_attempts must be a whole number, not str"),
        ({"RETRY_ON": ["no.such.Error"]}, "E006", "RETRY_ON is 'no.such.Error', which cannot be"),
        ({"BACKOFF": "nope"}, "E006", "BACKOFF is 'nope', which cannot be imported"),
        ({"ON_COMMIT": "yes"}, "E006", "ON_COMMIT"),
        ({"DATABASE": "defualt"}, "E006", "Did you mean 'default'"),
        ({"DATABASE": 5}, "E006", "The databases are default"),
        ([], "E006", "is no dict"),
    ],
    ids=str,
)
def test_wrong_options_are_reported_and_refused(options: Any, number: str, words: str) -> None:
    entry = {"BACKEND": "background_task.backends.DatabaseBackend", "OPTIONS": options}
    with override_settings(TASKS={"default": entry}):
        backend = django_tasks.task_backends["default"]
        (message,) = backend.check()
        assert message.id == f"background_task.{number}"
        assert words in f"{message.msg} {message.hint}"
        with pytest.raises(ImproperlyConfigured):
            jobs.add.enqueue(1)
    assert not Task.objects.exists()


def test_every_wrong_option_is_reported() -> None:
    options = {"MAX_ATTEMPTS": "3", "TIMEOUT": 0, "BACKOFF": []}
    entry = {"BACKEND": "background_task.backends.DatabaseBackend", "OPTIONS": options}
    with override_settings(TASKS={"default": entry}):
        found = [each.msg for each in django_tasks.task_backends["default"].check()]
    assert [("max_attempts" in found[0]), "backoff" in found[1], "timeout" in found[2]] == [
        True
    ] * 3


def test_an_alias_that_cannot_be_stored_is_reported() -> None:
    entry = {"BACKEND": "background_task.backends.DatabaseBackend"}
    with override_settings(TASKS={"a" * 65: entry}):
        (message,) = django_tasks.task_backends["a" * 65].check()
    assert message.id == "background_task.E006"
    assert "65 characters" in message.msg


def test_without_an_entry_of_ours_the_door_of_background_works_all_the_same() -> None:
    dummy = {"BACKEND": f"{type(django_tasks.task_backends['dummy']).__module__}.DummyBackend"}
    with override_settings(TASKS={"default": dummy}):
        result = own.note.enqueue("x")
        assert tasks.run_next_task()
        result.refresh()
        assert result.status == Status.SUCCESSFUL


def test_a_name_of_a_row_never_imports_what_is_not_of_the_project() -> None:
    Task.objects.new_task("antigravity.task").save()
    Duties(tasks).run_if_due()
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("entry", "number", "words"),
    [
        ({"QUES": []}, "E005", "Did you mean 'QUEUES'"),
        ({"QUEUES": "mail"}, "E006", "list of the names"),
        ({"QUEUES": None}, "E006", "list of the names"),
        ({"QUEUES": ["good", "a,b"]}, "W003", "--queue of the worker cannot name"),
        ({"QUEUES": ["*"]}, "W003", "--queue of the worker cannot name"),
        ({"QUEUES": [""]}, "W003", "--queue of the worker cannot name"),
        ({"QUEUES": [5]}, "E006", "list of the names"),
        ({"QUEUES": ["x" * 191]}, "E006", "191 characters"),
    ],
)
def test_a_wrong_entry_in_tasks_is_reported(entry: dict[str, Any], number: str, words: str) -> None:
    backend = DatabaseBackend("own", {"BACKEND": "…", **entry})
    (message,) = backend.check()
    assert message.id == f"background_task.{number}"
    assert words in f"{message.msg} {message.hint}"


def test_what_is_no_function_cannot_be_marked_and_what_is_marked_not_again() -> None:
    for mark in (background, background_task.task):
        with pytest.raises(TypeError, match="is a task already"):
            mark(jobs.add)
        with pytest.raises(TypeError, match="is a task already"):
            mark(own.note)
        with pytest.raises(TypeError, match="marks functions, not int"):
            mark(5)
    with pytest.raises(TypeError, match=r"using\(run_after=\.\.\.\)"):
        background_task.task(run_after=1)(jobs.add.func)


def test_a_task_that_its_worker_did_not_survive_has_one_error_and_one_worker_for_each() -> None:
    result = jobs.add.enqueue(1)
    for _ in range(4):  # MAX_LOSSES is 3
        assert Task.objects.get().lock("gone")
        Task.objects.update(locked_at=timezone.now() - timedelta(days=1))
        readiness.settle(Engine.on("default"))
    assert tasks.run_next_task()
    result.refresh()
    assert result.status == Status.FAILED
    assert [error.exception_class.__name__ for error in result.errors] == ["WorkerLostError"] * 4
    assert result.attempts == len(result.worker_ids) == 4

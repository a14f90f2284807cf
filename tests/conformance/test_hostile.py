"""Aliases, modules, answers and values that mean no good to Django's door."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.db.models.signals import post_save
from django.test import override_settings
from project import jobs
from project import tasks as own
from project.models import Note

import background_task
from background_task import background, signals
from background_task._compat import django_tasks, tasks_base, tasks_signals
from background_task.api import registry, results
from background_task.exceptions import ArgumentTypeError, ArgumentValueError, WorkerLostError
from background_task.execution.interruptions import limits
from background_task.models import Attempt, CompletedTask, Task
from background_task.tasks import tasks
from background_task.testing import eager_tasks
from background_task.worker.duties import Duties

pytestmark = pytest.mark.django_db(transaction=True)

Status = tasks_base.TaskResultStatus
OURS = "background_task.backends.DatabaseBackend"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("entry", [None, {"BACKEND": OURS, "OPTIONS": {"NONSENSE": 1}}, "dummy"])
def test_a_row_whose_alias_is_gone_or_wrong_runs_once_and_harms_nobody(
    entry: Any, fails: bool, settings: Any
) -> None:
    task = jobs.raises if fails else jobs.add
    result = task.using(backend="retrying").enqueue("x")
    others = {name: each for name, each in settings.TASKS.items() if name != "retrying"}
    if entry == "dummy":
        entry = settings.TASKS["dummy"]
    with override_settings(TASKS=others | ({"retrying": entry} if entry else {})):
        assert tasks.run_next_task()
        found = jobs.add.get_backend().get_result(result.id)
        assert found.status == (Status.FAILED if fails else Status.SUCCESSFUL) or not fails
        if entry is None:
            found.refresh()
    assert not Task.objects.exists()
    assert CompletedTask.objects.get().attempts == 1


def leaves(error: BaseException, result: Any) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "answer", [leaves, lambda e, r: float("nan"), lambda e, r: "5", lambda e, r: -5], ids=range(4)
)
def test_an_odd_answer_of_a_backoff_loses_nothing(answer: Any) -> None:
    proxy = background("odd", max_attempts=3, backoff=answer)(jobs.raises.func)
    row = proxy("the reason")
    assert tasks.run_next_task()
    result = proxy.get_result(str(row.result_id))
    assert (result.status, result.attempts) == (Status.READY, 1)
    assert result.errors[0].exception_class is LookupError
    assert "the reason" in Task.objects.get().last_error


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Write modules of this project that nobody has imported yet."""
    package = sys.modules["project"]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    names: list[str] = []

    def write(name: str, code: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(code)

    yield write
    for name in names:
        sys.modules.pop(f"project.{name}", None)
        registry._broken.discard(f"project.{name}")
        for known in [each for each in registry._declared if f".{name}." in each]:
            del registry._declared[known]
            tasks._tasks.pop(known, None)


TASK = f"from {django_tasks.__name__} import task\n"


def test_a_module_that_cannot_be_imported_stops_no_other_and_says_why(
    modules: Any, caplog: pytest.LogCaptureFixture
) -> None:
    modules("a_broken", "raise RuntimeError('the true cause')\n")
    modules("b_broken", "import there_is_no_such_thing\n")
    modules("c_sound", TASK + "@task\ndef t(): return 1\n")
    for name in ("a_broken", "b_broken", "c_sound"):
        Task.objects.new_task(f"project.{name}.t").save()
    for _ in range(2):
        Duties(tasks).run_if_due()
    assert tasks.run_next_task()
    assert not tasks.run_next_task()
    assert CompletedTask.objects.get().task_name == "project.c_sound.t"
    assert caplog.text.count("RuntimeError: the true cause") == 1
    assert caplog.text.count("Error: No module named 'there_is_no_such_thing'") == 1


def test_a_task_declared_for_another_backend_is_found_by_a_worker_too(modules: Any) -> None:
    modules("elsewhere", TASK + "@task(backend='immediate')\ndef t(): return 1\n")
    modules("inside", TASK + "class K:\n    @task\n    def t(): return 1\n")
    for name in ("elsewhere.t", "inside.K.t"):
        Task.objects.new_task(f"project.{name}").save()
    Duties(tasks).run_if_due()
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert CompletedTask.objects.succeeded().count() == 2


class Trap(Mapping[str, Any]):
    """Looks like a dict until somebody looks."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError

    def __iter__(self) -> Any:
        raise RuntimeError

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("in_batches", [True, False])
@pytest.mark.parametrize("door", ["call", "enqueue"])
@pytest.mark.parametrize("value", [Trap(), "x" * 2_000_000, {1, 2}], ids=["trap", "huge", "set"])
def test_a_return_value_that_cannot_be_stored_does_no_harm_under_background(
    monkeypatch: pytest.MonkeyPatch, value: Any, door: str, in_batches: bool
) -> None:
    monkeypatch.setitem(jobs.RETURNED, "it", value)
    proxy = background("returns")(jobs.returns.func)
    proxy("it") if door == "call" else proxy.enqueue("it")
    drain(in_batches)
    row = CompletedTask.objects.get()
    assert (row.return_value, row.failed_at, row.attempts) == (None, None, 1)


def drain(in_batches: bool) -> None:
    if in_batches:
        call_command("process_tasks", "--burst")
    else:
        assert tasks.run_next_task()


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("in_batches", [True, False])
def test_what_has_run_does_not_run_again_since_its_return_value_cannot_be_stored(
    monkeypatch: pytest.MonkeyPatch, in_batches: bool, atomic: bool
) -> None:
    monkeypatch.setitem(jobs.RETURNED, "set", {1, 2})
    task = background_task.task(backend="retrying", max_attempts=3, backoff=0, atomic=atomic)(
        jobs.returns.func
    )
    result = task.enqueue("set")
    drain(in_batches)
    result.refresh()
    assert (result.status, result.attempts) == (Status.FAILED, 1)
    assert "The task has run, but what it returned" in result.errors[0].traceback


def yields() -> Iterator[int]:
    yield 1


async def yields_async() -> Any:
    yield 1


def wraps_a_coroutine(*args: Any) -> Any:
    return jobs.add_async.func(1, 2)


@pytest.mark.parametrize("in_batches", [True, False])
@pytest.mark.parametrize("door", ["call", "enqueue"])
@pytest.mark.parametrize("function", [yields, yields_async, wraps_a_coroutine])
def test_what_was_called_and_has_not_run_has_failed_and_says_so(
    function: Any, door: str, in_batches: bool
) -> None:
    proxy = background("never.begins")(function)
    proxy() if door == "call" else proxy.enqueue()
    drain(in_batches)
    row = Task.objects.get()
    assert row.attempts == 1
    assert "has run none of its lines" in row.last_error


@pytest.mark.parametrize("in_batches", [True, False])
def test_a_generator_that_was_not_the_task_is_a_value_like_others(in_batches: bool) -> None:
    background("returns")(lambda: (each for each in "ab"))()
    drain(in_batches)
    assert CompletedTask.objects.get().failed_at is None


raised: dict[str, BaseException] = {}


def raises_it() -> None:
    raise raised["error"]


@pytest.mark.parametrize("name", ["A\udc80B", "A\x00B"])
def test_an_error_whose_class_has_an_odd_name_is_recorded(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "background_task")  # pytest could not hand on the surrogate
    error = type("Named", (Exception,), {})
    error.__qualname__ = name
    raised["error"] = error()
    result = background("fails")(raises_it).enqueue()
    assert tasks.run_next_task()
    result.refresh()
    assert result.status == Status.READY
    assert len(result.errors) == 1
    assert result.errors[0].exception_class_path.startswith(__name__)


def test_a_task_may_raise_the_error_of_lost_workers_itself() -> None:
    raised["error"] = WorkerLostError("a worker of another system")
    result = background("fails")(raises_it).enqueue()
    assert tasks.run_next_task()
    result.refresh()
    assert [each.exception_class_path.rpartition(".")[2] for each in result.errors] == [
        "WorkerLostError"
    ]


def test_a_return_value_that_is_too_large_fails_a_task_of_djangos_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(jobs.RETURNED, "huge", "x" * 2_000_000)
    result = jobs.returns.enqueue("huge")
    assert tasks.run_next_task()
    result.refresh()
    assert result.status == Status.FAILED
    assert "1000000 can be stored" in result.errors[0].traceback


def test_a_final_failure_that_cannot_reach_the_history_is_a_failure_all_the_same() -> None:
    def refuse(**kwargs: Any) -> None:
        raise RuntimeError("not here")

    heard = []

    def finished(task_result: Any, **kwargs: Any) -> None:
        heard.append(task_result.status)

    result = jobs.raises.enqueue("x")
    post_save.connect(refuse, sender=CompletedTask)
    tasks_signals.task_finished.connect(finished)
    try:
        assert tasks.run_next_task()
    finally:
        post_save.disconnect(refuse, sender=CompletedTask)
        tasks_signals.task_finished.disconnect(finished)
    result.refresh()
    assert result.status == Status.FAILED
    assert result.finished_at
    assert result.errors[0].exception_class is LookupError
    assert heard == [Status.FAILED]
    assert not tasks.run_next_task()


def test_results_of_both_doors_can_be_copied_and_pickled() -> None:
    for result in (own.note.enqueue("x"), jobs.add.enqueue(1)):
        for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            assert (again.id, again.task.func) == (result.id, result.task.func)
            assert again.task == result.task
            again.refresh()


def test_in_eager_mode_enqueueing_is_announced_first_and_results_are_fresh() -> None:
    heard: list[str] = []

    def enqueued(**kwargs: Any) -> None:
        heard.append("enqueued")

    def started(**kwargs: Any) -> None:
        heard.append("started")

    tasks_signals.task_enqueued.connect(enqueued)
    tasks_signals.task_started.connect(started)
    deferred = background_task.task(on_commit=True)(jobs.add.func)
    try:
        with eager_tasks():
            jobs.add.enqueue(1)
            with transaction.atomic():
                result = deferred.enqueue(1, 2)
            assert result.return_value == 3
            assert [each.return_value for each in jobs.add.enqueue_many([(1,), (2,)])] == [1, 2]
    finally:
        tasks_signals.task_enqueued.disconnect(enqueued)
        tasks_signals.task_started.disconnect(started)
    assert heard[:2] == ["enqueued", "started"]


def test_many_large_calls_are_cut_into_statements_that_the_database_takes() -> None:
    jobs.add.enqueue_many([("x" * 20_000,)] * 1500)
    assert Task.objects.count() == 1500


def test_many_calls_have_their_keys_where_the_database_does_not_tell_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django.db import connection

    monkeypatch.setattr(type(connection.features), "can_return_rows_from_bulk_insert", False)
    with eager_tasks():
        results = jobs.add.enqueue_many([(1,), (2,)])
    assert [result.return_value for result in results] == [1, 2]


def test_many_calls_may_be_of_functions_of_background() -> None:
    backend: Any = jobs.add.get_backend()
    backend.enqueue_many([(own.note, ["x"], {}), (jobs.add, [1], {})])
    assert Task.objects.count() == 2


def test_the_log_of_a_task_that_is_retried_has_one_row_for_each_failure() -> None:
    jobs.raises.using(backend="retrying").enqueue("x")
    for count in (1, 2):
        assert tasks.run_next_task()
        assert Attempt.objects.count() == count
        Task.objects.update(run_at=Task.objects.get().enqueued_at)


@pytest.mark.parametrize("signal", [tasks_signals.task_enqueued, signals.task_created])
@pytest.mark.parametrize("on_commit", [False, True])
def test_a_receiver_of_an_enqueue_that_raises_changes_nothing(signal: Any, on_commit: bool) -> None:
    done: list[str] = []

    def receive(**kwargs: Any) -> None:
        raise LookupError("a receiver")

    task = background_task.task(on_commit=on_commit)(jobs.add.func)
    signal.connect(receive)
    try:
        with transaction.atomic():
            results = [task.enqueue(1), *task.enqueue_many([(2,), (3,)])]
            transaction.on_commit(lambda: done.append("the caller's own"))
    finally:
        signal.disconnect(receive)
    assert Task.objects.count() == len(results) == 3
    assert done == ["the caller's own"]


@pytest.mark.parametrize("signal", [tasks_signals.task_enqueued, signals.task_created])
def test_a_receiver_of_an_enqueue_that_breaks_a_statement_leaves_the_caller_his_transaction(
    signal: Any,
) -> None:
    twin = Note.objects.create(text="twin")

    def receive(**kwargs: Any) -> None:
        Note.objects.create(id=twin.pk, text="twin")

    signal.connect(receive)
    try:
        with transaction.atomic():
            Note.objects.create(text="the order")
            jobs.add.enqueue(1)
    finally:
        signal.disconnect(receive)
    assert Note.objects.filter(text="the order").exists()
    assert Task.objects.count() == 1


@pytest.mark.parametrize("door", [jobs.add.enqueue, own.note, own.note.enqueue])
def test_one_may_enqueue_in_a_transaction_that_is_managed_by_hand(door: Any) -> None:
    transaction.set_autocommit(False)
    try:
        door("a")
        transaction.commit()
        door("b")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert [row.params()[0] for row in Task.objects.all()] == [["a"]]


def test_a_backend_that_is_given_tasks_of_another_alias_is_the_one_to_ask_for_them() -> None:
    elsewhere = jobs.add.using(backend="retrying")
    (result,) = django_tasks.task_backends["default"].enqueue_many([(elsewhere, (1,), {})])
    assert (result.backend, result.task.backend) == ("default", "default")
    assert Task.objects.get().backend == "default"
    result.refresh()


@pytest.mark.parametrize("call", [1, (jobs.add, (1,)), (print, (1,), {}), ("jobs.add", (), {})])
def test_many_calls_of_which_one_is_none_are_refused_by_name(call: Any) -> None:
    backend = django_tasks.task_backends["default"]
    with pytest.raises(ArgumentTypeError, match=r"for each call|is no task"):
        backend.enqueue_many([(jobs.add, (1,), {}), call])
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ("ab", {}, "positional arguments of each call must be a tuple or a list, not str"),
        ({1, 2}, {}, "not set"),
        ((1,), "b", "keyword arguments of each call must be a dict"),
        ((1,), {1: 2}, "whose keys are text"),
    ],
)
def test_many_calls_with_arguments_that_are_none_are_refused(
    args: Any, kwargs: Any, words: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        django_tasks.task_backends["default"].enqueue_many([(jobs.add, args, kwargs)])
    assert not Task.objects.exists()


def test_keys_that_json_makes_text_of_are_text_in_every_result() -> None:
    result = jobs.add.enqueue({1: {True: "a", "b": 2, None: 3}})
    assert result.args == [{"1": {"true": "a", "b": 2, "null": 3}}]
    assert jobs.add.get_result(result.id).args == result.args
    assert own.note({1: 2, "a": 3}).params()[0] == [{"1": 2, "a": 3}]


def test_keys_of_which_json_would_lose_one_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="has two keys that are '1' as text"):
        jobs.add.enqueue({"1": "a", 1: "b"})
    result = jobs.returns.enqueue("twins")
    assert tasks.run_next_task()
    result.refresh()
    assert result.status == Status.FAILED
    assert "one of their values would be lost" in result.errors[0].traceback


@pytest.mark.parametrize("timeout", ["5", True, float("nan")])
def test_a_result_is_waited_for_a_number_of_seconds(timeout: Any) -> None:
    result = jobs.add.enqueue(1)
    with pytest.raises(ArgumentTypeError, match="timeout must be a number of seconds, or None"):
        result.wait(timeout)


def test_waiting_ends_in_time_where_a_test_has_stopped_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = jobs.add.enqueue(1)
    monkeypatch.setattr(results.time, "monotonic", lambda: 5.0)
    with pytest.raises(TimeoutError):
        result.wait(0.1)


@pytest.mark.parametrize(
    ("option", "words"),
    [({"on_commit": "no"}, "on_commit must be True"), ({"stored_name": "x"}, "is no option")],
)
def test_options_of_a_task_that_cannot_be_meant_are_refused(
    option: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        background_task.task(**option)(jobs.add.func)


def test_a_function_of_background_can_be_enqueued_many_times_at_once() -> None:
    results = own.note.enqueue_many([("a",), {"text": "b"}])
    assert [result.kwargs or result.args for result in results] == [["a"], {"text": "b"}]
    assert Task.objects.count() == 2


def test_a_coroutine_that_could_not_begin_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "limits":
            raise RuntimeError("can't start new thread")
        start(thread)

    limits.forget()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    background("limited", timeout=60, max_attempts=1)(jobs.add_async.func)(1, 2)
    call_command("process_tasks", burst=True)
    done = CompletedTask.objects.get()
    assert done.failed_at
    assert "can't start new thread" in done.last_error
    assert not Note.objects.exists()


def test_a_time_that_no_calendar_has_is_refused_by_the_name_the_caller_knows() -> None:
    west = timezone(-timedelta(hours=5))
    late = jobs.add.using(run_after=datetime.max.replace(tzinfo=west))
    with pytest.raises(ArgumentValueError, match="run_after is"):
        late.enqueue(1)

"""What Django documents about enqueueing, held against every backend it can be held against."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from conformance.conftest import DUMMY, OURS, Backend
from django.db import transaction
from django.test import override_settings
from django.utils import timezone
from project import jobs
from project.tasks import note

import background_task
from background_task import background
from background_task._compat import (
    InvalidTask,
    django_tasks,
    tasks_base,
    tasks_exceptions,
    tasks_signals,
)
from background_task.models import Task
from background_task.settings import app_settings
from background_task.tasks import tasks

READY = tasks_base.TaskResultStatus.READY


def nested() -> Any:
    def inside() -> None: ...

    return inside


def test_a_result_tells_what_was_enqueued(any_backend: Backend) -> None:
    result = any_backend.enqueue(jobs.add, 1, b=2)
    assert (result.task.func, result.args, result.kwargs) == (jobs.add.func, [1], {"b": 2})
    assert result.backend == any_backend.alias
    assert isinstance(result.id, str)
    assert result.enqueued_at is not None


def test_what_waits_is_ready_and_has_no_times_of_a_run(any_backend: Backend) -> None:
    if any_backend.alias not in (OURS, DUMMY):
        pytest.skip("the immediate backend runs at once")
    result = any_backend.enqueue(jobs.add, 1)
    assert result.status == READY
    assert not result.is_finished
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    assert (result.attempts, result.worker_ids, result.errors) == (0, [], [])
    with pytest.raises(ValueError, match="Task has not finished yet"):
        _ = result.return_value


def test_arguments_are_normalised_as_json(any_backend: Backend) -> None:
    result = any_backend.enqueue(jobs.add, (1, 2), b=(3,))
    assert (result.args, result.kwargs) == ([[1, 2]], {"b": [3]})


@pytest.mark.parametrize("value", [{1}, object(), datetime(2026, 1, 1)])
def test_arguments_that_are_no_json_are_refused_with_djangos_words(
    any_backend: Backend, value: Any
) -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        any_backend.enqueue(jobs.add, value)
    assert not Task.objects.exists()


def test_bytes_that_are_no_text_are_refused_with_djangos_words(any_backend: Backend) -> None:
    with pytest.raises(ValueError, match="Unsupported value"):
        any_backend.enqueue(jobs.add, b"\xff")
    assert not Task.objects.exists()


def test_enqueueing_is_announced_with_the_class_of_the_backend(any_backend: Backend) -> None:
    announced = []

    def receiver(sender: Any, task_result: Any, **kwargs: Any) -> None:
        announced.append((sender, task_result.id, task_result.enqueued_at is not None))

    tasks_signals.task_enqueued.connect(receiver)
    try:
        result = any_backend.enqueue(jobs.add, 1)
    finally:
        tasks_signals.task_enqueued.disconnect(receiver)
    assert announced == [(type(any_backend.backend), result.id, True)]


def test_aenqueue_does_the_same(any_backend: Backend) -> None:
    async def enqueue() -> Any:
        return await jobs.add.using(backend=any_backend.alias).aenqueue(1, b=2)

    result = async_to_sync(enqueue)()
    assert (result.args, result.kwargs) == ([1], {"b": 2})


@pytest.mark.parametrize("priority", [-101, 101, 1.5])
def test_a_priority_outside_the_range_is_refused(any_backend: Backend, priority: Any) -> None:
    with pytest.raises(InvalidTask, match="priority must be a whole number between -100 and 100"):
        jobs.add.using(backend=any_backend.alias, priority=priority)


def test_a_naive_run_after_is_refused(any_backend: Backend) -> None:
    if not any_backend.backend.supports_defer:
        pytest.skip("the backend does not defer")
    with pytest.raises(InvalidTask, match="run_after must be an aware datetime"):
        jobs.add.using(backend=any_backend.alias, run_after=datetime(2030, 1, 1))


def test_a_function_inside_another_is_refused(any_backend: Backend) -> None:
    with pytest.raises(InvalidTask, match="must be defined at a module level"):
        django_tasks.task(backend=any_backend.alias)(nested())


def test_a_context_that_no_argument_takes_is_refused(any_backend: Backend) -> None:
    with pytest.raises(InvalidTask, match="does not have a first argument of 'context'"):
        django_tasks.task(backend=any_backend.alias, takes_context=True)(jobs.add.func)


def test_an_unknown_queue_is_refused_where_queues_are_named(ours: Backend) -> None:
    with pytest.raises(InvalidTask, match="Queue 'nobodys' is not valid for backend"):
        jobs.add.using(queue_name="nobodys")
    assert jobs.add.using(backend="retrying", queue_name="nobodys").queue_name == "nobodys"


def test_run_after_cannot_be_said_at_the_declaration() -> None:
    with pytest.raises(TypeError, match="run_after"):
        django_tasks.task(run_after=timezone.now())(jobs.add.func)


def test_an_alias_that_is_not_configured_is_refused() -> None:
    with pytest.raises(Exception, match="The connection 'nowhere' doesn't exist"):
        jobs.add.using(backend="nowhere")


def test_our_backend_supports_everything_and_says_so(ours: Backend) -> None:
    flags = ("defer", "async_task", "get_result", "priority")
    assert all(getattr(ours.backend, f"supports_{flag}") for flag in flags)


def test_a_task_that_is_deferred_waits_for_its_time(ours: Backend) -> None:
    later = timezone.now() + timedelta(hours=1)
    result = jobs.add.using(run_after=later).enqueue(1)
    assert not tasks.run_next_task()
    assert jobs.add.get_result(result.id).task.run_after == later


def test_the_highest_priority_runs_first(ours: Backend) -> None:
    order = [jobs.add.using(priority=number).enqueue(number) for number in (-100, 100, 0)]
    ran = []
    while tasks.run_next_task():
        ran += [r.args[0] for r in order if jobs.add.get_result(r.id).is_finished]
    assert list(dict.fromkeys(ran)) == [100, 0, -100]


def test_the_highest_priority_runs_first_where_low_numbers_are_urgent(ours: Backend) -> None:
    with override_settings(BACKGROUND_TASK_PRIORITY_ORDERING="ASC"):
        assert app_settings.is_ascending()
        low = jobs.add.using(priority=-5).enqueue(1)
        high = jobs.add.using(priority=5).enqueue(2)
        assert tasks.run_next_task()
        assert jobs.add.get_result(high.id).is_finished
        assert jobs.add.get_result(high.id).task.priority == 5
        assert not jobs.add.get_result(low.id).is_finished


def test_a_task_is_rolled_back_with_the_transaction_of_its_caller(ours: Backend) -> None:
    with transaction.atomic():
        result = jobs.add.enqueue(1)
        transaction.set_rollback(True)
    assert not Task.objects.exists()
    with pytest.raises(tasks_exceptions.TaskResultDoesNotExist):
        jobs.add.get_result(result.id)


def test_a_call_that_the_function_does_not_take_is_refused(ours: Backend) -> None:
    with pytest.raises(TypeError, match="cannot be called like this"):
        jobs.add.enqueue(1, c=2)
    with pytest.raises(TypeError, match="cannot be called like this"):
        jobs.with_context.enqueue()
    assert not Task.objects.exists()


def test_the_result_of_a_waiting_task_can_be_had_by_its_id(ours: Backend) -> None:
    result = jobs.urgent.enqueue("text")
    found = jobs.urgent.get_result(result.id)
    for name in ("id", "status", "args", "kwargs", "backend", "enqueued_at", "attempts", "errors"):
        assert getattr(found, name) == getattr(result, name), name
    assert found.task == result.task


@pytest.mark.parametrize("unknown", [str(uuid.UUID(int=7)), "no id at all", ""])
def test_an_unknown_id_has_no_result(ours: Backend, unknown: str) -> None:
    with pytest.raises(tasks_exceptions.TaskResultDoesNotExist):
        jobs.add.get_result(unknown)
    with pytest.raises(tasks_exceptions.TaskResultDoesNotExist):
        async_to_sync(jobs.add.aget_result)(unknown)


def test_the_result_of_another_task_is_a_mismatch(ours: Backend) -> None:
    result = jobs.add.enqueue(1)
    with pytest.raises(tasks_exceptions.TaskResultMismatch):
        jobs.raises.get_result(result.id)


def test_the_row_is_one_of_ours(ours: Backend) -> None:
    result = jobs.urgent.enqueue("text")
    row = Task.objects.get()
    assert (row.task_name, row.task_params) == ("project.jobs.urgent", '[["text"], {}]')
    assert (row.queue, row.priority, row.backend) == ("other", 7, "default")
    assert str(row.result_id) == result.id


def test_many_calls_are_stored_at_once_and_their_results_are_in_order(ours: Backend) -> None:
    results = jobs.add.enqueue_many([(number,) for number in range(2500)])
    assert [result.args for result in results] == [[number] for number in range(2500)]
    assert Task.objects.count() == 2500
    assert jobs.add.get_result(results[1234].id).args == [1234]
    mixed = ours.backend.enqueue_many([(jobs.add, [1], {"b": 2}), (jobs.urgent, ["text"], {})])
    assert [result.task.name for result in mixed] == ["add", "urgent"]


ODD = 'tab \t, back\\slash, \\N, "quotes", new\nline, ñ, 💥'


@pytest.mark.parametrize("count", [1, 3, 250])
def test_a_call_is_stored_as_the_orm_would_store_it(ours: Backend, count: int) -> None:
    later = timezone.now() + timedelta(hours=1)
    for task in (jobs.add, jobs.urgent.using(run_after=later)):
        results = task.enqueue_many([(f"{number} {ODD}",) for number in range(count)])
        for number, result in enumerate(results):
            row = Task.objects.get(result_id=result.id)
            wanted = Task.objects.new_task(
                f"project.jobs.{task.name}",
                [f"{number} {ODD}"],
                run_at=task.run_after or row.enqueued_at,
                priority=task.priority,
                queue=task.queue_name,
            )
            wanted.backend, wanted.task_hash = "default", ""
            wanted.identify(result_id=uuid.UUID(result.id))
            wanted.prepare()
            wanted.pk, wanted.enqueued_at = row.pk, result.enqueued_at
            for field in Task._meta.concrete_fields:
                assert getattr(row, field.attname) == getattr(wanted, field.attname), field


def test_a_name_may_have_any_letter(ours: Backend) -> None:
    task = background(ODD)(jobs.add.func)
    results = task.enqueue_many([(number,) for number in range(250)])
    assert set(Task.objects.values_list("task_name", flat=True)) == {ODD}
    assert task.get_result(results[-1].id).args == [249]


@pytest.mark.parametrize("count", [3, 250])
def test_many_calls_are_stored_all_or_none(ours: Backend, count: int) -> None:
    wrong = [(1,)] * count + [{"b": 2}]
    for calls in (wrong, wrong + [(1,)] * count):
        with pytest.raises(TypeError):
            jobs.add.enqueue_many(calls)
        with transaction.atomic():
            with pytest.raises(TypeError):
                jobs.add.enqueue_many(calls)
            assert not Task.objects.exists()
    with pytest.raises(TypeError, match="enqueue_many takes a tuple"):
        jobs.add.enqueue_many([1])
    assert not Task.objects.exists()


def test_with_on_commit_the_row_is_stored_when_the_caller_commits(ours: Backend) -> None:
    with override_settings(
        TASKS={
            "default": {
                "BACKEND": "background_task.backends.DatabaseBackend",
                "OPTIONS": {"ON_COMMIT": True},
            }
        }
    ):
        with transaction.atomic():
            result = jobs.add.enqueue(1)
            assert not Task.objects.exists()
        assert jobs.add.get_result(result.id).status == READY
        with transaction.atomic():
            jobs.add.enqueue(2)
            transaction.set_rollback(True)
    assert Task.objects.count() == 1


def test_those_that_wait_for_the_commit_may_be_stored_with_others(ours: Backend) -> None:
    patient = background_task.task(on_commit=True)(jobs.add.func)
    with transaction.atomic():
        results = ours.backend.enqueue_many(
            [(patient if number % 2 else jobs.add, (number,), {}) for number in range(6)]
        )
        assert [result.args for result in results] == [[number] for number in range(6)]
        assert [result.enqueued_at is None for result in results] == [False, True] * 3
        assert Task.objects.count() == 3
    assert Task.objects.count() == 6
    assert {result.id for result in results} == {
        str(each) for each in Task.objects.values_list("result_id", flat=True)
    }
    assert all(jobs.add.get_result(each.id).enqueued_at == each.enqueued_at for each in results)


def test_the_ids_of_many_are_in_the_order_of_the_calls(ours: Backend) -> None:
    ids = [result.id for result in jobs.add.enqueue_many([(number,) for number in range(500)])]
    assert ids == sorted(set(ids))
    assert len(ids) == 500


def test_a_backend_takes_functions_of_background_too(ours: Backend) -> None:
    result = ours.backend.enqueue(note, ["x"], {})
    assert note.get_result(result.id).args == ["x"]


def test_a_time_that_has_passed_is_told_like_any_other(ours: Backend) -> None:
    result = jobs.add.using(run_after=timezone.now() - timedelta(days=1)).enqueue(1)
    assert jobs.add.get_result(result.id).task.run_after == result.task.run_after


def test_arguments_that_contain_themselves_are_refused_by_name(ours: Backend) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="Positional argument 1 of type list"):
        jobs.add.enqueue(endless)

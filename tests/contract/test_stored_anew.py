"""A row that is copied, moved, or stored anew after its end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core import serializers
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import QuerySet, signals
from django.test import override_settings
from project.models import Special
from rows import FUTURE, PAST, stored

from background_task import background
from background_task.models import CompletedTask, Task
from background_task.policies import cancellation
from background_task.states import State
from background_task.storage import finish
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db


def by_key(row: Any) -> Any:
    row.pk = None
    row.save()
    return row


def by_key_as_new(row: Any) -> Any:
    row._state.adding = True
    return by_key(row)


def by_columns(row: Any) -> Any:
    columns = [field.attname for field in row._meta.concrete_fields if not field.primary_key]
    return type(row).objects.create(**{name: getattr(row, name) for name in columns})


@pytest.mark.parametrize("copy", [by_key, by_key_as_new, by_columns])
@pytest.mark.parametrize("model", [Task, CompletedTask])
def test_a_copy_of_a_row_is_a_row_of_its_own(model: Any, copy: Any) -> None:
    row = stored(repeat=60)
    row.identify(unique_key="a chain")
    row.save()
    if model is CompletedTask:
        row = row.create_completed_task()
    before = (row.pk, row.result_id)
    again = copy(model.objects.get(pk=row.pk))
    assert model.objects.count() == 2
    assert again.pk != before[0]
    assert again.result_id not in (None, before[1])


def test_a_task_can_be_queued_again_from_all_columns_of_its_history() -> None:
    ran = []
    background("again")(lambda: ran.append(1))()
    assert tasks.run_next_task()
    Task.objects.create(
        **{
            field.attname: getattr(CompletedTask.objects.get(), field.attname)
            for field in CompletedTask._meta.concrete_fields
            if not field.primary_key and field.attname not in ("locked_by", "locked_at", "run_at")
        },
        run_at=PAST,
    )
    assert tasks.run_next_task()
    assert (len(ran), CompletedTask.objects.count()) == (2, 2)


def by_another_key(row: Any) -> Any:
    row.pk += 1000
    row._state.adding = True
    row.save(force_insert=True)
    return row


@pytest.mark.parametrize("copy", [by_key, by_key_as_new, by_another_key])
def test_a_copy_of_a_row_that_is_locked_is_not(copy: Any) -> None:
    row = stored()
    assert row.lock("a worker") is not None
    again = copy(Task.objects.get())
    again.refresh_from_db()
    assert (again.locked_by, again.locked_at, again.state) == (None, None, State.READY)
    assert Task.objects.find_available().get() == again
    assert Task.objects.get(pk=row.pk).locked_by == "a worker"


def test_a_copy_of_a_row_that_was_to_be_cancelled_is_not() -> None:
    row = by_key(stored(options=cancellation.marked(None)))
    row.refresh_from_db()
    assert (row.options, row.state) == (None, State.READY)


@pytest.mark.parametrize("copy", [by_key, by_key_as_new])
@pytest.mark.django_db(transaction=True)
def test_a_copy_that_was_made_in_a_transaction_stays_locked_when_it_is_stored_again(
    copy: Any,
) -> None:
    stored()
    with transaction.atomic():
        row = copy(Task.objects.get())
    run = Task.objects.get(pk=row.pk).lock("a worker")
    row.priority = 7
    row.save()
    assert run is not None
    assert run.hold()
    assert Task.objects.get(pk=row.pk).priority == 7


@pytest.mark.django_db(transaction=True)
def test_a_row_of_a_model_with_parents_that_is_stored_twice_is_not_unlocked() -> None:
    Special(task_name="any", task_params="[[], {}]", run_at=PAST, locked_by="who is gone").save()
    row = Special.objects.get()
    row.locked_by = None
    row.save()
    run = Task.objects.get().lock("a worker")
    row.remark = "stored again"
    row.save()
    assert run is not None
    assert run.hold()
    assert Special.objects.get().remark == "stored again"


@pytest.mark.django_db(transaction=True)
def test_what_could_not_be_stored_of_a_model_with_parents_is_stored_later() -> None:
    Special(task_name="any", task_params="[[], {}]", run_at=FUTURE).save()
    row = Special.objects.get()

    def refuse(execute: Any, sql: str, *rest: Any) -> Any:
        if "project_special" in sql:
            raise OperationalError("a deadlock")
        return execute(sql, *rest)

    row.run_at = PAST
    with connection.execute_wrapper(refuse), pytest.raises(OperationalError):
        row.save()
    row.save()
    assert Task.objects.get().run_at == PAST


def test_a_row_that_was_created_in_bulk_is_not_unlocked_when_it_is_stored_again() -> None:
    row = Task.objects.new_task("any", run_at=PAST)
    (row,) = Task.objects.bulk_create([row])
    run = Task.objects.get().lock("a worker")
    row.priority = 7
    row.save()
    assert run is not None
    assert run.hold()
    assert Task.objects.get().priority == 7


def test_a_receiver_that_stores_a_new_row_again_does_not_unlock_it(
    listen: Callable[..., None],
) -> None:
    runs: list[Task | None] = []

    def store_again(instance: Task, created: bool, **kwargs: Any) -> None:
        if created:
            runs.append(Task.objects.get().lock("a worker"))
            instance.verbose_name = "named"
            instance.save()

    listen(signals.post_save, store_again, sender=Task)
    Task.objects.new_task("any").save()
    (run,) = runs
    assert run is not None
    assert run.hold()
    assert Task.objects.get().verbose_name == "named"


def test_a_row_that_is_made_with_the_key_of_another_takes_its_place() -> None:
    row = stored(unique_key="a chain").lock("a worker")
    assert row is not None
    Task(pk=row.pk, task_name="another", task_params="[[], {}]", run_at=PAST).save()
    found = Task.objects.get()
    assert found.result_id not in (None, row.result_id)
    assert (found.unique_key, found.locked_by, found.epoch) == (None, None, None)
    assert not row.hold()


def test_a_fixture_is_stored_as_it_is() -> None:
    row = stored(unique_key="a chain")
    fixture = serializers.serialize("json", [row])
    Task.objects.update(result_id=uuid4(), unique_key="another", losses=2)
    for is_there in (True, False):
        for each in serializers.deserialize("json", fixture):
            each.save()
        found = Task.objects.get()
        assert (found.result_id, found.unique_key) == (row.result_id, "a chain")
        assert found.losses is None
        if is_there:
            found.delete()


@pytest.mark.django_db(transaction=True)
def test_what_a_fixture_has_stored_in_a_transaction_is_not_unlocked() -> None:
    fixture = serializers.serialize("json", [stored()])
    Task.objects.all().delete()
    with transaction.atomic():
        (each,) = serializers.deserialize("json", fixture)
        each.save()
    run = Task.objects.get().lock("a worker")
    each.object.priority = 5
    each.object.save()
    assert run is not None
    assert run.hold()
    assert Task.objects.get().priority == 5


@pytest.mark.parametrize("columns", [["priority"], ["priority", "locked_by", "result_id", "epoch"]])
def test_a_row_that_is_updated_in_bulk_is_no_copy(columns: list[str], vendor: str) -> None:
    row = stored(unique_key="a chain").lock("a worker")
    assert row is not None
    row.priority = 7
    unique = {} if vendor == "mysql" else {"unique_fields": ["id"]}
    Task.objects.bulk_create([row], update_conflicts=True, update_fields=columns, **unique)
    Task.objects.bulk_create([row], ignore_conflicts=True)
    row.save()
    found = Task.objects.get()
    names = "priority", "result_id", "unique_key", "locked_by", "epoch"
    assert [getattr(found, name) for name in names] == [getattr(row, name) for name in names]
    assert (found.priority, found.unique_key, found.epoch) == (7, "a chain", 1)
    assert row.hold()


def test_whoever_gives_keys_to_rows_gives_them_no_other_identity(
    listen: Callable[..., None],
) -> None:
    keys = count(1000)

    def give(instance: Any, **kwargs: Any) -> None:
        instance.pk = instance.pk or next(keys)

    for model in (Task, CompletedTask):
        listen(signals.pre_save, give, sender=model)
    row = background("numbered")(lambda: None)()
    assert Task.objects.get().result_id == row.result_id
    following = Task.objects.new_task("following", run_at=FUTURE)
    following.identify(unique_key="a chain")
    following.save()
    assert Task.objects.get(pk=following.pk).unique_key == "a chain"
    assert tasks.run_next_task()
    assert CompletedTask.objects.filter(result_id=row.result_id).exists()


class Replicated:
    """A router of a project that reads from replicas."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


def test_a_row_that_was_read_from_a_replica_is_stored_anew_without_its_lock() -> None:
    run = stored().lock("a worker")
    seen = Task.objects.get()
    assert run is not None
    assert finish.succeed(run) is not None
    seen._state.db = "a replica"
    with override_settings(DATABASE_ROUTERS=[Replicated()]):
        seen.save()
    assert Task.objects.get().locked_by is None


@pytest.mark.parametrize("is_at_once", [False, True])
@pytest.mark.django_db(transaction=True)
def test_a_row_that_is_deleted_as_it_runs_and_stored_again_goes_on_running(
    is_at_once: bool,
) -> None:
    run = stored().lock("a worker")
    seen = Task.objects.get()
    with transaction.atomic() if is_at_once else nullcontext():
        Task.objects.all().delete()
        seen.save()
    assert not tasks.run_next_task()
    assert run is not None
    assert finish.succeed(run) is not None
    assert not Task.objects.exists()


def again_by_force(row: Task) -> None:
    row.save(force_insert=True)


def anew_in_vain(row: Task) -> None:
    with transaction.atomic():
        Task.objects.filter(pk=row.pk).delete()
        row.save()
        raise IntegrityError("undone")


def by_another_key_in_vain(row: Task) -> None:
    row.pk += 1000
    try:
        row.save()
    finally:
        row.pk -= 1000


@pytest.mark.parametrize("insert", [again_by_force, anew_in_vain, by_another_key_in_vain])
@pytest.mark.parametrize("is_locked", [False, True])
@pytest.mark.django_db(transaction=True)
def test_what_could_not_be_inserted_changes_no_row(insert: Any, is_locked: bool) -> None:
    row = stored(unique_key="a chain", options=cancellation.marked(None))
    held = row.lock("a worker") if is_locked else None
    seen = Task.objects.get()
    before = Task.objects.values().get()
    with pytest.raises(IntegrityError):
        insert(seen)
    seen.priority = 7
    seen.save()
    assert Task.objects.values().get() == before | {"priority": 7}
    assert held is None or held.hold()


def test_a_row_that_moves_to_another_database_keeps_its_identity() -> None:
    row = stored()
    seen = Task.objects.get()
    row.delete()
    seen._state.db = "another"
    seen.save(using="default")
    assert Task.objects.get().result_id == row.result_id


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [False, True])
def test_a_copy_that_was_stored_past_save_runs_once_and_is_recorded(atomic: bool) -> None:
    background("again", atomic=atomic)(lambda: User.objects.create(username=uuid4().hex) and None)()
    copy = Task.objects.get()
    copy.pk = None
    assert tasks.run_next_task()
    QuerySet(Task).bulk_create([copy])
    assert tasks.run_next_task()
    assert not tasks.run_next_task()
    assert (User.objects.count(), CompletedTask.objects.count()) == (2, 2)
    assert set(CompletedTask.objects.values_list("state", flat=True)) == {State.SUCCESSFUL}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_row_that_has_ended_and_is_stored_anew_runs_again(atomic: bool, is_taken: bool) -> None:
    seen: list[Task] = []

    def body() -> None:
        User.objects.create(username=uuid4().hex)
        seen.append(Task.objects.get())

    row = background("again", atomic=atomic)(body)()
    assert tasks.run_next_task()
    again = seen.pop() if is_taken else row
    again.priority = 7
    again.save()
    again.refresh_from_db()
    assert (again.locked_by, again.locked_at, again.state) == (None, None, State.READY)
    assert again.result_id != CompletedTask.objects.get().result_id
    assert tasks.run_next_task()
    assert (User.objects.count(), CompletedTask.objects.count()) == (2, 2)
    assert CompletedTask.objects.succeeded().filter(priority=7).exists()


def by_save(row: Task) -> None:
    row.save()


def in_bulk(row: Task) -> None:
    Task.objects.bulk_create([row])


@pytest.mark.parametrize("store", [by_save, in_bulk])
def test_a_row_that_has_ended_and_is_stored_anew_can_be_cancelled(store: Any) -> None:
    row = background("again")(lambda: None)()
    assert tasks.run_next_task()
    store(row)
    assert Task.objects.get().cancel()
    assert not Task.objects.exists()
    states = CompletedTask.objects.order_by("pk").values_list("state", flat=True)
    assert list(states) == [State.SUCCESSFUL, State.CANCELLED]

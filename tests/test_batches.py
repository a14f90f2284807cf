"""Taking and recording many rows at a time comes to the same as one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, models, transaction
from django.db.models.signals import post_save, pre_delete
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from project.models import Follower

from background_task.models import CompletedTask, Task
from background_task.signals import task_successful
from background_task.states import State
from background_task.storage import claim, finish, leases

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = {"a task", "another"}


def rows(count: int, **columns: Any) -> list[Task]:
    stored = []
    for number in range(count):
        row = Task.objects.new_task("a task", [number])
        for name, value in columns.items():
            setattr(row, name, value)
        row.save()
        stored.append(row)
    return stored


def claim_batch(most: int = 100, *, suspects: int = 1, queue: str | None = None) -> list[Task]:
    return claim.claim_batch("default", NAMES, queue, "me", most, suspects=suspects)


@contextmanager
def held_by_another_transaction(row: Task) -> Iterator[None]:
    """Lock a row from another connection, as a task does that saves its own."""
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Task.objects.select_for_update().get(pk=row.pk)
                locked.set()
                done.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(20)
    try:
        yield
    finally:
        done.set()
        thread.join()


def columns_of(row: models.Model, *without: str) -> dict[str, Any]:
    return {
        field.attname: getattr(row, field.attname)
        for field in row._meta.concrete_fields
        if field.attname not in without
    }


def test_a_batch_is_locked_as_one_row_is() -> None:
    one, other = rows(2)
    alone = one.lock("me")
    (batched,) = claim_batch()
    assert alone is not None
    assert batched.pk == other.pk
    differing = ("id", "task_params", "task_hash", "result_id", "run_at", "enqueued_at")
    moments = ("locked_at", "started_at")
    assert columns_of(batched, *differing, *moments) == columns_of(alone, *differing, *moments)
    assert batched.state == State.RUNNING
    assert batched.started_at == batched.locked_at
    assert columns_of(Task.objects.get(pk=batched.pk)) == columns_of(batched)


def test_the_most_urgent_come_first_and_no_more_than_asked_for() -> None:
    low, high, middle = (rows(1, priority=priority)[0] for priority in (1, 3, 2))
    assert [row.pk for row in claim_batch(2)] == [high.pk, middle.pk]
    assert [row.pk for row in claim_batch(2)] == [low.pk]
    assert claim_batch(2) == []


def test_what_is_not_due_failed_or_of_another_queue_or_name_stays() -> None:
    rows(1, run_at=timezone.now() + timedelta(hours=1))
    rows(1, failed_at=timezone.now())
    rows(1, queue="other")
    rows(1, task_name="unknown")
    assert claim_batch(queue="mine") == []
    assert not Task.objects.filter(locked_by__isnull=False).exists()


def test_what_others_hold_is_passed_over_without_waiting(vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    first, second = rows(2)
    with held_by_another_transaction(first):
        assert [row.pk for row in claim_batch()] == [second.pk]
        assert claim_batch() == []
    assert [row.pk for row in claim_batch()] == [first.pk]


def test_rows_that_the_predecessor_stored_get_public_ids_of_their_own() -> None:
    rows(3)
    Task.objects.update(result_id=None, state=None, epoch=None)
    claimed = claim_batch()
    assert len({row.result_id for row in claimed}) == 3
    assert None not in {row.result_id for row in claimed}


def test_of_rows_that_lost_a_worker_so_many_are_taken_as_there_is_room_for() -> None:
    lost = rows(2)
    Task.objects.filter(pk__in=[row.pk for row in lost]).update(losses=1)
    rows(2)
    long_ago = timezone.now() - timedelta(days=1)
    rows(1, locked_by="dead", locked_at=long_ago)
    assert [row.losses for row in claim_batch(suspects=1)] == [1, None, None]
    assert claim_batch(suspects=0) == []
    assert [row.losses for row in claim_batch(suspects=5)] == [1, 1]


def test_a_row_that_lost_two_workers_is_the_only_one_of_its_kind() -> None:
    lost = rows(3)
    Task.objects.filter(pk__in=[row.pk for row in lost]).update(losses=2)
    assert claim_batch(suspects=claim.SUSPECTS - 1) == []
    assert len(claim_batch(suspects=claim.SUSPECTS)) == 1


def test_an_expired_row_that_a_transaction_holds_does_not_keep_the_others_waiting(
    vendor: str,
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    long_ago = timezone.now() - timedelta(days=1)
    first, second = rows(2, locked_by="dead", locked_at=long_ago)
    with held_by_another_transaction(first):
        assert [row.pk for row in claim_batch(suspects=1)] == [second.pk]


def test_a_row_that_cannot_be_read_does_not_stop_the_others(vendor: str) -> None:
    odd, *fine = rows(3)
    if vendor != "sqlite":
        pytest.skip("only SQLite stores text that is no date in a column of dates")
    with connection.cursor() as cursor:
        no_date = "2020-13-45 25:00:00"
        cursor.execute(
            "UPDATE background_task SET enqueued_at = %s WHERE id = %s", [no_date, odd.pk]
        )
    assert [row.pk for row in claim_batch()] == [row.pk for row in fine]


def test_a_batch_takes_a_few_statements_however_many_rows_there_are() -> None:
    def statements(count: int) -> tuple[int, int]:
        rows(count)
        with CaptureQueriesContext(connection) as claiming:
            claimed = claim_batch(500)
        with CaptureQueriesContext(connection) as recording:
            recorded = finish.succeed_many([(row, None) for row in claimed])
        assert len(recorded) == count
        return len(claiming), len(recording)

    claim.settle_doubts("default")  # those of other tests
    few, many = sum(statements(2)), sum(statements(400))
    assert few <= 18
    # Django deletes a hundred rows at a time where keys refer to the table, and before 6.1 it
    # inserts some 35 at a time on SQLite.
    assert many - few <= 20


def test_a_batch_of_successes_is_recorded_as_one_is() -> None:
    rows(2, verbose_name="shown", queue="mine", priority=3)
    one, other = claim_batch()
    alone = finish.succeed(one, "5")
    batched = finish.succeed_many([(other, "5")])[other.pk]
    assert alone is not None
    assert batched is not None
    assert not Task.objects.exists()
    stored = CompletedTask.objects.get(result_id=other.result_id)
    differing = ("id", "task_params", "task_hash", "result_id", "run_at", "enqueued_at")
    expected = columns_of(CompletedTask.objects.get(pk=alone.pk), *differing)
    moments = {name: expected.pop(name) for name in ("locked_at", "started_at")}
    assert columns_of(stored, *differing, *moments) == expected
    assert (stored.locked_at, stored.started_at) == (other.locked_at, other.locked_at)
    assert columns_of(stored, "id") == columns_of(batched, "id")


def test_a_large_batch_is_recorded_whole() -> None:
    rows(1)
    Task.objects.bulk_create(
        [
            Task(**columns_of(Task.objects.get(), "id", "result_id"), result_id=None)
            for _ in range(1000)
        ]
    )
    recorded = 0
    while claimed := claim_batch(500):
        values = [(row, f'"{"x" * 10_000}"') for row in claimed]
        recorded += len(finish.succeed_many(values))
    assert recorded == CompletedTask.objects.count() == 1001
    assert not Task.objects.exists()


def test_a_row_that_is_gone_or_anothers_is_told_and_not_recorded() -> None:
    rows(3)
    gone, taken, kept = claim_batch()
    gone.delete()
    Task.objects.filter(pk=taken.pk).update(epoch=7, locked_by="other")
    recorded = finish.succeed_many([(row, None) for row in (Task(pk=-1), taken, kept)])
    assert {pk: row is None for pk, row in recorded.items()} == {
        -1: True,
        taken.pk: True,
        kept.pk: False,
    }
    assert Task.objects.get().locked_by == "other"
    assert CompletedTask.objects.get().result_id == kept.result_id


def test_an_operators_edit_made_meanwhile_is_kept() -> None:
    rows(2)
    named, repeating = claim_batch()
    Task.objects.filter(pk=named.pk).update(verbose_name="edited")
    Task.objects.filter(pk=repeating.pk).update(repeat=60)
    recorded = finish.succeed_many([(named, None), (repeating, None)])
    assert recorded.keys() == {named.pk}, "what repeats now needs its next row"
    assert CompletedTask.objects.get().verbose_name == "edited"
    assert finish.succeed(repeating) is not None
    assert Task.objects.get().repeat == 60


def test_a_run_whose_lease_was_renewed_is_recorded() -> None:
    rows(1)
    (row,) = claim_batch()
    began = row.locked_at
    leases.renew([row])
    assert Task.objects.get().locked_at > began
    recorded = finish.succeed_many([(row, None)])
    assert recorded[row.pk] is not None
    assert CompletedTask.objects.get().locked_at == began


def test_what_refers_to_a_row_is_treated_as_when_the_row_is_deleted() -> None:
    rows(2)
    first, second = claim_batch()
    Follower.objects.create(task=first)
    assert len(finish.succeed_many([(first, None), (second, None)])) == 2
    assert Follower.objects.get().task_id is None


@pytest.mark.parametrize(
    ("signal", "sender"), [(task_successful, Task), (post_save, CompletedTask), (pre_delete, Task)]
)
def test_who_listens_wants_each_row_by_itself(signal: Any, sender: Any) -> None:
    def listen(**kwargs: Any) -> None:
        pass

    assert not finish.is_watched()
    signal.connect(listen, sender=sender)
    try:
        assert finish.is_watched()
    finally:
        signal.disconnect(listen, sender=sender)


@pytest.mark.parametrize(
    ("model", "name"), [(Task, "create_completed_task"), (Task, "delete"), (CompletedTask, "save")]
)
def test_who_has_replaced_a_step_wants_each_row_by_itself(
    model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: Callable[..., Any] = getattr(model, name)
    monkeypatch.setattr(model, name, lambda self, *args, **kwargs: ours(self, *args, **kwargs))
    assert finish.is_watched()


def test_a_copy_with_the_id_of_a_finished_row_is_left_to_be_recorded_by_itself() -> None:
    rows(2)
    first, second = claim_batch()
    finish.succeed(first)
    Task.objects.filter(pk=second.pk).update(result_id=first.result_id)
    assert finish.succeed_many([(second, None)]) == {}
    assert finish.succeed(second) is not None
    assert len(set(CompletedTask.objects.values_list("result_id", flat=True))) == 2


def test_many_are_handed_back_at_once_and_only_ours() -> None:
    rows(3)
    first, second, third = claim_batch()
    Task.objects.filter(pk=second.pk).update(locked_by="other")
    assert leases.hand_back([first, second, third]) == {first.pk, third.pk}
    assert set(Task.objects.filter(locked_by=None)) == {first, third}
    assert len(claim_batch()) == 2

"""Taking and recording many rows at a time comes to the same as one by one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_save, pre_delete
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from project.models import Follower

from background_task._compat import HAS_TASKS
from background_task.api import aliases
from background_task.execution.runs import runs
from background_task.identity import this_worker
from background_task.models import CompletedTask, Task, Worker
from background_task.records import Claim, Ended, Mark, Wanted
from background_task.signals import task_successful
from background_task.states import State
from background_task.storage import (
    acknowledge,
    claim,
    finish,
    leases,
    oddities,
    readiness,
    workers,
)
from background_task.storage.engine import Engine
from background_task.tasks import Tasks, tasks
from background_task.worker import taking
from background_task.worker.batch import Batch
from background_task.worker.budget import Budget
from background_task.worker.duties import Duties
from background_task.worker.functions import Functions
from background_task.worker.options import Queues

pytestmark = pytest.mark.django_db(transaction=True)

NAMES = {"a task", "another"}
ME = Mark("me", this_worker())


def rows(count: int, **columns: Any) -> list[Task]:
    stored = []
    for number in range(count):
        row = Task.objects.new_task("a task", [number])
        for name, value in columns.items():
            setattr(row, name, value)
        row.save()
        stored.append(row)
    return stored


def lose(lost: list[Task], losses: int) -> list[Task]:
    keys = [row.pk for row in lost]
    Task.objects.filter(pk__in=keys).update(losses=losses, state=State.RESCUED)
    return lost


def mark(engine: Engine, most: int = 100, *, queue: str | None = None) -> list[Claim]:
    readiness.settle(engine)
    return claim.mark(engine, Wanted(NAMES, (queue,) if queue else ()), most, ME)


def rescue(engine: Engine, most: int = 100, room: int = claim.SUSPECTS) -> list[Claim]:
    readiness.settle(engine)
    return claim.rescued(engine, Wanted(NAMES), most, room, ME)


def ended(*claims: Claim, value: str | None = None) -> list[Ended]:
    now = time.perf_counter()
    return [Ended(each, now - 0.5, now, value) for each in claims]


def acknowledged(engine: Engine, *claims: Claim, value: str | None = None) -> set[int]:
    return acknowledge.acknowledge(engine, ended(*claims, value=value), ME)


def row_of(claimed: Claim) -> Task:
    return leases.rows("default", [claimed], ME)[claimed.pk]


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


def test_of_rows_that_do_not_fit_into_a_batch_nobody_sees_that_they_were_taken(
    engine: Engine,
) -> None:
    stored = rows(3)
    seen: list[int] = []

    def fitting(claims: Sequence[Claim]) -> int:
        seen.append(Task.objects.exclude(locked_by=None).count())
        return 1

    readiness.settle(engine)
    (taken,) = claim.mark(engine, Wanted(NAMES), 3, ME, fitting)
    assert seen == [0]
    assert taken.pk == stored[0].pk
    assert [each.pk for each in mark(engine)] == [stored[1].pk, stored[2].pk]


def test_claims_are_cut_only_where_a_task_may_be_among_them_that_must_not_run_twice() -> None:
    tasks = Tasks()
    tasks.background("again")(print)
    tasks.background("once", on_worker_loss="fail")(print)

    def are_cut(*names: str) -> bool:
        return taking.Names(tasks).have_to_be_cut(names)

    assert [are_cut("again"), are_cut("once"), are_cut("again", "once")] == [False, True, True]
    with override_settings(BACKGROUND_TASK_MAX_LOSSES=0):
        assert are_cut("again")
    strict = {"BACKEND": aliases.OURS, "OPTIONS": {"ON_WORKER_LOSS": "fail"}}
    with override_settings(TASKS={"default": strict}):
        assert are_cut("again") == HAS_TASKS


def test_a_batch_is_locked_as_one_row_is(engine: Engine) -> None:
    one, other = rows(2)
    alone = one.lock("me")
    (claimed,) = mark(engine)
    assert alone is not None
    assert claimed.pk == other.pk
    batched = row_of(claimed)
    differing = ("id", "task_params", "task_hash", "result_id", "run_at", "enqueued_at")
    moments = ("locked_at", "started_at")
    assert columns_of(batched, *differing, *moments) == columns_of(alone, *differing, *moments)
    assert batched.state == State.RUNNING
    assert batched.started_at == batched.locked_at
    assert (claimed.params, claimed.epoch) == (batched.task_params, batched.epoch)
    assert str(claimed) == str(batched)


def test_the_most_urgent_come_first_and_no_more_than_asked_for(engine: Engine) -> None:
    low, high, middle = (rows(1, priority=priority)[0] for priority in (1, 3, 2))
    assert [each.pk for each in mark(engine, 2)] == [high.pk, middle.pk]
    assert [each.pk for each in mark(engine, 2)] == [low.pk]
    assert mark(engine, 2) == []


@pytest.mark.parametrize("how", ["mark", "hold"])
@override_settings(BACKGROUND_TASK_PRIORITY_ORDERING="ASC")
def test_where_the_lowest_number_comes_first_no_more_rows_are_locked(
    engine: Engine, how: str, vendor: str
) -> None:
    if how == "hold" and vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    high, low, middle = (rows(1, priority=priority)[0] for priority in (3, 1, 2))
    other = Engine("default")
    wanted = Wanted(NAMES)
    if how == "hold":
        engine.begin()
        assert [each.pk for each in claim.hold(engine, wanted, 1)] == [low.pk]
    else:
        assert [each.pk for each in mark(engine, 1)] == [low.pk]
    assert [each.pk for each in mark(other, 5)] == [middle.pk, high.pk]
    engine.close()
    other.close()


def test_what_is_not_due_failed_or_of_another_queue_or_name_stays(engine: Engine) -> None:
    rows(1, run_at=timezone.now() + timedelta(hours=1))
    rows(1, failed_at=timezone.now())
    rows(1, queue="other")
    rows(1, task_name="unknown")
    assert mark(engine, queue="mine") == []
    assert not Task.objects.filter(locked_by__isnull=False).exists()


def test_queues_may_be_left_out_and_backends_singled_out(engine: Engine) -> None:
    plain, mail, other = rows(1)[0], rows(1, queue="mail")[0], rows(1, backend="other")[0]

    def found(**which: Any) -> list[int]:
        return [each.pk for each in claim.mark(engine, Wanted(NAMES, **which), 5, ME)]

    assert found(backend="other") == [other.pk]
    assert found(excluded=("mail", "more")) == [plain.pk]
    assert found(queues=("mail",)) == [mail.pk]


def test_what_others_hold_is_passed_over_without_waiting(engine: Engine, vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    first, second = rows(2)
    with held_by_another_transaction(first):
        assert [each.pk for each in mark(engine)] == [second.pk]
        assert mark(engine) == []
    assert [each.pk for each in mark(engine)] == [first.pk]


def test_what_is_held_is_nobody_elses_until_the_transaction_ends(
    engine: Engine, vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    rows(3)
    other = Engine("default")
    engine.begin()
    held = claim.hold(engine, Wanted(NAMES), 2)
    (third,) = mark(other)
    assert third.pk not in {each.pk for each in held}
    acknowledge.move(engine, ended(held[0]), ME, acknowledge.Owned.HELD)
    engine.commit()
    assert CompletedTask.objects.get().locked_by == "me"
    assert [each.pk for each in mark(other)] == [held[1].pk]
    other.close()


def test_what_was_held_and_lost_is_recorded_unless_somebody_has_taken_it(
    engine: Engine, vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    rows(2)
    engine.begin()
    held = claim.hold(engine, Wanted(NAMES), 2)
    engine.close()
    Task.objects.get(pk=held[0].pk).lock("another")
    assert acknowledge.acknowledge_freed(engine, ended(*held), ME) == {held[1].pk}
    assert Task.objects.get().locked_by == "another"


def test_rows_that_the_predecessor_stored_get_public_ids_of_their_own(engine: Engine) -> None:
    rows(3)
    Task.objects.update(result_id=None, state=None, epoch=None)
    claimed = mark(engine)
    assert len({each.result_id for each in claimed}) == 3
    assert None not in {each.result_id for each in claimed}


def test_of_rows_that_lost_a_worker_so_many_are_taken_as_there_is_room_for(engine: Engine) -> None:
    lost = lose(rows(2), 1)
    (fine,) = rows(1)
    long_ago = timezone.now() - timedelta(days=1)
    (expired,) = rows(1, locked_by="dead", locked_at=long_ago)
    assert [each.pk for each in mark(engine)] == [fine.pk]
    assert rescue(engine, room=0) == []
    assert [each.pk for each in rescue(engine, room=1)] == [lost[0].pk]
    assert [each.pk for each in rescue(engine, most=1)] == [lost[1].pk]
    assert [(each.pk, each.losses) for each in rescue(engine)] == [(expired.pk, 1)]


def test_a_row_that_lost_two_workers_is_the_only_one_of_its_kind(engine: Engine) -> None:
    lose(rows(3), 2)
    assert rescue(engine, room=claim.SUSPECTS - 1) == []
    assert len(rescue(engine)) == 1


def test_an_expired_row_that_a_transaction_holds_does_not_keep_the_others_waiting(
    engine: Engine, vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    long_ago = timezone.now() - timedelta(days=1)
    first, second = rows(2, locked_by="dead", locked_at=long_ago)
    with held_by_another_transaction(first):
        assert [each.pk for each in rescue(engine)] == [second.pk]


def test_a_row_that_cannot_be_marked_does_not_stop_the_others(engine: Engine, vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite counts beyond what fits a column")
    odd, *fine = rows(3)
    Task.objects.filter(pk=odd.pk).update(epoch=2**31 - 1)
    assert [each.pk for each in [*mark(engine), *mark(engine)]] == [row.pk for row in fine]


def test_a_batch_takes_a_few_statements_however_many_rows_there_are(engine: Engine) -> None:
    def statements(count: int) -> tuple[int, int]:
        rows(count)
        with CaptureQueriesContext(engine.connection) as claiming:
            claimed = claim.mark(engine, Wanted(NAMES), 500, ME)
        with CaptureQueriesContext(engine.connection) as recording:
            assert len(acknowledged(engine, *claimed)) == count
        return len(claiming), len(recording)

    most = {"postgresql": (1, 4), "mysql": (4, 4), "sqlite": (5, 4)}
    assert statements(2) == statements(400) == most[engine.connection.vendor]


def test_a_task_that_comes_alone_after_many_runs_after_as_few_statements_as_the_first(
    engine: Engine,
) -> None:
    registry = Tasks()
    statements = CaptureQueriesContext(engine.connection)
    before: list[int] = []

    @registry.background(name="a task")
    def work(number: int) -> None:
        before.append(len(statements))

    def before_one_runs() -> int:
        rows(1)
        with statements:
            assert functions.run_some()
        return before[-1]

    functions = Functions(registry, engine, Queues(), None, Budget(), lambda keys: True)
    at_first = before_one_runs()
    rows(200)
    with statements:
        while functions.run_some():
            pass
    for _ in range(8):  # within which it looks for what has lost a worker, but not before a task
        assert [before_one_runs(), before_one_runs()] == [at_first, at_first]
        assert not functions.run_some()
    functions.close()


@pytest.mark.parametrize("value", [None, "5", json.dumps({"a": ['"\\ \n{}, ñ', None, "NULL"]})])
def test_a_batch_of_successes_is_recorded_as_one_is(engine: Engine, value: str | None) -> None:
    rows(2, verbose_name="shown", queue="mine", priority=3)
    one, other = mark(engine)
    began = row_of(other).locked_at
    alone = finish.succeed(row_of(one), value)
    assert acknowledged(engine, other, value=value) == {other.pk}
    assert alone is not None
    assert not Task.objects.exists()
    stored = CompletedTask.objects.exclude(pk=alone.pk).get()
    differing = ("id", "task_params", "task_hash", "result_id", "run_at", "enqueued_at")
    expected = columns_of(CompletedTask.objects.get(pk=alone.pk), *differing)
    for name in ("locked_at", "started_at"):
        expected.pop(name)
    assert columns_of(stored, *differing, "locked_at", "started_at") == expected
    assert stored.started_at == began
    assert stored.run_at - stored.locked_at == timedelta(seconds=0.5)
    assert abs(stored.run_at - timezone.now()) < timedelta(seconds=10)


def test_no_column_of_the_history_is_forgotten() -> None:
    changed = {"attempts", "state", "run_at", "locked_at", "started_at"}
    changed |= {"locked_by", "worker_id", "return_value"}
    columns = {field.column for field in CompletedTask._meta.concrete_fields} - {"id"}
    assert {name.strip('"') for name in acknowledge.KEPT} | changed == columns


def test_a_large_batch_is_recorded_whole(engine: Engine) -> None:
    rows(1)
    Task.objects.bulk_create(
        [
            Task(**columns_of(Task.objects.get(), "id", "result_id", "state"), result_id=None)
            for _ in range(1000)
        ]
    )
    recorded = 0
    while readiness.settle(engine):
        pass
    while claimed := mark(engine, 500):
        recorded += len(acknowledged(engine, *claimed, value=f'"{"x" * 10_000}"'))
    assert recorded == CompletedTask.objects.count() == 1001
    assert not Task.objects.exists()


def test_a_row_that_is_gone_or_anothers_is_left_out(engine: Engine) -> None:
    rows(3)
    gone, taken, kept = mark(engine)
    Task.objects.filter(pk=gone.pk).delete()
    Task.objects.filter(pk=taken.pk).update(epoch=7, locked_by="other")
    assert acknowledged(engine, gone, taken, kept) == {kept.pk}
    assert Task.objects.get().locked_by == "other"
    assert CompletedTask.objects.count() == 1


def test_what_was_recorded_although_the_answer_was_lost_counts_as_recorded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows(3)
    gone, *kept = mark(engine)
    Task.objects.filter(pk=gone.pk).delete()
    keys = {each.pk for each in kept}

    def lose(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql == "COMMIT" and not caplog.records:
            raise OperationalError("the answer\nis lost")
        return result

    with engine.connection.execute_wrapper(lose):
        assert acknowledged(engine, gone, *kept) == keys
    assert "the answer is lost" in caplog.text
    assert CompletedTask.objects.count() == 2


def test_a_success_by_itself_is_found_again_when_the_answer_was_lost(engine: Engine) -> None:
    rows(1)
    (claimed,) = mark(engine)
    row = row_of(claimed)
    assert acknowledged(engine, claimed) == {claimed.pk}
    assert finish.succeed(row) is None
    CompletedTask.objects.update(run_at=timezone.now() - timedelta(hours=1))  # by its clock
    completed = finish.recorded(row)
    assert completed is not None
    assert completed.result_id == row.result_id


def test_an_operators_edit_made_meanwhile_is_kept(engine: Engine) -> None:
    rows(2)
    named, repeating = mark(engine)
    Task.objects.filter(pk=named.pk).update(verbose_name="edited")
    Task.objects.filter(pk=repeating.pk).update(repeat=60)
    assert acknowledged(engine, named, repeating) == {named.pk}, "the other needs its next row"
    assert CompletedTask.objects.get().verbose_name == "edited"
    assert finish.succeed(row_of(repeating)) is not None
    assert Task.objects.get().repeat == 60


def test_a_run_whose_lease_was_renewed_is_recorded(engine: Engine) -> None:
    rows(1)
    (claimed,) = mark(engine)
    row = row_of(claimed)
    later = timezone.now() + timedelta(seconds=1)
    leases.renew(engine, [leases.Lock.of(row)], later)
    assert Task.objects.get().locked_at >= later > row.locked_at
    assert acknowledged(engine, claimed) == {claimed.pk}


def test_what_refers_to_a_row_is_treated_as_when_the_row_is_deleted(engine: Engine) -> None:
    rows(2)
    first, second = mark(engine)
    Follower.objects.create(task_id=first.pk)
    assert acknowledged(engine, first, second) == {second.pk}
    assert finish.succeed(row_of(first)) is not None
    assert Follower.objects.get().task_id is None


@pytest.mark.parametrize(
    ("signal", "sender"), [(task_successful, Task), (post_save, CompletedTask), (pre_delete, Task)]
)
def test_who_listens_wants_each_row_by_itself(signal: Any, sender: Any) -> None:
    def listen(**kwargs: Any) -> None:
        pass

    assert not acknowledge.is_watched()
    signal.connect(listen, sender=sender)
    try:
        assert acknowledge.is_watched()
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
    assert acknowledge.is_watched()


@pytest.mark.parametrize("is_at_its_end", [False, True])
@pytest.mark.parametrize("is_another_gone", [False, True])
def test_a_copy_with_the_id_of_a_finished_row_is_left_to_be_recorded_by_itself(
    engine: Engine, is_another_gone: bool, is_at_its_end: bool
) -> None:
    first, gone, copy = rows(3)
    Task.objects.filter(pk=copy.pk).update(epoch=7)  # what has another epoch is recorded later
    claims = {each.pk: each for each in mark(engine)}
    finish.succeed(row_of(claims[first.pk]))
    done = CompletedTask.objects.get()
    Task.objects.filter(pk=copy.pk).update(result_id=done.result_id)
    claims[copy.pk] = claims[copy.pk]._replace(result_id=done.result_id)
    Task.objects.filter(pk=gone.pk).delete()
    if not is_at_its_end:
        Task.objects.filter(pk=copy.pk).update(repeat=60)
    others = [claims[gone.pk]] if is_another_gone else []
    assert acknowledged(engine, *others, claims[copy.pk]) == set()
    assert finish.succeed(row_of(claims[copy.pk])) is not None
    assert len(set(CompletedTask.objects.values_list("result_id", flat=True))) == 2


def test_many_are_handed_back_at_once_and_only_ours(engine: Engine) -> None:
    rows(3)
    first, second, third = mark(engine)
    Task.objects.filter(pk=second.pk).update(locked_by="other")
    locks = [leases.Lock(each.pk, "me", each.epoch) for each in (first, second, third)]
    assert leases.hand_back(engine, locks) == {first.pk, third.pk}
    free = Task.objects.filter(locked_by=None)
    assert {row.pk for row in free} == {first.pk, third.pk}
    assert len(mark(engine)) == 2


def plan(where: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] = ()) -> str:
    """Return how the database would execute a statement; what it would not use is left out."""
    with where.cursor() as cursor:
        explain = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
        cursor.execute(f"{explain} {sql}", parameters or None)
        names = [column[0] for column in cursor.description]
        steps = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return str([{**step, "possible_keys": None} for step in steps])


@pytest.mark.parametrize("queues", [(), ("one",)])
def test_rows_of_which_the_planner_does_not_know_yet_are_taken_in_the_order_of_an_index(
    engine: Engine, queues: tuple[str, ...]
) -> None:
    """A million that wait for their time, or a burst of thousands, are not read or sorted."""
    new = [Task.objects.new_task("a task", [number], queue="one") for number in range(5000)]
    Task.objects.bulk_create(new)
    Task.objects.update(state=State.READY)
    if connection.vendor == "postgresql":  # which may know the table of the other tests by now
        copy = "CREATE TEMP TABLE background_task (LIKE background_task INCLUDING ALL)"
        engine.run(f"{copy}; INSERT INTO background_task SELECT * FROM public.background_task")
    wanted = Wanted(NAMES, queues)
    claims = claim.hold(engine, wanted, 500)
    assert len(claims) == 500
    for behind in {None, claim.place(engine, claims[-1])}:
        found = plan(engine.connection, *claim._select(engine, wanted, 500, behind=behind))
        assert re.search("Index Scan|background_task_ready", found)
        assert not any(word in found for word in ("TEMP B-TREE", "Sort", "filesort", "Bitmap"))
    with CaptureQueriesContext(engine.connection) as recording, engine.transaction():
        acknowledge.move(engine, ended(*claims), ME, acknowledge.Owned.HELD)
    for each in recording:
        if "background_task" in each["sql"]:
            found = plan(engine.connection, each["sql"])
            assert not re.search("Seq Scan on background_task|SCAN background_task", found), found


def test_what_a_process_runs_is_found_without_reading_what_waits_for_its_time(
    engine: Engine,
) -> None:
    later = timezone.now() + timedelta(hours=1)
    new = [Task.objects.new_task("a task", [number], run_at=later) for number in range(3000)]
    for row in new:
        row.state = State.SCHEDULED
    Task.objects.bulk_create(new)
    engine.run("ANALYZE TABLE background_task" if engine.vendor.has_bell else "ANALYZE")
    with CaptureQueriesContext(engine.connection) as asked:
        workers.forgotten(engine)
        leases.run_by(engine, "another")
    assert len(asked) == 2
    for each in asked:
        if connection.vendor == "postgresql":
            found = plan(engine.connection, f"(ANALYZE) {each['sql']}")
            assert not re.search("Removed by Filter: [1-9]", found), found
        else:
            found = plan(engine.connection, each["sql"])
            assert not re.search("SCAN background_task |'rows': '?[0-9]{3}", found), found


@pytest.mark.parametrize("ordering", ["DESC", "ASC"])
def test_what_a_worker_does_once_a_minute_reads_no_table_from_end_to_end(
    ordering: str, settings: Any
) -> None:
    settings.BACKGROUND_TASK_PRIORITY_ORDERING = ordering
    rows(300)
    with CaptureQueriesContext(connection) as captured:
        Duties(tasks).run_if_due()
    asked = [each["sql"] for each in captured if "background_task" in each["sql"]]
    assert asked
    for sql in asked:
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":  # which sorts the few rows of a test
                for way in ("seqscan", "bitmapscan", "sort"):
                    cursor.execute(f"SET LOCAL enable_{way} = off")
            found = plan(connection, sql)
        assert re.search("background_task_(ready|unique_key)", found), sql
        assert not re.search("Incremental Sort|B-TREE FOR .*ORDER BY", found), sql


def test_a_claim_that_settles_doubts_does_not_lock_out_the_thread_that_records_a_batch(
    engine: Engine,
) -> None:
    rows(2)
    claims = mark(engine)
    batch = Batch(engine, claims, ME, is_held=False)
    runs.keep("default", batch.kept, [claimed.pk for claimed in claims])
    runs.doubt("default")
    threads = [
        threading.Thread(target=taking.take, args=[engine, lambda: None, None], daemon=True),
        threading.Thread(target=batch.record, daemon=True),
    ]
    with engine.lock:
        for thread in threads:
            thread.start()
            thread.join(0.1)
    for thread in threads:
        thread.join(20)
    runs.drop(batch.kept)
    assert [thread.is_alive() for thread in threads] == [False, False]
    assert Task.objects.filter(locked_by=None).count() == 2


def test_what_is_due_behind_many_rows_that_somebody_has_locked_may_run(
    engine: Engine, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    monkeypatch.setattr(readiness, "AT_ONCE", 3)
    *locked, free = rows(4)
    Task.objects.update(state=State.SCHEDULED)
    with transaction.atomic():
        assert len(Task.objects.select_for_update().filter(pk__lt=free.pk)) == len(locked)
        assert readiness.promote(engine) == 1
    assert Task.objects.get(state=State.READY).pk == free.pk


def test_what_cannot_be_taken_is_not_looked_for(engine: Engine) -> None:
    odd, sound = rows(2)
    wanted = Wanted(NAMES)
    oddities.pass_over(odd.pk, "a task", "a reason")
    try:
        assert [each.pk for each in mark(engine)] == [sound.pk]
        assert not readiness.look(engine, wanted).is_ready
    finally:
        oddities._passed_over.clear()
    assert readiness.look(engine, wanted).is_ready


@pytest.fixture
def held(engine: Engine, vendor: str) -> Callable[[int], Batch]:
    """Store rows and hold them, which is noted; one of them has begun, the others wait."""
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")

    def held(count: int) -> Batch:
        now = timezone.now()
        Worker.objects.create(worker_id=ME.worker_id, name="me", started_at=now, seen_at=now)
        readiness.settle(engine)
        rows(count)
        engine.begin()
        claims = claim.hold(engine, Wanted(NAMES), 100)
        Worker.objects.update(held=",".join(str(each.pk) for each in claims))
        batch = Batch(engine, claims, ME, is_held=True)
        batch.next()
        return batch

    return held


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("is_lost", [False, True])
def test_what_was_held_and_is_marked_or_given_back_is_no_longer_noted(
    engine: Engine, held: Callable[[int], Batch], count: int, is_lost: bool
) -> None:
    batch = held(count)
    if is_lost:
        engine.connection.connection.close()
    batch.current_marked()
    assert Worker.objects.get().held == ""
    assert Task.objects.filter(locked_by__isnull=False).count() == 1


def test_a_batch_is_recorded_though_its_note_cannot_be_changed(
    engine: Engine, held: Callable[[int], Batch], vendor: str, caplog: pytest.LogCaptureFixture
) -> None:
    timeout = "lock_timeout = 100" if vendor == "postgresql" else "innodb_lock_wait_timeout = 1"
    engine.run(f"SET {timeout}")
    batch = held(3)
    with transaction.atomic():
        Worker.objects.select_for_update().get()
        batch.current_marked()
    assert Worker.objects.get().held
    assert Task.objects.filter(locked_by__isnull=False).count() == 1
    assert "could not be recorded" not in caplog.text

"""Rows that a process has locked and does not run any more."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from support import wait_until

from background_task import background
from background_task.exceptions import TaskCancelledError
from background_task.execution.attempt import Attempt
from background_task.execution.runs import Keeping, Run, Runs, runs
from background_task.models import CompletedTask, Task
from background_task.states import State
from background_task.storage.engine import Engine
from background_task.storage.leases import Lock
from background_task.storage.notifications import told_here
from background_task.tasks import logger, tasks
from background_task.utils import ForcedStop
from background_task.worker import taking

pytestmark = pytest.mark.django_db(transaction=True)


def locked(**options: Any) -> Task:
    """Store a task and lock its row, as a worker of this process does."""
    proxy: Any = background("work", **options)(print)
    row = proxy().lock("1")
    assert row is not None
    row.policy = proxy.policy
    return row


def locked_for_long(**options: Any) -> Task:
    """The same, some minutes ago."""
    row = locked(**options)
    Task.objects.update(locked_at=timezone.now() - timedelta(minutes=5))
    row.refresh_from_db()
    return row


def kept(row: Task, *, is_never_again: bool = False) -> dict[Lock, Keeping]:
    return {Lock.of(row): Keeping("work", is_never_again)}


@contextmanager
def in_a_batch(row: Task) -> Iterator[None]:
    """Keep the row as a batch does."""

    def batch() -> dict[Lock, Keeping]:
        return kept(row)

    runs.keep("default", batch, [row.pk])
    yield
    runs.drop(batch)


def fail(row: Task, error: Exception) -> None:
    """Let a run of the row end so."""
    attempt = Attempt(tasks._tasks["work"], row, logger)
    attempt.resume()
    try:
        raise error
    except type(error) as raised:
        attempt.fail(raised)
    attempt.end()


@pytest.mark.parametrize(("is_never_again", "losses"), [(False, None), (True, 1)])
def test_what_was_left_is_freed_by_the_next_beat_though_nobody_takes_rows_meanwhile(
    engine: Engine, is_never_again: bool, losses: int | None
) -> None:
    runs.leave("default", kept(locked(), is_never_again=is_never_again))
    taking.settle_late_doubts(engine)
    row = Task.objects.get()
    assert (row.locked_by, row.losses) == (None, losses)


def test_what_was_left_and_is_held_by_a_transaction_is_freed_later(
    engine: Engine, vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    row = locked()
    runs.leave("default", kept(row))
    with transaction.atomic():
        Task.objects.select_for_update().get()
        runs.give_up_left(engine)
    assert Task.objects.get().locked_by
    runs.give_up_left(engine)
    assert Task.objects.get().locked_by is None


def test_what_was_left_does_not_keep_a_later_run_of_its_row_locked(engine: Engine) -> None:
    row = locked()
    runs.leave_stuck("default", kept(row))
    Task.objects.update(locked_by=None, locked_at=None, state=State.READY)  # somebody has freed it
    assert Task.objects.get().lock("1")  # and the answer to that is lost
    runs.doubt("default")
    runs.settle_doubts(engine)
    assert Task.objects.get().locked_by is None


def test_a_lease_is_not_renewed_while_the_outcome_is_about_to_be_written() -> None:
    row = locked_for_long()
    run = runs.begin(row)
    with in_a_batch(row):
        run.end()
        runs.renew()
    runs.end(row)
    assert row.hold()


def test_a_row_that_was_read_before_its_lease_was_renewed_is_recognised() -> None:
    row = locked_for_long()
    with in_a_batch(row):
        runs.renew()
        runs.begin(row)
    runs.end(row)
    assert row.hold()


def test_what_another_process_runs_is_not_given_up_by_who_has_run_it_by_hand(
    engine: Engine,
) -> None:
    row = locked()
    Task.objects.update(worker_id="host:1:another")
    row.refresh_from_db()
    Task.objects.update(locked_at=timezone.now())  # that process renews its lease
    fail(row, LookupError("on purpose"))
    runs.give_up_left(engine)
    assert Task.objects.get().locked_by == row.locked_by


@pytest.mark.parametrize("atomic", [False, True])
def test_a_body_does_not_begin_when_its_row_was_handed_back(atomic: bool) -> None:
    row = locked(atomic=atomic, on_worker_loss="fail")
    attempt = Attempt(tasks._tasks["work"], row, logger)
    attempt.begin()
    attempt.run.hand_back()
    with pytest.raises(ForcedStop):
        attempt.run_body((), {})
    assert not attempt.run.is_never_again, "it has not begun"
    runs.end(row)


def test_what_is_handed_back_while_it_ends_is_not_forgotten(engine: Engine) -> None:
    row = locked_for_long(on_worker_loss="fail")
    run: Run = runs.begin(row)
    run.has_begun = True
    runs.doubt("default")

    def hand_back() -> None:
        run.hand_back()
        connection.close()

    with runs._renewing:  # it waits for that
        thread = threading.Thread(target=hand_back)
        thread.start()
        wait_until(lambda: run.is_given_up)
        runs.end(row)
        taking.settle_late_doubts(engine)
    thread.join()
    found = Task.objects.get()
    assert (found.locked_by, found.losses) == (None, 1)


def test_what_was_cut_off_counts_though_another_thread_has_freed_it_a_moment_before(
    engine: Engine,
) -> None:
    row, freed, goes_on = locked(), threading.Event(), threading.Event()
    own, were_cut_off = Runs(), []

    def pause() -> None:
        freed.set()
        goes_on.wait(20)

    def give_up() -> None:
        own.give_up(Engine.on("default"), kept(row), is_cut_off=True)
        were_cut_off.append(own.were_cut_off)
        connection.close()

    own.leave("default", kept(row), is_cut_off=True)
    threads = [threading.Thread(target=own.give_up_left, args=[engine])]
    with told_here("default", pause):
        threads[0].start()
        assert freed.wait(20)
    threads.append(threading.Thread(target=give_up))
    threads[1].start()
    threads[1].join(0.2)
    goes_on.set()
    for thread in threads:
        thread.join()
    assert were_cut_off == [True]


def test_what_must_not_begin_twice_has_failed_when_its_success_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = []
    create = Task.create_completed_task

    def refuse(self: Task) -> CompletedTask:
        if not self.failed_at:
            raise LookupError("on purpose")
        return create(self)

    monkeypatch.setattr(Task, "create_completed_task", refuse)
    background("work", on_worker_loss="fail")(lambda: begun.append(1))()
    assert tasks.run_next_task()
    assert not tasks.run_next_task()
    done = CompletedTask.objects.get()
    assert (len(begun), done.state) == (1, State.FAILED)
    assert "on purpose" in done.last_error
    assert "must not begin twice" in done.last_error


@pytest.mark.parametrize("error", [LookupError("on purpose"), TaskCancelledError("on purpose")])
def test_what_has_ended_and_was_touched_meanwhile_is_lost_and_not_locked_for_ever(
    engine: Engine, error: Exception
) -> None:
    row = locked()
    Task.objects.update(locked_at=timezone.now() - timedelta(minutes=5))  # an operator, perhaps
    fail(row, error)
    runs.settle_doubts(engine)
    found = Task.objects.get()
    assert (found.locked_by, found.losses) == (None, 1)


def whole(task: Task) -> None:
    task.priority = 7
    task.save()


def in_part(task: Task) -> None:
    task.run_at = timezone.now()
    task.save(update_fields=["run_at"])


@pytest.mark.parametrize("store", [whole, in_part])
@pytest.mark.parametrize("is_read", [True, False])
def test_who_stores_a_row_that_was_taken_since_he_has_seen_it_does_not_unlock_it(
    store: Callable[[Task], None], is_read: bool
) -> None:
    seen = background("work")(print)()
    seen = Task.objects.get() if is_read else seen
    row = seen.lock("1")
    store(seen)
    found = Task.objects.get()
    names = "locked_by", "locked_at", "epoch", "worker_id", "started_at", "state"
    assert [getattr(found, name) for name in names] == [getattr(row, name) for name in names]
    assert found.priority == seen.priority


@pytest.mark.parametrize("losses", [None, 2])
def test_who_stores_a_row_that_was_given_back_since_lets_it_run_again(losses: int | None) -> None:
    row = locked()
    Task.objects.update(
        locked_by=None, locked_at=None, losses=losses, state=State.RESCUED if losses else 2
    )
    whole(row)
    assert Task.objects.get().state in (None, State.RESCUED if losses else State.READY)
    while tasks.run_next_task():
        pass
    assert CompletedTask.objects.get().state == State.SUCCESSFUL


def test_who_stores_a_row_that_was_given_back_after_a_loss_lets_it_be_a_suspect() -> None:
    seen = background("work")(print)()
    Task.objects.update(losses=1, state=State.RESCUED)
    whole(seen)
    assert Task.objects.get().state == State.RESCUED


def test_what_was_rolled_back_is_stored_the_next_time() -> None:
    row = locked()
    for is_in_vain in (True, False):
        with transaction.atomic():
            row.locked_by = None
            row.save()
            transaction.set_rollback(is_in_vain)
    assert Task.objects.get().locked_by is None


def test_a_change_that_is_taken_back_in_the_same_transaction_is_stored() -> None:
    row = background("work")(print)()
    with transaction.atomic():
        for locked_by in ("77", None):
            row.locked_by = locked_by
            row.save()
    found = Task.objects.get()
    assert found.locked_by is None
    assert tasks.run_next_task()


def test_the_columns_that_are_named_are_stored_whatever_they_were() -> None:
    seen = background("work")(print)()
    assert seen.lock("1") is not None
    seen.save(update_fields=["locked_by", "locked_at"])
    assert Task.objects.get().locked_by is None


def test_a_task_that_was_called_can_be_pickled() -> None:
    row = background("work")(print)()
    assert pickle.loads(pickle.dumps(row)) == row


def test_who_stores_a_row_changes_what_he_has_changed() -> None:
    row = locked()
    row.locked_by = row.locked_at = None
    row.run_at = timezone.now() + timedelta(hours=1)
    row.save()
    found = Task.objects.get()
    assert (found.locked_by, found.locked_at, found.run_at) == (None, None, row.run_at)
    row.run_at = timezone.now()
    row.save()
    assert Task.objects.get().state in (None, State.READY)
    row.lock("2")
    row.refresh_from_db()
    row.locked_by = None
    row.save()
    assert Task.objects.get().locked_by is None


def test_who_stores_a_row_that_has_failed_since_leaves_its_attempts_and_its_time() -> None:
    seen = background("work", max_attempts=3, backoff=[60])(lambda: 1 / 0)()
    assert tasks.run_next_task()
    whole(seen)
    found = Task.objects.get()
    assert found.attempts == 1
    assert "ZeroDivisionError" in found.last_error
    assert found.run_at > timezone.now()
    assert found.state in (None, State.SCHEDULED)
    assert not tasks.run_next_task()


def test_who_stores_a_row_that_was_put_aside_since_does_not_let_it_run() -> None:
    seen = background("work")(print)()
    Task.objects.update(failed_at=timezone.now())
    whole(seen)
    assert Task.objects.get().failed_at is not None
    assert not tasks.run_next_task()


@pytest.mark.parametrize("names", [None, ["locked_by", "locked_at"]])
def test_who_stores_a_row_without_its_lock_says_that_the_worker_is_gone(
    names: list[str] | None,
) -> None:
    row = locked()
    unlocked(row).save(update_fields=names)
    found = Task.objects.get()
    assert (found.locked_by, found.losses, found.epoch) == (None, 1, (row.epoch or 0) + 1)
    assert tasks.run_next_task()
    assert CompletedTask.objects.get().losses == 1


@pytest.mark.parametrize(
    "unlock",
    [
        lambda: Task.objects.all().release(),
        lambda: Task.objects.update(locked_by=None),
        lambda: Task.objects.update(locked_by="", locked_at=None),
        lambda: [whole(unlocked(row)) for row in Task.objects.all()],
    ],
)
@pytest.mark.parametrize("on_worker_loss", ["retry", "fail"])
def test_a_task_whose_lock_somebody_takes_off_while_it_runs_has_lost_its_worker(
    unlock: Callable[[], Any], on_worker_loss: str
) -> None:
    begun = []

    def body() -> None:
        begun.append(1)
        if len(begun) == 1:
            unlock()

    background("work", on_worker_loss=on_worker_loss)(body)()
    while tasks.run_next_task():
        pass
    done = CompletedTask.objects.get()
    assert done.losses == 1
    assert len(begun) == (2 if on_worker_loss == "retry" else 1)
    assert done.state == (State.SUCCESSFUL if on_worker_loss == "retry" else State.FAILED)


def unlocked(row: Task) -> Task:
    row.locked_by = row.locked_at = None
    return row

"""Tasks, receivers and rows that mean no good: the worker lives on, and nothing gets stuck."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.models.signals import post_save
from django.test import override_settings
from django.utils import timezone
from project.models import Note

from background_task import background, signals
from background_task.execution.runs import runs
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks
from background_task.utils import SignalManager
from background_task.worker.duties import Duties

pytestmark = pytest.mark.django_db(transaction=True)


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def recurse() -> None:
    recurse()


def close() -> None:
    connection.close()
    raise ValueError


def abort() -> None:
    with transaction.atomic():
        try:
            connection.cursor().execute("SELECT * FROM there_is_no_such_table")
        except Exception:
            Task.objects.count()


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "body",
    [
        lambda: raise_it(Unprintable()),
        lambda: raise_it(ValueError("x" * 20_000_000)),
        lambda: raise_it(ValueError("nul \x00 and surrogate \ud800")),
        lambda: raise_it(ExceptionGroup("many", [ValueError(), TypeError()])),
        recurse,
        close,
        lambda: tasks.run_task("of.nobody"),
    ],
    ids=["unprintable", "huge", "nul", "group", "recursion", "closed", "unknown"],
)
def test_a_failure_of_any_kind_is_recorded_and_retried(
    body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What these raise is no text that a test runner could pass on.
    monkeypatch.setattr(logging.getLogger("background_task"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("background_task.tasks"), "disabled", True)
    background("hostile")(body)()
    assert tasks.run_next_task()
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert 0 < len(row.last_error) < 300_000


def test_a_broken_transaction_of_a_task_is_its_own_affair(vendor: str) -> None:
    background("hostile")(abort)()
    assert tasks.run_next_task()
    if vendor == "postgresql":  # where a failed statement breaks the transaction
        assert Task.objects.get().attempts == 1
    else:
        assert CompletedTask.objects.exists()
    background("next")(lambda: None)()
    assert tasks.run_next_task()


@pytest.mark.parametrize(
    "params", ["", "{", "null", "[]", "[1]", "[[], []]", "[5, {}]", "[[], {}, 1]", '[{"a": 1}, {}]']
)
def test_a_row_whose_arguments_were_tampered_with_fails_and_blocks_nobody(params: str) -> None:
    bad = background("hostile")(lambda *args: None)()
    Task.objects.filter(pk=bad.pk).update(task_params=params)
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert CompletedTask.objects.filter(task_name="next").exists()
    assert not Task.objects.filter(locked_by__isnull=False).exists()


@pytest.mark.parametrize(
    "values",
    [
        {"repeat": 10**17},
        {"repeat": -5},
        {"attempts": -3},
        {"attempts": 10**6},
        {"epoch": None, "state": None, "result_id": None},
        {"options": "garbage", "unique_key": "every:garbage"},
    ],
    ids=str,
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_row_with_odd_values_runs_to_an_end(values: dict[str, Any], fails: bool) -> None:
    def body() -> None:
        if fails:
            raise ValueError

    background("hostile")(body)()
    Task.objects.update(**values)
    Duties(tasks).run_if_due()
    assert tasks.run_next_task()
    assert not Task.objects.filter(locked_by__isnull=False).exists()


@pytest.mark.parametrize(
    "name", ["task_started", "task_error", "task_successful", "task_rescheduled", "task_finished"]
)
@pytest.mark.parametrize("exit_by", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_receiver_that_exits_does_not_take_the_worker_along(
    name: str, exit_by: type[BaseException]
) -> None:
    def receiver(**kwargs: Any) -> None:
        raise exit_by

    def body() -> None:
        if name in ("task_error", "task_rescheduled"):
            raise ValueError

    background("hostile")(body)()
    signal = getattr(signals, name)
    signal.connect(receiver)
    try:
        assert tasks.run_next_task()
    finally:
        signal.disconnect(receiver)
    assert not Task.objects.filter(locked_by__isnull=False).exists()


def test_a_row_that_is_deleted_while_it_is_claimed_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = background("hostile")(lambda: None)()

    def delete(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE"):
            execute("DELETE FROM background_task", (), False, context)
        return result

    with connection.execute_wrapper(delete):
        assert row.lock("me") is None


def test_an_async_function_runs_to_its_end() -> None:
    ran = []

    @background
    async def task(value: int) -> None:
        ran.append(value)

    task(5)
    assert tasks.run_next_task()
    assert ran == [5]
    assert CompletedTask.objects.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_block_that_a_task_never_leaves_is_rolled_back(fails: bool) -> None:
    def body() -> None:
        transaction.atomic().__enter__()
        Note.objects.create(text="left open")
        if fails:
            raise ValueError

    background("hostile")(body)()
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert not connection.in_atomic_block
    assert tasks.run_next_task()
    assert CompletedTask.objects.filter(task_name="next").exists()
    error = Task.objects.get(task_name="hostile").last_error
    assert ("ValueError" if fails else "has left a transaction open") in error
    assert not Note.objects.exists()


def test_a_session_that_a_task_makes_read_only_is_given_up(vendor: str) -> None:
    statement = {
        "sqlite": "PRAGMA query_only = 1",
        "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "mysql": "SET SESSION TRANSACTION READ ONLY",
    }[vendor]

    def body() -> None:
        connection.cursor().execute(statement)

    background("hostile")(body)()
    assert tasks.run_next_task()
    assert CompletedTask.objects.exists()


@pytest.mark.parametrize("model", [Task, CompletedTask])
def test_a_receiver_that_forbids_to_record_a_failure_puts_the_task_off(model: Any) -> None:
    def receiver(**kwargs: Any) -> None:
        raise RuntimeError("not here")

    def body() -> None:
        raise ValueError

    background("hostile")(body)()
    post_save.connect(receiver, sender=model)
    try:
        with override_settings(MAX_ATTEMPTS=1 if model is CompletedTask else 25):
            assert tasks.run_next_task()
    finally:
        post_save.disconnect(receiver, sender=model)
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert row.run_at > timezone.now()
    assert "not here" in row.last_error


def test_a_receiver_that_closes_the_connection_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def receiver(**kwargs: Any) -> None:
        Note.objects.create(text="from the receiver")
        connection.close()
        Note.objects.create(text="and after")

    background("hostile")(lambda: None)(repeat=60)
    signals.task_successful.connect(receiver)
    try:
        assert tasks.run_next_task()
    finally:
        signals.task_successful.disconnect(receiver)
    assert CompletedTask.objects.get().failed_at is None
    assert Note.objects.count() == 2
    assert Task.objects.count() == 1
    assert "trying again" not in caplog.text


def test_a_connection_that_a_task_closes_behind_djangos_back_is_made_anew() -> None:
    background("hostile")(lambda: connection.connection.close())()
    assert tasks.run_next_task()
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert CompletedTask.objects.succeeded().count() == 2


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("caught", [False, True])
def test_a_failed_statement_leaves_the_block_of_a_test_case_usable(caught: bool) -> None:
    def body() -> None:
        Note.objects.create(text="before")
        with contextlib.suppress(DatabaseError) if caught else contextlib.nullcontext():
            connection.cursor().execute("SELECT * FROM there_is_no_such_table")

    background("hostile")(body)()
    assert tasks.run_next_task()
    assert caught == (not Task.objects.filter(attempts=1).exists())
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert CompletedTask.objects.filter(task_name="next").exists()


def test_a_row_in_a_state_that_only_a_newer_version_knows_is_left_alone() -> None:
    background("hostile")(lambda: None)()
    Task.objects.update(state=77)
    assert not tasks.run_next_task()
    assert (Task.objects.get().state, Task.objects.get().locked_by) == (77, None)


@pytest.mark.parametrize("seconds", [10**15, float("inf")])
def test_a_lease_may_be_longer_than_the_calendar(seconds: float) -> None:
    background("hostile")(lambda: None)()
    with override_settings(MAX_RUN_TIME=seconds):
        assert tasks.run_next_task()
    assert CompletedTask.objects.exists()


def test_a_row_that_cannot_be_claimed_is_reported_once_and_passed_over(
    vendor: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = background("hostile")(lambda: None)()
    background("next")(lambda: None)()
    # SQLite stores a day that does not exist; the others cannot count the next claim.
    odd = "enqueued_at = '2026-02-31 00:00:00'" if vendor == "sqlite" else "epoch = 2147483647"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE background_task SET {odd} WHERE id = {bad.pk}")
    assert tasks.run_next_task()
    assert CompletedTask.objects.get().task_name == "next"
    assert not tasks.run_next_task()
    assert caplog.text.count("it cannot be locked") == 1
    assert not Task.objects.filter(locked_by__isnull=False).exists()


def test_a_claim_of_which_the_answer_is_lost_is_given_back_and_made_again() -> None:
    background("hostile")(lambda: None)()

    def lose(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE"):
            raise OperationalError("gone away")
        return result

    with connection.execute_wrapper(lose):
        assert not tasks.run_next_task()
    assert Task.objects.get().locked_by
    assert tasks.run_next_task()
    assert CompletedTask.objects.get().attempts == 1


def test_a_lease_of_which_the_renewal_is_in_doubt_is_ours_either_way() -> None:
    for stored in (True, False):

        def lose(execute: Any, *args: Any, stored: bool = stored) -> Any:
            if not args[0].startswith("UPDATE"):
                return execute(*args)
            if stored:
                execute(*args)
            raise OperationalError("gone away")

        def body(lose: Any = lose) -> None:
            with connection.execute_wrapper(lose):
                runs.renew()

        background("hostile")(body)()
        assert tasks.run_next_task()
    assert CompletedTask.objects.succeeded().count() == 2


def test_a_row_that_was_taken_over_is_not_renewed() -> None:
    def body() -> None:
        Task.objects.update(locked_by="other", locked_at=timezone.now())
        before = Task.objects.get().locked_at
        runs.renew()
        assert Task.objects.get().locked_at == before

    background("hostile")(body)()
    assert tasks.run_next_task()
    assert (Task.objects.get().locked_by, Task.objects.get().last_error) == ("other", "")


def test_a_transaction_that_a_task_begins_by_hand_is_rolled_back() -> None:
    def body() -> None:
        connection.cursor().execute("BEGIN")
        Note.objects.create(text="left open")

    background("hostile")(body)()
    background("next")(lambda: Note.objects.create(text="next"))()
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert [row.task_name for row in CompletedTask.objects.all()] == ["next"]
    assert "has left a transaction open" in Task.objects.get().last_error
    assert [note.text for note in Note.objects.all()] == ["next"]


@pytest.mark.parametrize("how", ["by hand", "autocommit", "block"])
def test_what_a_task_of_a_batch_wrote_into_a_transaction_it_left_open_is_reported(
    how: str,
) -> None:
    def body() -> None:
        if how == "by hand":
            connection.cursor().execute("BEGIN")
        elif how == "autocommit":
            transaction.set_autocommit(False)
        else:
            transaction.atomic().__enter__()
        Note.objects.create(text="left open")

    background("hostile")(body)()
    background("next")(lambda: Note.objects.create(text="next") and None)()
    call_command("process_tasks", "--burst")
    assert [row.task_name for row in CompletedTask.objects.all()] == ["next"]
    assert "has left a transaction open" in Task.objects.get().last_error
    assert [note.text for note in Note.objects.all()] == ["next"]


def test_a_transaction_that_was_committed_may_be_followed_by_none(vendor: str) -> None:
    def body() -> None:
        transaction.set_autocommit(False)
        Note.objects.create(text="kept")
        transaction.commit()

    background("own")(body)()
    call_command("process_tasks", "--burst")
    assert CompletedTask.objects.succeeded().count() == 1
    assert Note.objects.get().text == "kept"


def test_a_session_in_which_our_tables_are_gone_is_given_up(vendor: str) -> None:
    statement = {
        "sqlite": "PRAGMA query_only = 1",
        "postgresql": "SET search_path TO nothing",
        "mysql": "USE mysql",
    }[vendor]
    background("hostile")(lambda: connection.cursor().execute(statement))()
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert CompletedTask.objects.succeeded().count() == 2


def test_a_name_that_differs_in_its_case_is_no_name_of_ours(
    vendor: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = background("hostile")(lambda: None)()
    Task.objects.filter(pk=bad.pk).update(task_name="HOSTILE")
    background("next")(lambda: None)()
    assert tasks.run_next_task()
    assert not tasks.run_next_task()
    assert CompletedTask.objects.get().task_name == "next"
    assert Task.objects.get().locked_by is None
    assert vendor != "mysql" or "no tasks.py registers exactly this name" in caplog.text


def test_a_renewal_does_not_wait_for_a_row_that_the_task_has_locked(vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")

    def renew() -> None:
        try:
            runs.renew()
        finally:
            connection.close()

    def body() -> None:
        thread = threading.Thread(target=renew, daemon=True)
        with transaction.atomic():
            Task.objects.update(verbose_name="locked")
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

    background("hostile")(body)()
    assert tasks.run_next_task()
    assert CompletedTask.objects.succeeded().exists()


def test_an_expired_row_that_a_transaction_holds_delays_no_other(vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    held = background("hostile")(lambda: None)(priority=9)
    Task.objects.update(locked_by="x", locked_at=timezone.now() - timedelta(days=1))
    background("next")(lambda: None)()
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Task.objects.select_for_update().get(pk=held.pk)
            locked.set()
            done.wait(20)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(20)
    try:
        assert tasks.run_next_task()
        assert CompletedTask.objects.get().task_name == "next"
        assert not done.is_set()
    finally:
        done.set()
        thread.join(20)
    assert tasks.run_next_task()


def test_a_receiver_may_run_another_task() -> None:
    second = background("second")(lambda: None)

    def receiver(completed_task: CompletedTask, **kwargs: Any) -> None:
        if completed_task.task_name == "first":
            second()
            connection.close()
            tasks.run_task("second")

    background("first")(lambda: None)()
    signals.task_successful.connect(receiver)
    try:
        assert tasks.run_next_task()
    finally:
        signals.task_successful.disconnect(receiver)
    assert "close" not in vars(connection)
    assert sorted(CompletedTask.objects.values_list("task_name", "failed_at")) == [
        ("first", None),
        ("second", None),
    ]


def test_a_claim_in_doubt_is_settled_when_the_worker_ends() -> None:
    background("hostile")(lambda: None)()
    lost = []

    def lose(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE") and not lost:
            lost.append(sql)
            raise OperationalError("gone away")
        return result

    with connection.execute_wrapper(lose):
        tasks.run_next_task()
        assert Task.objects.get().locked_by
        call_command("process_tasks", duration=1, sleep=60, queue="another")
    assert lost
    assert Task.objects.get().locked_by is None


@pytest.mark.parametrize("times", [1, 2])
def test_a_task_that_is_claimed_while_the_worker_is_asked_to_stop_does_not_begin(
    times: int,
) -> None:
    background("hostile")(lambda: None)()
    manager = SignalManager()

    def ask(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and not manager.kill_now:
            for _ in range(times):
                manager.exit_gracefully(None, None)
        return execute(sql, *args)

    try:
        with connection.execute_wrapper(ask):
            assert not tasks.run_next_task()
    finally:
        manager.restore()
    assert not CompletedTask.objects.exists()
    assert (Task.objects.get().locked_by, Task.objects.get().attempts) == (None, 0)


def test_a_worker_inside_a_worker_leaves_the_signals_to_the_outer_one() -> None:
    outer = SignalManager()
    try:
        SignalManager().restore()
        assert SignalManager._active is outer
    finally:
        outer.restore()


@pytest.mark.django_db(transaction=False)
def test_a_block_that_a_task_never_leaves_ends_with_it_in_a_test_case_too() -> None:
    def body() -> None:
        transaction.atomic().__enter__()
        Note.objects.create(text="left open")

    depth = len(connection.savepoint_ids)
    background("hostile")(body)()
    assert tasks.run_next_task()
    assert len(connection.savepoint_ids) == depth
    assert "has left a transaction open" in Task.objects.get().last_error
    assert not Note.objects.exists()
    with transaction.atomic():
        Note.objects.create(text="and on")


def test_the_lease_is_renewed_while_receivers_of_an_error_run() -> None:
    renewed = []

    def receiver(**kwargs: Any) -> None:
        before = Task.objects.get().locked_at
        runs.renew()
        renewed.append(Task.objects.get().locked_at > before)

    background("hostile")(lambda: raise_it(ValueError()))()
    signals.task_error.connect(receiver)
    try:
        assert tasks.run_next_task()
    finally:
        signals.task_error.disconnect(receiver)
    assert renewed == [True]
    assert Task.objects.get().attempts == 1

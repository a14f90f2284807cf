"""CHECK_EXISTING, RESCHEDULE_EXISTING and remove_existing_tasks: what counts as the same task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import NotSupportedError, connection, transaction
from django.db.models import Count, Exists, OuterRef, QuerySet
from django.db.models.signals import pre_delete
from django.utils import timezone
from project.models import Special
from support import wait_until, waits_for_a_lock

from background_task import background
from background_task.models import Task, managers
from background_task.settings import app_settings
from background_task.states import State
from background_task.tasks import TaskSchedule, tasks

pytestmark = pytest.mark.django_db

CHECK = {"action": TaskSchedule.CHECK_EXISTING}
RESCHEDULE = {"action": TaskSchedule.RESCHEDULE_EXISTING}
LATER = datetime(2099, 1, 1, tzinfo=timezone.get_default_timezone())
EXPIRED = timedelta(seconds=app_settings.MAX_RUN_TIME + 2)


@pytest.fixture
def proxy() -> Any:
    return background("same")(lambda *args, **kwargs: None)


def existing() -> list[tuple[datetime, int]]:
    return list(Task.objects.order_by("pk").values_list("run_at", "priority"))


# CHECK_EXISTING and RESCHEDULE_EXISTING


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_without_a_match_a_row_is_stored_and_announced(
    proxy: Any, schedule: Any, sent: list[Any]
) -> None:
    row = proxy(schedule=schedule)
    assert Task.objects.get() == row
    assert [name for name, *_ in sent] == ["task_created"]


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_with_a_match_nothing_is_stored_returned_or_announced(
    proxy: Any, schedule: Any, sent: list[Any]
) -> None:
    proxy("argument", schedule=LATER)
    sent.clear()
    assert proxy("argument", schedule=schedule) is None
    assert Task.objects.count() == 1
    assert sent == []


def test_check_existing_changes_nothing(proxy: Any) -> None:
    first = proxy(schedule=LATER, priority=1)
    proxy(schedule=CHECK | {"run_at": 90, "priority": 2})
    assert existing() == [(first.run_at, 1)]


def test_reschedule_existing_changes_time_and_priority_of_every_match(proxy: Any) -> None:
    for _ in range(3):
        proxy(repeat=60, verbose_name="kept")
    proxy(schedule=RESCHEDULE | {"run_at": LATER, "priority": 2}, repeat=5, verbose_name="ignored")
    assert existing() == [(LATER, 2)] * 3
    assert set(Task.objects.values_list("repeat", "verbose_name")) == {(60, "kept")}


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
@pytest.mark.parametrize("other", [("other",), ()], ids=["other arguments", "no arguments"])
def test_other_arguments_are_another_task(proxy: Any, schedule: Any, other: tuple[str]) -> None:
    proxy("argument")
    assert proxy(*other, schedule=schedule) is not None
    assert Task.objects.count() == 2


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_another_name_is_another_task(proxy: Any, schedule: Any) -> None:
    proxy("argument")
    assert background("another")(lambda argument: None)("argument", schedule=schedule) is not None


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_a_locked_row_is_no_match_and_left_alone(proxy: Any, schedule: Any) -> None:
    locked = proxy(schedule=LATER).lock("a worker")
    new = proxy(schedule=schedule | {"run_at": 90, "priority": 7})
    assert existing() == [(LATER, 0), (new.run_at, 7)]
    locked.refresh_from_db()
    assert locked.locked_by == "a worker"


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_a_row_whose_lock_has_expired_is_a_match(proxy: Any, schedule: Any) -> None:
    proxy().lock("a worker")
    Task.objects.update(locked_at=timezone.now() - EXPIRED)
    assert proxy(schedule=schedule) is None
    assert Task.objects.count() == 1


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
@pytest.mark.parametrize(
    ("stored", "asked", "matches"),
    [
        (None, None, True),
        ("a", None, True),
        ("a", "a", True),
        ("a", "b", False),
        (None, "a", False),
    ],
)
def test_the_queue_is_compared_only_when_one_is_given(
    proxy: Any, schedule: Any, stored: str | None, asked: str | None, matches: bool
) -> None:
    proxy(queue=stored)
    assert (proxy(queue=asked, schedule=schedule) is None) is matches


def test_only_the_matches_of_the_queue_are_rescheduled(proxy: Any) -> None:
    proxy(queue="a"), proxy(queue="b")
    proxy(queue="a", schedule=RESCHEDULE | {"run_at": LATER})
    assert Task.objects.get(run_at=LATER).queue == "a"


@pytest.mark.parametrize("schedule", [CHECK, RESCHEDULE], ids=["check", "reschedule"])
def test_the_action_may_be_the_decorators(schedule: Any, sent: list[Any]) -> None:
    proxy = background("by.default", schedule=schedule)(lambda: None)
    proxy()
    assert proxy() is None
    assert len(sent) == Task.objects.count() == 1


# remove_existing_tasks


def test_removal_deletes_the_waiting_rows_whatever_their_queue(proxy: Any) -> None:
    for queue in (None, "a", "b"):
        proxy("argument", queue=queue)
    row = proxy("argument", queue="c", remove_existing_tasks=True)
    assert Task.objects.get() == row


def test_removal_spares_other_arguments_other_names_and_locked_rows(proxy: Any) -> None:
    others = [
        proxy("other"),
        background("another")(lambda argument: None)("argument"),
        proxy("argument").lock("a worker"),
    ]
    row = proxy("argument", remove_existing_tasks=True)
    assert set(Task.objects.all()) == {*others, row}


def test_removal_spares_even_a_lock_that_has_expired(proxy: Any) -> None:
    proxy().lock("a worker")
    Task.objects.update(locked_at=timezone.now() - EXPIRED)
    proxy(remove_existing_tasks=True)
    assert Task.objects.count() == 2


def test_removal_is_announced_as_one_new_row(proxy: Any, sent: list[Any]) -> None:
    proxy()
    sent.clear()
    row = proxy(remove_existing_tasks=True)
    assert [(name, arguments["task"]) for name, _, arguments in sent] == [("task_created", row)]


@pytest.mark.parametrize(
    ("default", "call", "left"),
    [(True, {}, 1), (False, {}, 2), (True, {"remove_existing_tasks": False}, 2)],
)
def test_the_call_decides_over_the_decorator(
    default: bool, call: dict[str, bool], left: int
) -> None:
    proxy = background("by.default", remove_existing_tasks=default)(lambda: None)
    proxy(), proxy(**call)
    assert Task.objects.count() == left


def test_removal_comes_before_the_look_for_matches(proxy: Any) -> None:
    first = proxy()
    row = proxy(schedule=CHECK, remove_existing_tasks=True)
    assert Task.objects.get() == row != first


def test_new_task_removes_at_once_though_it_saves_nothing(proxy: Any) -> None:
    proxy()
    row = Task.objects.new_task("same", remove_existing_tasks=True)
    assert row.pk is None
    assert not Task.objects.exists()


def test_removal_and_new_row_are_undone_with_the_callers_transaction(proxy: Any) -> None:
    first = proxy()
    with transaction.atomic():
        proxy(remove_existing_tasks=True)
        transaction.set_rollback(True)
    assert Task.objects.get() == first


def test_rows_that_1_2_8_stored_are_matched() -> None:
    """Its bytes, literally: the hash is what finds them."""
    proxy = background("a.b")(lambda *args, **kwargs: None)
    Task.objects.bulk_create(
        [
            Task(
                task_name="a.b",
                task_params='[["a", 1], {"k": true}]',
                task_hash="2fb27a007ac15978906bb969f44fe73e3e58e61a",
                run_at=timezone.now(),
            )
        ]
    )
    assert proxy("a", 1, k=True, schedule=CHECK) is None
    assert tasks.run_next_task()
    assert not Task.objects.exists()


class Meanwhile:
    """What another does once, in a thread; it has a second for it, or waits until we are done."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act
        self._thread = threading.Thread(target=self._run)
        self._result: Any = None

    def _run(self) -> None:
        self._result = self._act()
        connection.close()

    def begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
            self._thread.join(1)

    def end(self) -> Any:
        """Return what it has got."""
        self._thread.join()
        return self._result


@pytest.mark.django_db(transaction=True)
def test_who_deletes_rows_that_others_write_waits_for_his_turn(proxy: Any, vendor: str) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite lets one write at a time")
    rows = [proxy() for _ in range(3)]
    other = Meanwhile(lambda: Task.objects.filter(pk=rows[0].pk).update(priority=1))

    def let_another_write(execute: Any, sql: str, *rest: Any) -> Any:
        if not sql.startswith(("BEGIN", "SELECT")):  # what is deleted was read
            other.begin()
        return execute(sql, *rest)

    with connection.execute_wrapper(let_another_write):
        assert Task.objects.all().delete()[0] == 3
    other.end()
    assert not Task.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("count", [1, 3])
def test_what_a_worker_takes_meanwhile_is_not_deleted_as_waiting(
    proxy: Any, count: int, listen: Callable[..., None]
) -> None:
    rows = [proxy() for _ in range(count)]
    other = Meanwhile(lambda: rows[-1].lock("a worker"))
    listen(pre_delete, lambda **kwargs: other.begin(), sender=Task)  # what is deleted was read
    Task.objects.filter(locked_at__isnull=True).delete()
    run = other.end()
    assert run is None or run.hold()


@pytest.mark.django_db(transaction=True)
def test_what_is_stored_meanwhile_is_not_deleted_with_many_others(
    proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(managers, "MOST_KEYS", 2)
    for _ in range(3):
        proxy()
    other = Meanwhile(lambda: proxy("late"))

    def let_another_store(execute: Any, sql: str, *rest: Any) -> Any:
        result = execute(sql, *rest)
        if sql.startswith("SELECT"):  # which keys there are
            other.begin()
        return result

    with connection.execute_wrapper(let_another_store):
        assert Task.objects.all().delete() == (3, {"background_task.Task": 3})
    other.end()
    assert Task.objects.get().params() == (["late"], {})


def test_many_rows_that_are_wanted_for_the_sake_of_each_other_are_deleted_together(
    proxy: Any, monkeypatch: pytest.MonkeyPatch, listen: Callable[..., None]
) -> None:
    monkeypatch.setattr(managers, "MOST_KEYS", 2)
    for _ in range(5):
        proxy()
    same = Task.objects.filter(task_hash=OuterRef("task_hash")).exclude(pk=OuterRef("pk"))
    told: list[Any] = []
    listen(pre_delete, lambda **kwargs: told.append(Task.objects.count()), sender=Task)
    assert Task.objects.filter(Exists(same)).delete() == (5, {"background_task.Task": 5})
    assert told == [5] * 5


def test_rows_of_a_model_with_parents_are_deleted_and_cancelled_as_others() -> None:
    for _ in range(2):
        Special(task_name="any", task_params="[[], {}]", run_at=timezone.now()).save()
    row, _ = Special.objects.order_by("pk")
    count = {"project.Special": 1, "background_task.Task": 1}
    assert Special.objects.filter(pk=row.pk).delete() == (2, count)
    assert Special.objects.get().cancel()
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    "some",
    [
        Task.objects.all()[:1],
        Task.objects.values("queue"),
        Task.objects.values("queue").annotate(Count("pk")),
        Task.objects.values_list("pk", flat=True),
        Task.objects.distinct("queue"),
        Task.objects.filter(priority=0).union(Task.objects.all()),
    ],
    ids=["slice", "values", "groups", "values_list", "distinct", "union"],
)
def test_what_django_refuses_to_delete_is_not_deleted(proxy: Any, some: Any) -> None:
    proxy()
    refusals: list[str] = []
    for delete in (some.all().delete, QuerySet.delete.__get__(some.all())):
        with pytest.raises((TypeError, NotSupportedError)) as refused:
            delete()
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]
    assert Task.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_what_runs_is_not_rescheduled_whatever_the_transaction_has_seen(
    proxy: Any, vendor: str
) -> None:
    if vendor != "mysql":
        pytest.skip("PostgreSQL refuses it, and SQLite lets nobody else write")
    row = proxy()

    def take() -> None:
        assert row.lock("a worker") is not None
        connection.close()

    with connection.cursor() as cursor:
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic():
            assert Task.objects.count() == 1
            worker = threading.Thread(target=take)
            worker.start()
            worker.join()
            proxy(schedule={"action": TaskSchedule.RESCHEDULE_EXISTING, "priority": 9})
    finally:
        connection.close()
    assert list(Task.objects.order_by("pk").values_list("state", "priority")) == [
        (State.RUNNING, 0),
        (State.READY, 9),
    ]


@pytest.mark.django_db(transaction=True)
def test_as_many_rows_are_deleted_by_a_condition_with_parameters_as_django_deletes(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if vendor != "postgresql":
        pytest.skip("the others have no limit, or Django keeps to it")
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", True)
    connection.close()
    connection.features.__dict__.pop("uses_server_side_binding", None)
    count = 33_000  # twice as many are more than PostgreSQL takes
    Task.objects.bulk_create(
        [Task(pk=key, task_name="many", run_at=timezone.now()) for key in range(1, count + 1)]
    )
    try:
        assert Task.objects.filter(pk__in=range(1, count + 1)).delete()[0] == count
    finally:
        connection.close()
        connection.features.__dict__.pop("uses_server_side_binding", None)


def test_what_was_deleted_is_not_remembered(proxy: Any) -> None:
    proxy()
    rows = Task.objects.select_for_update()
    with transaction.atomic():
        assert len(rows) == 1
        assert rows.delete()[0] == 1
        assert len(rows) == 0


def test_what_was_to_be_locked_as_this_database_cannot_is_deleted(proxy: Any) -> None:
    proxy()
    assert Task.objects.select_for_update(no_key=True).delete()[0] == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "change",
    [
        lambda proxy: proxy(remove_existing_tasks=True),
        lambda proxy: proxy(schedule={"action": TaskSchedule.RESCHEDULE_EXISTING}),
        lambda proxy: Task.objects.drop_task("same"),
        lambda proxy: Task.objects.all().delete(),
    ],
    ids=["remove_existing_tasks", "RESCHEDULE_EXISTING", "drop_task", "delete"],
)
def test_two_that_change_the_same_rows_do_not_wait_for_each_other_for_ever(
    proxy: Any, change: Callable[[Any], object], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")
    first, *others = [proxy() for _ in range(3)]
    Task.objects.filter(pk=first.pk).update(verbose_name="moved behind the others")
    errors: list[Exception] = []

    def work() -> None:
        try:
            change(proxy)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    another = threading.Thread(target=work)
    with transaction.atomic():
        Task.objects.filter(pk=first.pk).update(priority=1)
        another.start()
        wait_until(waits_for_a_lock)
        for each in others:
            Task.objects.filter(pk=each.pk).update(priority=1)
    another.join(60)
    assert errors == []

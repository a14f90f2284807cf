"""What the tests let the project do, with either package; every answer is JSON."""

from collections import namedtuple
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import Permission
from django.db import IntegrityError, connection, transaction

from background_task.models import CompletedTask, Task
from background_task.tasks import TaskSchedule, tasks
from legacy_project.models import Batch, Customer, Note, Report, Watch
from legacy_project.tasks import failing, note, unhurried

Point = namedtuple("Point", "x y")
CALLS = [
    ((), {}),
    (("ñandú 🎉", 'a"b\\c', "\x00\ud800\u2028</p>"), {"clave": "ñ", "Ä": ""}),
    (({"b": {"a": [1, 2.5, None, True]}, "a": 1},), {"z": {}, "a": []}),
    ((1e300, 0.1, -0.0, 1e16, float("inf"), float("nan"), 10**30, -1), {}),
    (((1, 2), [3, [4]], Point(1.0, False)), {"t": ()}),
    (({2: "two", 1: "one"}, {None: 0}, {True: 1}), {}),
    (("x" * 100_000,), {}),
]


def now():
    return datetime.now(UTC)


def enqueue(*texts):
    """Call the task once for each text; return the keys."""
    return [note(text).pk for text in texts]


def enqueue_many(count):
    with transaction.atomic():
        for number in range(count):
            unhurried(number)


def run_one():
    return tasks.run_next_task()


def fill_little():
    """Leave rows in both tables, and rows of the project that refer to them in every way."""
    for number in range(3):
        note(number)
    waiting = note("watched", schedule=3600)
    Watch.objects.create(task=waiting)
    Batch.objects.create().tasks.add(waiting)
    assert tasks.run_next_task()
    done = CompletedTask.objects.get()
    Watch.objects.create(done=done)
    Report.objects.create(done=done)
    Note.objects.all().delete()


def references():
    """Follow the project's references to what they refer to."""
    watched, done = Watch.objects.order_by("id")
    (member,) = Batch.objects.get().tasks.all()
    return [
        watched.task.task_params,
        member.task_params,
        done.done.task_params,
        Report.objects.get().done.task_params,
        CompletedTask.objects.get(report__isnull=False).watch_set.get().pk == done.pk,
    ]


def references_are_enforced():
    """Try to refer to rows that are not there; then delete what is referred to."""
    refused = []
    for model, fields in [
        (Watch, {"task_id": 10**12}),
        (Watch, {"done_id": 10**12}),
        (Report, {"done_id": 10**12}),
        (Batch.tasks.through, {"batch_id": Batch.objects.get().pk, "task_id": 10**12}),
    ]:
        try:
            with transaction.atomic():
                model.objects.create(**fields)
                connection.check_constraints()
            refused.append(False)
        except IntegrityError:
            refused.append(True)
    Task.objects.get(task_params__contains="watched").delete()
    CompletedTask.objects.all().delete()
    left = [Watch.objects.count(), Report.objects.count(), Batch.tasks.through.objects.count()]
    return refused, left


def refer_to(task):
    return Watch.objects.create(task_id=task).task.task_params


def store_calls():
    """Store every call; return the bytes."""
    Task.objects.all().delete()
    for args, kwargs in CALLS:
        note(*args, **kwargs)
    Task.objects.new_task("legacy_project.tasks.note", (1), {}).save()
    return list(Task.objects.order_by("id").values_list("task_params", "task_hash"))


def find_calls():
    """Call each again, unless it waits already; return how many rows there are before and after."""
    before = Task.objects.count()
    again = {"action": TaskSchedule.CHECK_EXISTING}
    assert not any(note(*args, schedule=again, **kwargs) for args, kwargs in CALLS)
    found = sum(
        Task.objects.get_task("legacy_project.tasks.note", args, kwargs).count()
        for args, kwargs in [*CALLS, ((1), {})]
    )
    return before, found, Task.objects.count()


def change(text, **values):
    """Make the one row with this text what no call can make it."""
    assert Task.objects.filter(task_params__contains=f'"{text}"').update(**values) == 1


def fill():
    """Leave every kind of row; return the keys of those that are due, and of the others.

    History comes first, so that what runs here is not one of the others.
    """
    at = now()
    ana = Customer.objects.create(name="Ana")
    full = {
        "verbose_name": "Nombre: ñ",
        "priority": -7,
        "queue": "mail",
        "creator": ana,
        "repeat": 7,
        "repeat_until": at + timedelta(days=30, microseconds=123456),
    }
    note("succeeded", **{**full, "repeat": 0})
    failing(queue="mail", creator=ana, priority=-100)
    Task.objects.filter(task_name__contains="failing").update(attempts=24)
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert not Task.objects.exists()
    Note.objects.all().delete()

    note("future", schedule=3600)
    note("future in full", schedule=at + timedelta(hours=2, microseconds=1), **full)
    note("retrying")
    change("retrying", attempts=3, last_error="Traceback: ñ", run_at=at + timedelta(hours=1))
    note("locked")
    change("locked", locked_by="999999", locked_at=at)
    note("failed long ago")
    change("failed long ago", failed_at=at)
    Task.objects.new_task("code.that.is.gone", ["unknown"]).save()
    rest = set(Task.objects.values_list("pk", flat=True))

    for args, kwargs in CALLS:
        note(*args, **kwargs)
    note("no queue", priority=-7, verbose_name="A name", schedule=at - timedelta(days=1))
    note("in a queue", queue="mail")
    note("owned", creator=ana)
    note("retried", schedule=at - timedelta(seconds=1))
    change("retried", attempts=3, last_error="Traceback: ñ")
    note("lock expired")
    change("lock expired", locked_by="999999", locked_at=at - timedelta(hours=2))
    due = set(Task.objects.values_list("pk", flat=True)) - rest

    past = at - timedelta(hours=5, minutes=10)
    repeating = note("repeating", schedule=past, **{**full, "repeat": 3600})
    # Stores a number where the arguments should be; no call fits it.
    odd = Task.objects.new_task("legacy_project.tasks.note", (1), {})
    odd.save()
    assert ana.tasks.count() == 3
    return {
        "rest": sorted(rest),
        "due": sorted(due),
        "repeating": repeating.pk,
        "odd": odd.pk,
    }


def owned():
    """Find what a customer asked for, by every way there is."""
    ana = Customer.objects.get()
    return [
        ana.tasks.count(),
        Task.objects.created_by(ana).count(),
        CompletedTask.objects.created_by(ana).count(),
        {row.creator.name for row in Task.objects.created_by(ana)} == {"Ana"},
    ]


def permissions():
    """What administrators have granted or could grant."""
    found = Permission.objects.filter(content_type__app_label="background_task")
    return sorted(found.values_list("pk", "codename", "content_type__model"))


def fill_for_the_way_back():
    """Leave what ours stores: due, failed once, owned, and a chain."""
    failing(schedule=now() - timedelta(days=1), priority=5)
    assert tasks.run_next_task()
    Task.objects.update(run_at=now())
    note("ours", 1)
    note("chain", repeat=3600, schedule=now() - timedelta(minutes=90), queue="mail")
    note("later", schedule=3600, creator=Customer.objects.create(name="Ana"))


def make_due(name):
    return Task.objects.filter(task_name__contains=name).update(run_at=now())


def enqueue_in_full(count):
    """Call with every option there is."""
    ana, _ = Customer.objects.get_or_create(name="Ana")
    return [
        note(
            "deploy",
            number,
            key="ñ",
            schedule=now() - timedelta(minutes=1),
            priority=-3,
            queue="mail",
            verbose_name="A name",
            creator=ana,
            repeat=86400,
            repeat_until=now() + timedelta(days=9),
        ).pk
        for number in range(count)
    ]


def public_ids():
    """Tell of which history rows the tasks have a public id; only ours know that column."""
    return [row.result_id is not None for row in CompletedTask.objects.order_by("id")]

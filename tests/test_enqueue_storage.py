"""Storing rows by statements of our own comes to the same as storing them by the ORM."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.signals import post_save, pre_save
from django.utils import timezone

from background_task.models import Task
from background_task.storage import enqueue

pytestmark = pytest.mark.django_db(transaction=True)


def new(number: int, **options: Any) -> Task:
    return Task.objects.new_task("stored", [number], {"ñ": "💥"}, **options)


def columns_of(row: Task) -> dict[str, Any]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}


# One, a few, and as many as PostgreSQL gets by COPY.
COUNTS = [1, 3, 250]


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_stored_is_what_the_rows_say(count: int) -> None:
    creator = User.objects.create(username="creator")
    rows = [
        new(
            number,
            run_at=timezone.now() + timedelta(hours=number % 2),
            priority=-number,
            queue="mail" if number % 3 else None,
            verbose_name="a\tname\\N\n" if number % 2 else None,
            creator=creator if number % 2 else None,
            repeat=60 * number,
        )
        for number in range(count)
    ]
    enqueue.insert("default", rows)
    stored = {row.pk: row for row in Task.objects.all()}
    assert [row.pk for row in rows] == sorted(stored)
    for row in rows:
        assert columns_of(stored[row.pk]) == columns_of(row)
        assert (row._state.adding, row._state.db) == (False, "default")


@pytest.mark.parametrize("count", COUNTS)
def test_a_row_may_be_saved_after_it_was_stored(count: int) -> None:
    rows = [new(number) for number in range(count)]
    enqueue.insert("default", rows)
    Task.objects.create(**{**columns_of(new(-1)), "id": None})
    rows[0].verbose_name = "edited"
    rows[0].save()
    assert Task.objects.count() == count + 1
    assert Task.objects.get(pk=rows[0].pk).verbose_name == "edited"


@pytest.mark.parametrize("count", COUNTS)
def test_all_of_them_are_stored_or_none(count: int) -> None:
    with transaction.atomic():
        enqueue.insert("default", [new(number) for number in range(count)])
        transaction.set_rollback(True)
    assert not Task.objects.exists()
    rows = [new(number) for number in range(count)]
    rows[-1].priority = 2**80
    with pytest.raises(Exception, match=r".+"):
        enqueue.insert("default", rows)
    assert not Task.objects.exists()


@pytest.mark.parametrize("count", COUNTS)
def test_receivers_of_the_model_see_each_row(count: int) -> None:
    seen: list[str] = []

    def before(instance: Task, **kwargs: Any) -> None:
        instance.verbose_name = "changed by a receiver"

    def after(instance: Task, created: bool, **kwargs: Any) -> None:
        seen.append(f"{instance.pk} {created}")

    pre_save.connect(before, sender=Task)
    post_save.connect(after, sender=Task)
    try:
        rows = [new(number) for number in range(count)]
        enqueue.insert("default", rows)
    finally:
        pre_save.disconnect(before, sender=Task)
        post_save.disconnect(after, sender=Task)
    assert seen == [f"{row.pk} True" for row in rows]
    assert set(Task.objects.values_list("verbose_name", flat=True)) == {"changed by a receiver"}


def test_a_save_that_a_project_has_replaced_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Task] = []
    ours = Task.save

    def save(self: Task, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        ours(self, *args, **kwargs)

    monkeypatch.setattr(Task, "save", save)
    rows = [new(1), new(2)]
    enqueue.insert("default", rows)
    assert saved == rows

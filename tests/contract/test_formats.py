"""The columns of both tables, and the bytes in them."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models

from background_task.models import CompletedTask, Task

REQUIRED = models.NOT_PROVIDED

# name: type, length, may be NULL, may be left empty in a form, default
COLUMNS: dict[str, tuple[type[models.Field[Any, Any]], int | None, bool, bool, Any]] = {
    "id": (models.BigAutoField, None, False, True, REQUIRED),
    "task_name": (models.CharField, 190, False, False, REQUIRED),
    "task_params": (models.TextField, None, False, False, REQUIRED),
    "task_hash": (models.CharField, 40, False, False, REQUIRED),
    "verbose_name": (models.CharField, 255, True, True, REQUIRED),
    "priority": (models.IntegerField, None, False, False, 0),
    "run_at": (models.DateTimeField, None, False, False, REQUIRED),
    "repeat": (models.BigIntegerField, None, False, False, 0),
    "repeat_until": (models.DateTimeField, None, True, True, REQUIRED),
    "queue": (models.CharField, 190, True, True, REQUIRED),
    "attempts": (models.IntegerField, None, False, False, 0),
    "failed_at": (models.DateTimeField, None, True, True, REQUIRED),
    "last_error": (models.TextField, None, False, True, REQUIRED),
    "locked_by": (models.CharField, 64, True, True, REQUIRED),
    "locked_at": (models.DateTimeField, None, True, True, REQUIRED),
    "creator_content_type": (models.ForeignKey, None, True, True, REQUIRED),
    "creator_object_id": (models.PositiveIntegerField, None, True, True, REQUIRED),
}
BOTH = pytest.mark.parametrize("model", [Task, CompletedTask], ids=["waiting", "history"])


@BOTH
@pytest.mark.parametrize("name", COLUMNS)
def test_the_column_is_what_it_was(model: type[models.Model], name: str) -> None:
    field: Any = model._meta.get_field(name)
    assert (type(field), field.max_length, field.null, field.blank, field.default) == COLUMNS[name]
    assert not field.unique or name == "id"
    assert field.column == (f"{name}_id" if field.is_relation else name)


@BOTH
def test_columns_of_ours_may_be_null_so_that_old_code_can_store_rows(
    model: type[models.Model],
) -> None:
    for field in model._meta.concrete_fields:
        assert field.name in COLUMNS or field.null, field.name


@BOTH
def test_the_old_columns_alone_make_a_row(db: None, model: Any) -> None:
    row = model(task_name="a", task_params="[[], {}]", task_hash="b", run_at="2099-01-01T00:00Z")
    model.objects.bulk_create([row])
    assert model.objects.get().last_error == ""


def test_the_tables_and_labels_are_what_they_were() -> None:
    assert (Task._meta.label_lower, Task._meta.db_table) == (
        "background_task.task",
        "background_task",
    )
    assert (CompletedTask._meta.label_lower, CompletedTask._meta.db_table) == (
        "background_task.completedtask",
        "background_task_completedtask",
    )


@BOTH
def test_the_tables_have_no_order_of_their_own(model: type[models.Model]) -> None:
    assert not model._meta.ordering
    assert not model._meta.unique_together


def test_the_choices_of_the_period_are_what_they_were() -> None:
    for model in (Task, CompletedTask):
        assert dict(model._meta.get_field("repeat").choices) == {
            3600: "hourly",
            86400: "daily",
            604800: "weekly",
            1209600: "every 2 weeks",
            2419200: "every 4 weeks",
            0: "never",
        }
    assert [number for number, _ in Task.REPEAT_CHOICES] == [
        Task.HOURLY,
        Task.DAILY,
        Task.WEEKLY,
        Task.EVERY_2_WEEKS,
        Task.EVERY_4_WEEKS,
        Task.NEVER,
    ]


@pytest.mark.parametrize(
    ("model", "reverse"),
    [(Task, "background_task"), (CompletedTask, "completed_background_task")],
)
def test_the_creator_is_a_generic_key_with_its_reverse_names(
    model: type[models.Model], reverse: str
) -> None:
    creator = model._meta.get_field("creator")
    content_type: Any = model._meta.get_field("creator_content_type")
    assert isinstance(creator, GenericForeignKey)
    assert content_type.related_model is ContentType
    assert content_type.remote_field.on_delete is models.CASCADE
    assert content_type.remote_field.related_name == reverse


class Level(enum.IntEnum):
    HIGH = 3


# What 1.2.8 stores: name, args, kwargs → task_params, task_hash.
STORED = [
    ("a.b", (), {}, "[[], {}]", "4a126a8e49c065ad8b0bd72da80f5710adb00c40"),
    ("a.b", None, None, "[[], {}]", "4a126a8e49c065ad8b0bd72da80f5710adb00c40"),
    (
        "a.b",
        ("a", 1),
        {"k": True},
        '[["a", 1], {"k": true}]',
        "2fb27a007ac15978906bb969f44fe73e3e58e61a",
    ),
    (
        "a.b",
        [("a", (1, 2))],
        {},
        '[[["a", [1, 2]]], {}]',
        "ba957e47299366f7a484f0465345e1507f5396ec",
    ),
    (
        "a.b",
        ("ñandú €",),
        {"niño": "😀"},
        '[["\\u00f1and\\u00fa \\u20ac"], {"ni\\u00f1o": "\\ud83d\\ude00"}]',
        "3635a92e31af6df72cc5276a78470d2ec0358736",
    ),
    ("tareas.añadir", (), {}, "[[], {}]", "6484f45a5b143773addc4f04bff1de50ffd1094f"),
    (
        "a.b",
        (),
        {"z": {"b": 1, "a": [{"d": None, "c": False}]}, "a": {}},
        '[[], {"a": {}, "z": {"a": [{"c": false, "d": null}], "b": 1}}]',
        "f2d5ed9bba681d64c97b10b6bb64959a29372474",
    ),
    (
        "a.b",
        (0.1, 1.0, -0.0, 1e100, 1e-7, 10**30),
        {},
        "[[0.1, 1.0, -0.0, 1e+100, 1e-07, 1000000000000000000000000000000], {}]",
        "ea005264ae2e19b0472c456a63c062f6ea7dc86a",
    ),
    (
        "a.b",
        (float("nan"), float("inf"), -float("inf")),
        {},
        "[[NaN, Infinity, -Infinity], {}]",
        "3fab5a93dedaf3283c51b63d0ad8823b9c8bb9b7",
    ),
    (
        "a.b",
        ({22222: 2, 11111: 1, 9: 0},),
        {},
        '[[{"9": 0, "11111": 1, "22222": 2}], {}]',
        "f71d362459d1ca842655ef4cbbbbd92b8bacffc8",
    ),
    (
        "a.b",
        ({None: 1}, {True: 2}, {1.5: 3}),
        {},
        '[[{"null": 1}, {"true": 2}, {"1.5": 3}], {}]',
        "437132a188b1f3c346ce0b8d50d2d5c9cf8b27f1",
    ),
    (
        "a.b",
        ('"quoted" back\\slash /slash\n\t\x00\x7f\u2028',),
        {},
        '[["\\"quoted\\" back\\\\slash /slash\\n\\t\\u0000\\u007f\\u2028"], {}]',
        "3b5ae9dd25499281a50187c3b526f01de194edc3",
    ),
    (
        "a.b",
        (Level.HIGH, True, None, ""),
        {},
        '[[3, true, null, ""], {}]',
        "33b99749ddb7ba6732787393fd4f9985fe4f0e6d",
    ),
    ("a.b", 1, {}, "[1, {}]", "816467fb3d5aedffaab44129afb36e30ee5dbc06"),
    ("a.b", "text", {}, '["text", {}]', "6920eb84da140853c1c36db9177693c57e24a427"),
    ("a.b", {"a": 1}, {}, '[{"a": 1}, {}]', "2636dc5e7b6e3314cfebc7d7e73924eb748ba410"),
    ("a.b", [], {"": 0}, '[[], {"": 0}]', "63471bfd7d4621f31ada97af1f6fda0227b97c16"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "params", "digest"), STORED)
def test_the_bytes_of_arguments_and_hash_are_what_they_were(
    db: None, name: str, args: Any, kwargs: Any, params: str, digest: str
) -> None:
    Task.objects.new_task(name, args, kwargs).save()
    row = Task.objects.get()
    assert (row.task_params, row.task_hash) == (params, digest)
    assert Task.objects.get_task(name, args, kwargs).get() == row

"""Tasks declared by Django's decorator, outside any ``tasks.py``."""

import asyncio

from background_task import current_task
from background_task._compat import django_tasks
from project.models import Note
from project.tasks import note

task = django_tasks.task


@task
def add(a, b=0):
    return a + b


@task(priority=7, queue_name="other")
def urgent(text):
    Note.objects.create(text=text)


@task
def enqueues_note(text):
    note(text)


@task
async def add_async(a, b):
    await asyncio.sleep(0)
    await Note.objects.acreate(text=f"{a} + {b}")
    return a + b


@task
def raises(text):
    raise LookupError(text)


@task
def leaves():
    raise SystemExit(3)


@task
def returns(value):
    return RETURNED[value]


RETURNED = {
    "set": {1},
    "object": object(),
    "tuple": (1, 2),
    "bytes": b"abc",
    "nested": {"a": [1, (2, None)]},
    "none": None,
    "twins": {"1": "a", 1: "b"},
}


@task(takes_context=True)
def with_context(context, text):
    return [context.task_result.id, context.attempt, text, current_task().task_result.id]


@task(takes_context=True)
async def with_context_async(context, text):
    inside = await asyncio.create_task(whose())
    return [context.task_result.id, context.attempt, text, inside]


async def whose():
    return current_task().task_result.id


@task
def whose_am_i():
    return [current_task().task_result.id, str(current_task().task_result.status)]


@task
def writes_and_raises(text):
    Note.objects.create(text=text)
    raise LookupError(text)

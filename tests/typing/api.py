"""What a project that checks its types strictly sees; ``scripts/check`` runs mypy over it.

A line that is to be an error carries the ``type: ignore`` for it: where it is none, mypy complains
of an ignore that is not needed.
"""

from datetime import timedelta
from typing import assert_type

from django.tasks import Task as DjangoTask
from django.tasks import TaskResult
from django.tasks import task as django_task

from background_task import background, task
from background_task.api.proxy import TaskProxy
from background_task.models import Task
from background_task.testing import run_due_tasks


@background
def bare(number: int) -> str:
    return str(number)


@background(schedule=60, max_attempts=3)
def with_options(number: int) -> str:
    return str(number)


@django_task
def djangos(number: int) -> str:
    return str(number)


@task(max_attempts=3, backoff=[1, 2])
def ours(number: int) -> str:
    return str(number)


@task(takes_context=True, max_attempts=3)
def with_context(context: object, number: int) -> str:
    return str(number)


# Options of a declaration are checked by name and by type.
background(max_attempt=3)  # type: ignore[call-overload]
background(max_attempts="3")  # type: ignore[call-overload]
task(retry_on=[int])  # type: ignore[list-item]
task(on_worker_loss="never")  # type: ignore[call-overload]
background(backoff=lambda error, result: None, timeout=timedelta(minutes=1), give_up_on=(KeyError,))
task(backoff=[1, timedelta(1)], retry_on=OSError, on_commit=True)

# The proxy keeps the types of the function; a call of it may carry options beside them.
assert_type(bare.now(1), str)
assert_type(bare(1, schedule=60), Task | None)
bare.now("one")  # type: ignore[arg-type]

# Both doors check the arguments of enqueue, and the return type flows into the result.
assert_type(bare.enqueue(1).return_value, str)
assert_type(with_options.enqueue(1).return_value, str)
assert_type(djangos.enqueue(1).return_value, str)
assert_type(ours.enqueue(number=1).return_value, str)
assert_type(with_context.enqueue(1).return_value, str)
assert_type(bare.get_result("id").return_value, str)
assert_type(bare.using(priority=5).enqueue(1).return_value, str)
bare.enqueue("one")  # type: ignore[arg-type]
with_options.enqueue()  # type: ignore[call-arg]
djangos.enqueue("one")  # type: ignore[arg-type]
ours.enqueue("one")  # type: ignore[arg-type]
ours.enqueue(1, 2)  # type: ignore[call-arg]
with_context.enqueue("one")  # type: ignore[arg-type]


assert_type(bare.enqueue(1).wait(5), str)
assert_type(ours.enqueue(1).wait(), str)
assert_type(bare.enqueue_many([(1,)])[0].return_value, str)
assert_type(ours.enqueue_many([{"number": 1}])[0].return_value, str)
assert_type(ours.using(priority=5).enqueue(1).wait(), str)
bare.using(prio=5)  # type: ignore[call-arg]
ours.using(prio=5)  # type: ignore[call-arg]


@task
async def coroutine(number: int) -> str:
    return str(number)


@task(max_attempts=2, takes_context=True)
async def coroutine_with_context(context: object, number: int) -> str:
    return str(number)


@background
async def background_coroutine(number: int) -> str:
    return str(number)


assert_type(coroutine.enqueue(1).return_value, str)
assert_type(coroutine_with_context.enqueue(1).wait(), str)
assert_type(background_coroutine.enqueue(1).wait(), str)
coroutine.enqueue("one")  # type: ignore[arg-type]


async def inside() -> None:
    assert_type(await (await coroutine.aenqueue(1)).await_(5), str)
    assert_type((await bare.aenqueue(1)).return_value, str)
    await ours.aenqueue("one")  # type: ignore[arg-type]


def passed_on(
    proxy: TaskProxy[[int], str], other: DjangoTask[[int], str]
) -> TaskResult[[int], str]:
    proxy.enqueue("one")  # type: ignore[arg-type]
    return other.enqueue(1)


passed_on(bare, ours)
assert_type([each.name for each in run_due_tasks()], list[str])

"""``background(...)`` in all its forms, and the proxy that it makes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from background_task import background
from background_task.models import CompletedTask, Task
from background_task.tasks import TaskProxy, TaskSchedule, tasks

pytestmark = pytest.mark.django_db


def a_function(value: int = 1) -> int:
    """Documented."""
    return value


@pytest.mark.parametrize("decorator", [background, tasks.background], ids=["package", "registry"])
@pytest.mark.parametrize(
    "form",
    [
        lambda decorator: decorator(a_function),
        lambda decorator: decorator()(a_function),
        lambda decorator: decorator("contract.test_decorator.a_function")(a_function),
        lambda decorator: decorator(name="contract.test_decorator.a_function")(a_function),
        lambda decorator: decorator(schedule=60)(a_function),
        lambda decorator: decorator(None, 60, "a queue", True)(a_function),
    ],
    ids=["bare", "called", "named", "by keyword", "with options", "by position"],
)
def test_every_form_registers_a_proxy_of_the_function(decorator: Any, form: Any) -> None:
    proxy = form(decorator)
    assert isinstance(proxy, TaskProxy)
    assert proxy.task_function is a_function
    assert tasks._tasks["contract.test_decorator.a_function"] is proxy


def test_the_options_of_the_decorator_are_attributes_of_the_proxy() -> None:
    proxy = background("named", 60, "a queue", True)(a_function)
    assert proxy.name == "named"
    assert proxy.schedule == TaskSchedule(run_at=60)
    assert proxy.queue == "a queue"
    assert proxy.remove_existing_tasks is True
    assert proxy.runner is tasks._runner
    assert str(proxy) == "TaskProxy(named)"


def test_without_options_the_proxy_has_the_defaults() -> None:
    proxy = background(a_function)
    assert isinstance(proxy.schedule, TaskSchedule)
    assert proxy.schedule == TaskSchedule()
    assert proxy.queue is None
    assert proxy.remove_existing_tasks is False


def test_now_is_the_function_itself_and_stores_nothing() -> None:
    proxy = background(a_function)
    assert proxy.now is a_function
    assert proxy.now(value=5) == 5
    assert not Task.objects.exists()


def test_the_default_name_has_no_trace_of_where_a_function_is_nested() -> None:
    def nested() -> None: ...

    assert "<locals>" in nested.__qualname__
    assert background(nested).name == "contract.test_decorator.nested"


def test_the_last_registration_of_a_name_wins() -> None:
    first = background("same")(a_function)
    second = background("same")(lambda: None)
    assert tasks._tasks["same"] is second
    assert first.task_function is a_function


def test_closures_and_functions_of_a_class_can_be_tasks() -> None:
    seen = []

    class Holder:
        @background
        def of_a_class(value: int) -> None:  # noqa: N805
            seen.append(value)

    @background
    def closure(value: int) -> None:
        seen.append(value)

    closure(1)
    Holder.of_a_class(2)
    assert tasks.run_next_task()
    assert tasks.run_next_task()
    assert seen == [1, 2]


def test_the_proxy_takes_what_the_function_says_of_itself() -> None:
    proxy: Any = background("named")(a_function)
    assert (proxy.__name__, proxy.__doc__) == ("a_function", "Documented.")


def test_a_task_can_be_run_by_its_name_without_a_row() -> None:
    calls = []
    background("by.name")(lambda *args, **kwargs: calls.append((args, kwargs)))
    tasks.run_task("by.name", ["one"], {"two": 2})
    assert calls == [(("one",), {"two": 2})]
    assert not CompletedTask.objects.exists()


def test_a_run_by_name_counts_as_the_run_of_the_row_with_these_arguments() -> None:
    proxy = background("by.name")(lambda *args, **kwargs: None)
    proxy("one")
    other = proxy("another")
    tasks.run_task("by.name", ["one"], {})
    assert Task.objects.get() == other
    assert CompletedTask.objects.get().task_params == '[["one"], {}]'


def test_a_run_by_name_takes_no_row_of_another_queue_than_the_proxys() -> None:
    proxy = background("by.name", queue="mine")(lambda: None)
    proxy(queue="other")
    tasks.run_task("by.name", [], {})
    assert Task.objects.count() == 1
    proxy()
    tasks.run_task("by.name", [], {})
    assert Task.objects.get().queue == "other"


def test_a_row_can_be_run_and_other_arguments_are_ignored() -> None:
    calls = []
    proxy = background("by.row")(lambda *args: calls.append(args))
    tasks.run_task(proxy("of the row"), ["ignored"], {})
    assert calls == [("of the row",)]
    assert CompletedTask.objects.count() == 1


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        tasks.run_task("of.nobody", [], {})


def test_run_next_task_tells_whether_it_took_a_task_even_one_that_failed() -> None:
    @background
    def broken() -> None:
        raise ValueError

    assert tasks.run_next_task() is False
    broken()
    assert tasks.run_next_task() is True
    assert tasks.run_next_task() is False


def test_a_schedule_of_a_timedelta_is_kept_as_given() -> None:
    assert background(schedule=timedelta(hours=1))(a_function).schedule == TaskSchedule(
        run_at=timedelta(hours=1)
    )

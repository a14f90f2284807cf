"""The inner names that projects replace, and what projects hang on the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import models
from django.db.models.signals import post_save
from django.test.utils import isolate_apps
from django.utils import timezone
from project.models import Follower

from background_task import background, signals
from background_task.models import CompletedTask, Task
from background_task.tasks import DBTaskRunner, PoolRunner, TaskProxy, tasks

pytestmark = pytest.mark.django_db


class OwnRunner(DBTaskRunner):
    """Overrides every step, as projects do to filter or to open a span around a run."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []

    def run_next_task(self, tasks: Any, queue: str | None = None) -> bool:
        self.steps.append(("run_next_task", queue))
        return super().run_next_task(tasks, queue)

    def get_task_to_run(self, tasks: Any, queue: str | None = None) -> Task | None:
        task = super().get_task_to_run(tasks, queue)
        self.steps.append(("get_task_to_run", queue, task and task.task_name))
        return task

    def run_task(self, tasks: Any, task: Task) -> None:
        self.steps.append(("run_task", task.task_name, task.locked_by))
        super().run_task(tasks, task)


@pytest.fixture
def runner() -> OwnRunner:
    """Put in an own runner; the suite's own fixture takes it out again."""
    tasks._runner = OwnRunner()
    return tasks._runner


def test_run_next_task_goes_through_every_step_of_the_assigned_runner(runner: OwnRunner) -> None:
    background("hooked")(lambda: None)(queue="a queue")
    assert tasks.run_next_task("a queue")
    assert runner.steps == [
        ("run_next_task", "a queue"),
        ("get_task_to_run", "a queue", "hooked"),
        ("run_task", "hooked", runner.worker_name),
    ]
    assert CompletedTask.objects.count() == 1


def test_without_a_task_the_assigned_runner_is_asked_all_the_same(runner: OwnRunner) -> None:
    assert tasks.run_next_task() is False
    assert runner.steps == [("run_next_task", None), ("get_task_to_run", None, None)]


@pytest.mark.django_db(transaction=True)
def test_the_worker_goes_through_every_step_of_the_assigned_runner(runner: OwnRunner) -> None:
    background("hooked")(lambda: None)(queue="a queue")
    call_command("process_tasks", duration=1, sleep=0.1, queue="a queue")
    assert runner.steps[:3] == [
        ("run_next_task", "a queue"),
        ("get_task_to_run", "a queue", "hooked"),
        ("run_task", "hooked", runner.worker_name),
    ]
    assert CompletedTask.objects.count() == 1


def test_a_runner_may_choose_the_task_itself() -> None:
    class Last(DBTaskRunner):
        def get_task_to_run(self, tasks: Any, queue: str | None = None) -> Task | None:
            available = Task.objects.find_available(queue).filter(task_name__in=tasks._tasks)
            found = available.order_by("-id").first()
            return found.lock(self.worker_name) if found else None

    ran: list[int] = []
    proxy = background("chosen")(ran.append)
    for number in range(3):
        proxy(number)
    tasks._runner = Last()
    while tasks.run_next_task():
        pass
    assert ran == [2, 1, 0]


def test_the_name_of_the_runner_is_what_locks(runner: OwnRunner) -> None:
    runner.worker_name = "a name of its own"
    background("hooked")(lambda: None)()
    tasks.run_next_task()
    assert CompletedTask.objects.get().locked_by == "a name of its own"


def test_a_proxy_keeps_the_runner_it_was_made_with(sent: list[Any]) -> None:
    first = tasks._runner
    proxy = background("early")(lambda: None)
    tasks._runner = OwnRunner()
    later = background("late")(lambda: None)
    assert (proxy.runner, later.runner) == (first, tasks._runner)
    proxy(), later()
    assert [sender for _, sender, _ in sent] == [DBTaskRunner, OwnRunner]


def test_another_function_may_run_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(tasks, "_bg_runner", lambda *args, **kwargs: calls.append((args, kwargs)))
    proxy = background("replaced")(lambda *args, **kwargs: None)
    row = proxy(1)
    tasks.run_next_task()
    tasks.run_task("replaced", ["one"], {"two": 2})
    assert calls == [((proxy, row), {}), ((proxy, None, "one"), {"two": 2})]


def test_another_pool_may_run_the_tasks(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    calls: list[Any] = []

    class OwnPool(PoolRunner):
        def run(self, proxy_task: Any, task: Any = None, *args: Any, **kwargs: Any) -> None:
            calls.append((proxy_task, task, args, kwargs))

        __call__ = run

    monkeypatch.setattr(tasks, "_pool_runner", OwnPool(tasks._bg_runner, 2))
    proxy = background("replaced")(lambda *args, **kwargs: None)
    row = proxy(1)
    tasks.run_next_task()
    assert calls == [], "threads are not asked for"
    row = proxy(2)
    settings.BACKGROUND_TASK_RUN_ASYNC = True
    assert tasks.run_next_task() is True
    tasks.run_task("replaced", ["one"], {"two": 2})
    assert calls == [(proxy, row, (), {}), (proxy, None, ("one",), {"two": 2})]


def test_another_class_of_proxies_may_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnProxy(TaskProxy):
        def __init__(
            self,
            name: str,
            task_function: Any,
            schedule: Any,
            queue: Any,
            remove_existing_tasks: bool,
            runner: Any,
        ) -> None:
            super().__init__(name, task_function, schedule, queue, remove_existing_tasks, runner)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, verbose_name="from the proxy", **kwargs)

    monkeypatch.setattr(tasks, "_task_proxy_class", OwnProxy)
    proxy = background("own.proxy", queue="a queue")(lambda: None)
    assert type(proxy) is OwnProxy
    row = proxy()
    assert (row.verbose_name, row.queue) == ("from the proxy", "a queue")
    assert tasks.run_next_task()


def test_a_task_that_is_taken_out_of_the_registry_is_left_for_those_who_know_it() -> None:
    ran: list[str] = []
    unknown, known = background("taken.out")(ran.append), background("kept")(ran.append)
    unknown("unknown", priority=1), known("known")
    del tasks._tasks["taken.out"]
    assert [tasks.run_next_task() for _ in range(2)] == [True, False]
    assert ran == ["known"]
    assert Task.objects.get().locked_by is None
    tasks._tasks["taken.out"] = unknown
    assert tasks.run_next_task() is True
    assert ran == ["known", "unknown"]


# what projects hang on the rows


def test_a_projects_row_may_refer_to_a_task_and_back() -> None:
    row = background("followed")(lambda: None)()
    follower = Follower.objects.create(task=row)
    assert Follower.objects.select_related("task").get().task.task_name == "followed"
    assert Task.objects.get(follower=follower) == row
    assert list(row.follower_set.all()) == [follower]


@isolate_apps("project")
@pytest.mark.parametrize("model", [Task, CompletedTask])
@pytest.mark.parametrize("kind", [models.ForeignKey, models.OneToOneField])
def test_a_projects_model_may_refer_to_either_table(model: type[models.Model], kind: Any) -> None:
    class Link(models.Model):
        row = kind(model, on_delete=models.CASCADE, related_name="+")

        class Meta:
            app_label = "project"

    assert Link._meta.get_field("row").target_field is model._meta.pk
    assert Link(row=model(pk=7)).row_id == 7


def test_the_history_row_can_be_linked_when_the_task_succeeds(listen: Callable[..., None]) -> None:
    row = background("linked")(lambda: None)()
    follower = Follower.objects.create(task=row)
    linked: list[Any] = []

    def link(task_id: int, completed_task: CompletedTask, **kwargs: Any) -> None:
        linked.append((Follower.objects.get(task_id=task_id).pk, completed_task.pk))

    listen(signals.task_successful, link)
    tasks.run_next_task()
    assert linked == [(follower.pk, CompletedTask.objects.get().pk)]


def test_receivers_of_post_save_see_rows_created_and_updated(listen: Callable[..., None]) -> None:
    seen: list[Any] = []

    def receive(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        seen.append((sender, created, instance.task_name))

    for model in (Task, CompletedTask):
        listen(post_save, receive, sender=model)
    row = background("watched")(lambda: None)()
    assert seen == [(Task, True, "watched")]
    row.verbose_name = "edited"
    row.save()
    assert seen[1:] == [(Task, False, "watched")]
    tasks.run_next_task()
    assert seen[-1] == (CompletedTask, True, "watched")
    done = CompletedTask.objects.get()
    done.save()
    assert seen[-1] == (CompletedTask, False, "watched")


def test_a_projects_page_may_read_the_state_of_a_row() -> None:
    row = background("shown")(lambda value: None)(41)
    assert (row.locked_by_pid_running(), row.has_error()) == (None, False)
    locked = row.lock(tasks._runner.worker_name)
    assert locked.locked_by_pid_running() is True
    assert int(locked.locked_by) > 0


def test_a_row_locked_by_a_process_that_is_gone_is_not_running() -> None:
    row = background("shown")(lambda: None)()
    Task.objects.update(locked_by="99999999", locked_at=timezone.now())
    row.refresh_from_db()
    assert row.locked_by_pid_running() is False

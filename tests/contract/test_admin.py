"""The admin of both tables, through the real pages."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.forms import CharField, ChoiceField, ModelChoiceField, ModelForm, SplitDateTimeField
from django.test import Client
from django.urls import path, reverse
from django.utils import timezone

from background_task import background
from background_task.admin import CompletedTaskAdmin, TaskAdmin, dec_priority, inc_priority
from background_task.models import CompletedTask, Task

pytestmark = pytest.mark.django_db

BOTH = pytest.mark.parametrize(
    ("model", "own"), [(Task, TaskAdmin), (CompletedTask, CompletedTaskAdmin)]
)
COLUMNS = [
    "task_name",
    "task_params",
    "run_at",
    "priority",
    "attempts",
    "has_error",
    "locked_by",
    "locked_by_pid_running",
]


def listing(model: Any) -> str:
    return reverse(f"admin:background_task_{model._meta.model_name}_changelist")


def stored(model: Any, name: str = "any", **values: Any) -> Any:
    row = Task.objects.new_task(name)
    row.save()
    found = row if model is Task else row.create_completed_task()
    model.objects.filter(pk=found.pk).update(**values)
    found.refresh_from_db()
    return found


def shown(client: Client, model: Any, **query: str) -> set[Any]:
    response = client.get(listing(model), query)
    assert response.status_code == 200
    return set(response.context["cl"].result_list)


@BOTH
def test_the_model_is_registered_with_its_class(model: Any, own: Any) -> None:
    assert type(admin.site._registry[model]) is own


@BOTH
def test_the_columns_and_the_search_are_what_they_were(model: Any, own: Any) -> None:
    assert list(own.list_display) == COLUMNS
    assert list(own.search_fields) == ["task_name", "task_params"]


@BOTH
def test_the_misspelt_filter_can_be_read_and_a_real_one_is_there(model: Any, own: Any) -> None:
    assert list(own.display_filter) == ["task_name"]
    assert own.list_filter


def test_the_actions_belong_to_the_tasks_that_wait(rf: Any, admin_user: Any) -> None:
    request = rf.get("/")
    request.user = admin_user
    assert {inc_priority, dec_priority} <= set(TaskAdmin.actions)
    assert {"inc_priority", "dec_priority"} <= set(TaskAdmin(Task, admin.site).get_actions(request))
    history = CompletedTaskAdmin(CompletedTask, admin.site).get_actions(request)
    assert not {"inc_priority", "dec_priority"} & set(history)


@pytest.mark.parametrize(("action", "change"), [("inc_priority", 1), ("dec_priority", -1)])
def test_an_action_changes_the_priority_of_the_rows_that_are_ticked(
    admin_client: Client, action: str, change: int
) -> None:
    ticked = [stored(Task, priority=number) for number in (0, 7)]
    other = stored(Task, priority=3)
    response = admin_client.post(
        listing(Task),
        {"action": action, admin.helpers.ACTION_CHECKBOX_NAME: [row.pk for row in ticked]},
    )
    assert response.status_code == 302
    for row in (*ticked, other):
        row.refresh_from_db()
    assert [row.priority for row in (*ticked, other)] == [change, 7 + change, 3]


@pytest.mark.parametrize(
    ("action", "priority"), [("inc_priority", 2**31 - 1), ("dec_priority", -(2**31))]
)
def test_an_action_leaves_a_priority_that_can_go_no_further(
    admin_client: Client, action: str, priority: int
) -> None:
    rows = [stored(Task, priority=number) for number in (priority, 3)]
    ticked = {admin.helpers.ACTION_CHECKBOX_NAME: [row.pk for row in rows]}
    page = admin_client.post(listing(Task), {"action": action, **ticked}, follow=True)
    assert "1 task " in page.content.decode()
    for row in rows:
        row.refresh_from_db()
    assert rows[0].priority == priority
    assert rows[1].priority != 3


@BOTH
def test_a_name_that_no_task_can_have_is_looked_for_in_vain(
    admin_client: Client, model: Any, own: Any
) -> None:
    stored(model)
    assert shown(admin_client, model, task_name="\x00") == set()


@BOTH
def test_the_list_shows_waiting_and_locked_rows_without_touching_a_process(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, model: Any, own: Any
) -> None:
    now = timezone.now()
    rows = {
        stored(model),
        stored(model, last_error="Traceback"),
        stored(model, locked_by=str(os.getpid()), locked_at=now),
        stored(model, locked_by="1", locked_at=now),
        stored(model, locked_by="99999999", locked_at=now - timedelta(days=1)),
        stored(model, locked_by="host:1:token", locked_at=now),
        stored(model, locked_by="1", locked_at=now, worker_id="another host:1:token"),
    }
    signals: list[Any] = []
    if Path("/proc/self").exists() or os.name == "nt":
        monkeypatch.setattr(os, "kill", lambda *args: signals.append(args))
    assert shown(admin_client, model) == rows
    assert signals == []


@BOTH
def test_the_search_finds_names_and_arguments(admin_client: Client, model: Any, own: Any) -> None:
    wanted = {stored(model, "sought.after"), stored(model, task_params='[["sought"], {}]')}
    stored(model, "other")
    assert shown(admin_client, model, q="sought") == wanted


@BOTH
def test_the_list_can_be_filtered_by_name(admin_client: Client, model: Any, own: Any) -> None:
    background("wanted")(lambda: None)
    wanted = stored(model, "wanted")
    stored(model, "other")
    assert shown(admin_client, model, task_name="wanted") == {wanted}


def form_of(client: Client, row: Any) -> tuple[str, dict[str, Any]]:
    """Open the form of a row; return its address and what a browser would send back unedited."""
    url = reverse(f"admin:background_task_{row._meta.model_name}_change", args=[row.pk])
    page = client.get(url)
    assert page.status_code == 200
    form = page.context["adminform"].form
    data: dict[str, Any] = {}
    for name, field in form.fields.items():
        value = form.get_initial_for_field(field, name)
        if isinstance(field, SplitDateTimeField):
            moment = timezone.localtime(value) if value else None
            data[f"{name}_0"] = moment.date().isoformat() if moment else ""
            data[f"{name}_1"] = moment.time().isoformat("seconds") if moment else ""
        elif isinstance(field, ChoiceField) and not isinstance(field, ModelChoiceField):
            # A browser that finds no such choice sends the first one.
            choices = [choice for choice, _ in field.choices]
            data[name] = value if value in choices else choices[0]
        else:
            data[name] = "" if value is None else value
    return url, data


@BOTH
def test_a_row_can_be_opened_and_saved(admin_client: Client, model: Any, own: Any) -> None:
    row = stored(model)
    url, data = form_of(admin_client, row)
    data |= {"priority": 5, "repeat": Task.DAILY, "verbose_name": "A title"}
    response = admin_client.post(url, data)
    assert response.status_code == 302, response.context["errors"]
    row.refresh_from_db()
    assert (row.priority, row.repeat, row.verbose_name) == (5, Task.DAILY, "A title")


@pytest.mark.parametrize("params", ["zzz", "[]", "[[], {}, 1]", "[{}, []]", "null", "[" * 9**5])
def test_arguments_that_no_task_could_be_called_with_are_refused(
    admin_client: Client, params: str
) -> None:
    row = stored(Task)
    url, data = form_of(admin_client, row)
    page = admin_client.post(url, data | {"task_params": params})
    assert page.status_code == 200
    assert "a list of the positional arguments" in page.content.decode()
    row.refresh_from_db()
    assert row.task_params == "[[], {}]"


def test_a_row_with_odd_arguments_can_be_edited_all_the_same(admin_client: Client) -> None:
    row = stored(Task, task_params="zzz")
    url, data = form_of(admin_client, row)
    assert admin_client.post(url, data | {"priority": 5}).status_code == 302
    row.refresh_from_db()
    assert (row.priority, row.task_params) == (5, "zzz")


def test_to_save_what_was_done_leaves_the_time_as_exact_as_it_was(admin_client: Client) -> None:
    row = stored(CompletedTask, run_at=timezone.now().replace(microsecond=123456))
    url, data = form_of(admin_client, row)
    assert admin_client.post(url, data | {"verbose_name": "seen"}).status_code == 302
    before = row.run_at
    row.refresh_from_db()
    assert (row.run_at, row.verbose_name) == (before, "seen")


@BOTH
def test_a_period_without_a_name_survives_an_edit_of_something_else(
    admin_client: Client, model: Any, own: Any
) -> None:
    row = stored(model, repeat=10)
    url, data = form_of(admin_client, row)
    assert admin_client.post(url, data | {"priority": 7}).status_code == 302
    row.refresh_from_db()
    assert (row.priority, row.repeat) == (7, 10)


def test_the_form_begins_with_the_name_of_the_task(admin_client: Client) -> None:
    page = admin_client.get(reverse("admin:background_task_task_add"))
    assert next(iter(page.context["adminform"].form.fields)) == "task_name"


def test_a_row_that_is_added_by_hand_gets_the_hash_of_its_arguments(admin_client: Client) -> None:
    data = {
        "task_name": "by.hand",
        "task_params": "[[1], {}]",
        "priority": 0,
        "run_at_0": "2026-11-01",
        "run_at_1": "12:00",
        "repeat": 0,
        "attempts": 0,
    }
    response = admin_client.post(reverse("admin:background_task_task_add"), data)
    assert response.status_code == 302, response.context["errors"]
    row = Task.objects.get_task("by.hand", [1]).get()
    url, data = form_of(admin_client, row)
    assert admin_client.post(url, data | {"task_params": "[[2], {}]"}).status_code == 302
    assert Task.objects.get_task("by.hand", [2]).get() == row


def test_an_own_form_may_have_fields_that_are_no_columns(
    unregistered: None, admin_client: Client, settings: Any
) -> None:
    class OwnForm(ModelForm):  # type: ignore[type-arg]
        reason = CharField(required=False)

    class OwnAdmin(TaskAdmin):
        form = OwnForm

    admin.site.register(Task, OwnAdmin)
    urls: Any = types.ModuleType("own_urls")
    urls.urlpatterns = [path("admin/", admin.site.urls)]
    settings.ROOT_URLCONF = urls
    url, data = form_of(admin_client, stored(Task))
    assert admin_client.post(url, data | {"reason": "because", "queue": "q"}).status_code == 302
    assert Task.objects.get().queue == "q"


@BOTH
def test_the_search_finds_letters_that_are_stored_as_escapes(
    admin_client: Client, model: Any, own: Any
) -> None:
    wanted = stored(model, task_params=json.dumps([["el ñandú"], {}]))
    stored(model, "other")
    assert shown(admin_client, model, q="ñandú") == {wanted}


def test_an_action_says_what_it_has_done(admin_client: Client) -> None:
    locked = stored(Task, locked_by="1", locked_at=timezone.now())
    response = admin_client.post(
        listing(Task),
        {"action": "release_lock", admin.helpers.ACTION_CHECKBOX_NAME: [locked.pk]},
        follow=True,
    )
    assert [str(each) for each in response.context["messages"]] == ["1 task released."]


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Take the package's class out of the admin, and put it back."""
    registered = dict(admin.site._registry)
    admin.site.unregister(Task)
    yield
    admin.site._registry.clear()
    admin.site._registry.update(registered)


def test_a_project_may_register_a_class_of_its_own(
    unregistered: None, admin_client: Client, settings: Any
) -> None:
    class OwnAdmin(admin.ModelAdmin):
        list_display = ["task_name", "a_column"]

        @admin.display(description="A column of its own")
        def a_column(self, row: Task) -> str:
            return f"{row.task_name}, {row.locked_by_pid_running()}"

    admin.site.register(Task, OwnAdmin)
    urls: Any = types.ModuleType("own_urls")
    urls.urlpatterns = [path("admin/", admin.site.urls)]
    settings.ROOT_URLCONF = urls
    stored(Task, "own.task")
    response = admin_client.get(listing(Task))
    assert response.status_code == 200
    assert "A column of its own" in response.content.decode()
    assert "own.task, None" in response.content.decode()

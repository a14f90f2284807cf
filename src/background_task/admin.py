"""The admin of both tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from django import forms
from django.contrib import admin, messages
from django.db.models import F, QuerySet
from django.http import HttpRequest

from background_task import discovery
from background_task.models import CompletedTask, Task, TaskQuerySet
from background_task.models.rows import REPEAT_CHOICES
from background_task.policies import arguments
from background_task.tasks import tasks

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.action(description="priority += 1", permissions=["change"])
def inc_priority(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Raise the number by one, in the database, whatever else happens to the rows."""
    _tell(modeladmin, request, "raised", _moved(queryset, 1))


@admin.action(description="priority -= 1", permissions=["change"])
def dec_priority(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Lower the number by one, in the database, whatever else happens to the rows."""
    _tell(modeladmin, request, "lowered", _moved(queryset, -1))


@admin.action(description="release the lock", permissions=["change"])
def release_lock(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Let the rows run again, as after a worker was killed; a run that still goes on is void."""
    released = cast(TaskQuerySet, queryset.filter(locked_by__isnull=False)).release()
    _tell(modeladmin, request, "released", released)


def _moved(queryset: QuerySet[Task], by: int) -> int:
    """Move priorities, but for those at the end of what the column holds; return how many."""
    first, last = arguments.INTEGER[0] - min(by, 0), arguments.INTEGER[-1] - max(by, 0)
    return queryset.filter(priority__range=(first, last)).update(priority=F("priority") + by)


def _tell(modeladmin: Any, request: HttpRequest, what: str, count: int) -> None:
    if modeladmin is not None:  # a project may call the action itself
        level = messages.SUCCESS if count else messages.WARNING
        number = f"{count} task{'' if count == 1 else 's'}"
        modeladmin.message_user(request, f"{number} {what}.", level, fail_silently=True)


class TaskNameFilter(admin.SimpleListFilter):
    """Offers the registered names. Asking the table for its names would read all of it."""

    title = "task name"
    parameter_name = "task_name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        discovery.broken_modules()
        names = set(tasks._tasks)
        if chosen := self.value():
            names.add(chosen)  # a name from an old link may be gone from the code
        return [(name, name) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = self.value()
        if not name:
            return queryset
        # PostgreSQL would refuse to compare it.
        return queryset.none() if "\x00" in name else queryset.filter(task_name=name)


class RowForm(forms.ModelForm):  # type: ignore[type-arg]
    """Offers every period that a row may have, not only the six that have a name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        period = getattr(self.instance, "repeat", None)
        field = self.fields.get("repeat")
        if isinstance(field, forms.TypedChoiceField) and period not in dict(REPEAT_CHOICES):
            field.choices = [(period, f"every {period} s"), *REPEAT_CHOICES]

    def clean_task_params(self) -> str:
        """Refuse what a task could not be called with; what is there already is not asked again."""
        text: str = self.cleaned_data["task_params"]
        if "task_params" in self.changed_data:
            try:
                args, kwargs = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                args = kwargs = None
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                raise forms.ValidationError(
                    "Give JSON: a list of the positional arguments and an object of the keyword "
                    'arguments, such as [[1, "two"], {}].'
                )
        return text

    def _get_validation_exclusions(self) -> set[str]:
        # The choices of the form have been checked; the model knows the six only.
        return {*super()._get_validation_exclusions(), "repeat"}  # type: ignore[misc]


class _RowAdmin(_ModelAdmin):
    form = RowForm
    display_filter = ["task_name"]  # the predecessor's misspelling, which projects may read
    list_filter = [TaskNameFilter, "state"]
    search_fields = ["task_name", "task_params"]
    list_display = [
        "task_name",
        "task_params",
        "run_at",
        "priority",
        "attempts",
        "has_error",
        "locked_by",
        "locked_by_pid_running",
    ]
    readonly_fields = [
        "task_hash",
        "state",
        "result_id",
        "worker_id",
        "enqueued_at",
        "started_at",
    ]
    show_full_result_count = False

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Store what was edited and nothing else: a worker may have changed the row meanwhile.

        And a form knows no fractions of a second.
        """
        edited = self._edited(obj, form)
        if not change:
            obj.save()
        elif edited:
            obj.save(update_fields=edited)

    def _edited(self, obj: Any, form: Any) -> set[str]:
        return {field.name for field in obj._meta.concrete_fields} & set(form.changed_data)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Find arguments as they are read, too: ñ is stored as \\u00f1."""
        found, duplicates = super().get_search_results(request, queryset, search_term)
        stored = json.dumps(search_term)[1:-1]
        if stored != search_term:
            found = found | queryset.filter(task_params__icontains=stored)
        return found, duplicates


@admin.register(Task)
class TaskAdmin(_RowAdmin):
    """What waits or runs."""

    actions = [inc_priority, dec_priority, release_lock]
    # A form that was opened before a worker took the row would unlock it again.
    readonly_fields = [*_RowAdmin.readonly_fields, "locked_by", "locked_at"]

    def _edited(self, obj: Task, form: Any) -> set[str]:
        """Return what was edited; rows of @background are found by a hash of two columns."""
        edited = super()._edited(obj, form)
        if edited & {"task_name", "task_params"} and obj.backend is None:
            obj.task_hash = arguments.fingerprint(obj.task_name, obj.task_params)
            edited.add("task_hash")
        return edited


@admin.register(CompletedTask)
class CompletedTaskAdmin(_RowAdmin):
    """What was done."""

"""The admin of both tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest

from background_task import discovery
from background_task.models import CompletedTask, Task
from background_task.storage import leases
from background_task.tasks import tasks

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.action(description="priority += 1", permissions=["change"])
def inc_priority(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Raise the number by one, in the database, whatever else happens to the rows."""
    queryset.update(priority=F("priority") + 1)


@admin.action(description="priority -= 1", permissions=["change"])
def dec_priority(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Lower the number by one, in the database, whatever else happens to the rows."""
    queryset.update(priority=F("priority") - 1)


@admin.action(description="release the lock", permissions=["change"])
def release_lock(modeladmin: Any, request: HttpRequest, queryset: QuerySet[Task]) -> None:
    """Let the rows run again, as after a worker was killed; a run that still goes on is void."""
    leases.release(queryset.filter(locked_by__isnull=False))


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
        return queryset.filter(task_name=self.value()) if self.value() else queryset


class _RowAdmin(_ModelAdmin):
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
    readonly_fields = ["state", "result_id", "worker_id", "enqueued_at", "started_at"]
    show_full_result_count = False


@admin.register(Task)
class TaskAdmin(_RowAdmin):
    """What waits or runs."""

    actions = [inc_priority, dec_priority, release_lock]
    # A form that was opened before a worker took the row would unlock it again.
    readonly_fields = [*_RowAdmin.readonly_fields, "locked_by", "locked_at"]

    def save_model(self, request: HttpRequest, obj: Task, form: Any, change: bool) -> None:
        """Store what was edited and nothing else: a worker may have locked the row meanwhile."""
        if not change:
            obj.save()
        elif form.changed_data:
            obj.save(update_fields=form.changed_data)


@admin.register(CompletedTask)
class CompletedTaskAdmin(_RowAdmin):
    """What was done."""

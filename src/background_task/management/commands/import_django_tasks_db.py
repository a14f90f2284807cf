"""``manage.py import_django_tasks_db``: go on with what waits in the tables of django-tasks-db."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router

from background_task.api import aliases
from background_task.models import Task
from background_task.storage import imports


class Command(BaseCommand):
    """Moves waiting rows; each is in one of the two tables at any time, and keeps its id."""

    help = "Move the tasks that wait in the tables of django-tasks-db into those of this package"

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--include-running",
            action="store_true",
            help="Also move what is marked as running, once no worker of django-tasks-db runs any "
            "more: killed ones leave their tasks so for ever. They run again.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only tell how many rows there are"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Count, move, and tell."""
        if not apps.is_installed("django_tasks_db"):
            raise CommandError(
                "django_tasks_db is not in INSTALLED_APPS: leave it there until its tasks have "
                "been imported."
            )
        (config,) = [each for each in apps.get_app_configs() if each.name == "django_tasks_db"]
        model: Any = config.get_model("DBTaskResult")  # whatever the label of the app
        if router.db_for_write(model) != router.db_for_write(Task):
            raise CommandError(
                "The tables of django-tasks-db are in another database than ours, so that no "
                "transaction can span both."
            )
        here = router.db_for_write(Task)
        rows = model._base_manager.using(here)
        for alias in filter(aliases.exists, rows.values_list("backend_name", flat=True).distinct()):
            there = getattr(aliases.backend(alias), "database", here)  # a backend of ours has one
            if there != here:
                raise CommandError(
                    f'The rows of the backend "{alias}" would be stored in the database '
                    f"{here!r}, but TASKS says that this backend keeps its "
                    f"tasks in {there!r}, where no worker would find them. "
                    "Remove its DATABASE from OPTIONS until they have been imported and have run."
                )
        running = rows.filter(status="RUNNING").count()
        statuses = ["READY", "RUNNING"] if options["include_running"] else ["READY"]
        wanted = rows.filter(status__in=statuses)
        if options["dry_run"]:
            left = imports.left_behind(wanted.iterator())
            self.stdout.write(f"{wanted.count() - len(left)} task(s) to import.")
        else:
            moved, left = imports.take_over(model, statuses)
            self.stdout.write(f"{moved} task(s) imported.")
        if running and not options["include_running"]:
            self.stdout.write(
                f"{running} task(s) are marked as running and were left: let the worker finish "
                "them, or, when none runs any more, use --include-running."
            )
        if left:
            reasons = "".join(f"\n  {key}: {reason}" for key, reason in left.items())
            raise CommandError(
                f"{len(left)} task(s) cannot be imported, and stay where they are; mend or delete "
                f"them and run this again:{reasons}"
            )

"""``manage.py print_tables``: both tables of the package, as they are now."""

from django.core.management.base import BaseCommand

from background_task.models import CompletedTask, Task

COLUMNS = ["id", "task_name", "task_params", "run_at", "repeat", "attempts", "locked_by"]


class Command(BaseCommand):
    """Prints what waits or runs, and what was done."""

    def handle(self, *args, **options):
        """Print the tables."""
        for model in (Task, CompletedTask):
            rows = [[str(value) for value in row] for row in model.objects.values_list(*COLUMNS)]
            widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
            self.stdout.write(f"\n{model._meta.db_table} ({len(rows)} rows)")
            for row in [COLUMNS, *rows]:
                cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                self.stdout.write("  " + "  ".join(cells).rstrip())
        self.stdout.write("")

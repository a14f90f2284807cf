"""What the peers that run in a Django project have in common."""

from __future__ import annotations

import django

django.setup()

from django.apps import apps  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from program import Program  # noqa: E402

from peers.tasks import begin  # noqa: E402


class Project(Program):
    """Stores by the door of Django; ``app`` has the tables."""

    app = ""
    begin = begin

    def prepare(self) -> None:
        call_command("migrate", verbosity=0)

    def empty(self) -> None:
        models = apps.get_app_config(self.app).get_models()
        tables = [model._meta.db_table for model in models if model._meta.managed]
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute(f"TRUNCATE {', '.join(tables)} CASCADE")
                return
            cursor.execute("PRAGMA foreign_keys = OFF")
            for table in tables:
                cursor.execute(f"DELETE FROM {table}")

    def enqueue(self) -> None:
        self.begin.enqueue(1)

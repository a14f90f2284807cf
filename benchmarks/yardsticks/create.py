"""The yardstick of an enqueue: ``create()`` of the cheapest row that Django stores."""

from __future__ import annotations

import django

django.setup()

from django.utils import timezone  # noqa: E402
from program import Program  # noqa: E402
from project.models import Plain  # noqa: E402


class Create(Program):
    """Stores rows that nobody takes."""

    def empty(self) -> None:
        Plain.objects.all().delete()

    def enqueue(self) -> None:
        Plain.objects.create(name="project.tasks.begin", params="[[1], {}]", run_at=timezone.now())


program = Create

"""Rows as a test wants them, whatever ``save()`` would make of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.utils import timezone

from background_task.models import Task

NOW = timezone.now()
PAST = NOW - timedelta(hours=1)
FUTURE = NOW + timedelta(days=1000)


def stored(name: str = "any", **values: Any) -> Task:
    """Store a row that is due, changed as ``values`` say, behind the back of ``save()``."""
    row = Task.objects.new_task(name, run_at=PAST)
    row.save()
    Task.objects.filter(pk=row.pk).update(**values)
    row.refresh_from_db()
    return row

"""Store new rows."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import router, transaction

from background_task.models import Task

# So many rows to a statement at most; Django takes fewer where the database limits parameters.
BATCH = 1000


def insert(rows: Sequence[Task]) -> None:
    """Store ``rows``, all of them or none, in the caller's transaction if there is one."""
    using = router.db_for_write(Task)
    if len(rows) == 1:
        rows[0].save(using=using, force_insert=True)
        return
    for row in rows:
        row.prepare()
    with transaction.atomic(using=using):
        Task.objects.using(using).bulk_create(rows, batch_size=BATCH)

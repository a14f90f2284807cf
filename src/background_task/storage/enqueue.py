"""Store new rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from django.db import router, transaction

from background_task.models import Task

# So many rows to a statement at most; Django takes fewer where the database limits parameters.
BATCH = 1000
LARGEST_STATEMENT = 1_000_000


def insert(rows: Sequence[Task]) -> None:
    """Store ``rows``, all of them or none, in the caller's transaction if there is one."""
    using = router.db_for_write(Task)
    if len(rows) == 1:
        rows[0].save(using=using, force_insert=True)
        return
    for row in rows:
        row.prepare()
    with transaction.atomic(using=using):
        for batch in _batches(rows):
            Task.objects.using(using).bulk_create(batch)
            if batch[0].pk is None:  # MySQL tells no keys
                _read_keys(using, batch)


def _batches(rows: Sequence[Task]) -> Iterator[list[Task]]:
    batch: list[Task] = []
    size = 0
    for row in rows:
        size += len(row.task_params)
        if batch and (len(batch) == BATCH or size > LARGEST_STATEMENT):
            yield batch
            batch, size = [], len(row.task_params)
        batch.append(row)
    if batch:
        yield batch


def _read_keys(using: str, rows: list[Task]) -> None:
    ids = [row.result_id for row in rows]
    stored = Task.objects.using(using).filter(result_id__in=ids).values_list("result_id", "pk")
    keys = dict(stored)
    for row in rows:
        row.pk = keys[row.result_id]

"""Chains of which there is to be exactly one: declared with ``every``, or asked for at import.

A chain's live row carries a key that the database allows once. So any number of processes may
ensure the same chain at the same time, and one row comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import NamedTuple

from django.db import IntegrityError, router, transaction

from background_task import vendors
from background_task.models import Task
from background_task.policies.repetition import EVERY, chain_key
from background_task.storage.transient import PATIENT, persevere

_TRIES = 5


class Ensured(NamedTuple):
    """The row of a chain that waits, None while it runs, and whether it was stored just now."""

    waiting: Task | None
    is_new: bool


def ensure(
    wanted: Task,
    *,
    declared: bool,
    remove_existing: bool,
    replace: Callable[[Task], bool],
    delays: tuple[float, ...] = PATIENT,
) -> Ensured:
    """Make sure that one row like ``wanted`` waits or runs.

    Rows with the same name and arguments that repeat, or not, as ``wanted`` does are its chain,
    whoever stored them. One that waits gets the values of ``wanted`` where ``replace(row)`` says
    so. One that runs gets the wanted period, and makes the next row itself when it ends.

    Args:
        wanted: an unsaved task.
        declared: whether it stands in a declaration, which owns every row of the chain.
        remove_existing: whether rows with the same name and arguments that wait are to go, even
            those outside the chain.
        replace: whether a row that waits is to be made like ``wanted``.
        delays: see :func:`persevere`.
    """
    using = router.db_for_write(Task, instance=wanted)
    key = chain_key(declared, wanted.task_hash)

    def once() -> Ensured:
        with transaction.atomic(using=using):
            vendors.begin_write(using, Task._meta.db_table)
            rows = Task.objects.using(using).filter(task_hash=wanted.task_hash)
            same = list(rows.select_for_update().order_by("id"))
            free = set(rows.unlocked(vendors.now(using)).values_list("pk", flat=True))
            chain = [row for row in same if bool(row.repeat) == bool(wanted.repeat)]
            chain = [row for row in chain if row.failed_at is None]
            running = [row for row in chain if row.pk not in free]
            waiting = [row for row in chain if row.pk in free]
            keep = running[-1] if running else waiting[0] if waiting else None
            owned = same if remove_existing else chain if declared else []
            surplus = [row for row in owned if row is not keep]
            rows.filter(pk__in=[row.pk for row in surplus if row.pk in free]).delete()
            if declared:  # what runs may end, but not go on
                ending = [row.pk for row in surplus if row.pk not in free]
                rows.filter(pk__in=ending).update(repeat=0, unique_key=None)
            # Only rows seen above may lose the key: one that another process stores at this moment
            # has to keep it, so that the insert below fails and the chain is looked for again.
            holders = [row.pk for row in same if row.unique_key == key and row is not keep]
            rows.filter(pk__in=holders).update(unique_key=None)
            if keep is None:
                wanted.unique_key = key
                wanted.save(using=using, force_insert=True)
                return Ensured(wanted, is_new=True)
            _adapt(keep, wanted, key, replace=not running and replace(keep), waits=not running)
            return Ensured(None if running else keep, is_new=False)

    for _ in range(_TRIES - 1):
        try:
            return persevere(using, "ensure a chain", once, delays)
        except IntegrityError:
            wanted.pk = None  # another process stored it in this moment; now it will be found
    return persevere(using, "ensure a chain", once, delays)


def _adapt(keep: Task, wanted: Task, key: str, *, replace: bool, waits: bool) -> None:
    changes: dict[str, object] = {"unique_key": key, "repeat": wanted.repeat}
    if replace:
        names = ("run_at", "priority", "queue", "verbose_name", "repeat_until", "options")
        changes |= {name: getattr(wanted, name) for name in names}
        changes |= {"attempts": 0, "last_error": ""}
    elif waits and keep.repeat != wanted.repeat and wanted.repeat > 0:
        soon = vendors.now(keep.database) + timedelta(seconds=wanted.repeat)
        changes["run_at"] = min(keep.run_at, soon)
    changes = {name: value for name, value in changes.items() if getattr(keep, name) != value}
    for name, value in changes.items():
        setattr(keep, name, value)
    if changes:
        keep.save(update_fields=list(changes))


def end_undeclared(declared: Collection[str], is_ours: Callable[[Task], bool]) -> list[str]:
    """End the chains whose declaration is gone; return their names.

    Args:
        declared: the ``task_hash`` of every declaration that stands.
        is_ours: whether a row was declared by this project, not by another on the same database.
    """
    using = router.db_for_write(Task)
    keys = {chain_key(True, task_hash) for task_hash in declared}
    ended = []
    chains = Task.objects.using(using).filter(unique_key__startswith=EVERY)
    for row in [row for row in chains if row.unique_key not in keys and is_ours(row)]:
        this_one = Task.objects.using(using).filter(pk=row.pk, unique_key=row.unique_key)
        now = vendors.now(using)
        if not this_one.unlocked(now).delete()[0]:
            this_one.update(repeat=0, unique_key=None)  # it runs: let it be the last
        ended.append(row.task_name)
    return ended

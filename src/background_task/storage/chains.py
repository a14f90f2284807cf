"""Chains of which there is to be exactly one: declared with ``every``, or asked for at import.

A chain's live row carries a key that the database allows once. So any number of processes may
ensure the same chain at the same time, and one row comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import NamedTuple

from django.db import IntegrityError, connections, router, transaction

from background_task import vendors
from background_task.models import Task
from background_task.policies.repetition import EVERY, chain_key, is_declared
from background_task.storage.transient import PATIENT, persevere

_TRIES = 5


class Ensured(NamedTuple):
    """The row of a chain that waits, None while it runs, and whether it was stored just now."""

    waiting: Task | None
    is_new: bool


def ensure(
    wanted: Task,
    key: str,
    *,
    replace: Callable[[Task], bool],
    remove_existing: bool = False,
    taken: Collection[str] = (),
    delays: tuple[float, ...] = PATIENT,
) -> Ensured:
    """Make sure that one row like ``wanted`` waits or runs.

    A row that waits gets the values of ``wanted`` where ``replace(row)`` says so. One that runs
    gets the wanted period, and makes the next row itself when it ends.

    Args:
        wanted: an unsaved task.
        key: the key of the chain, see :func:`chain_key`.
        replace: whether a row that waits is to be made like ``wanted``.
        remove_existing: whether other rows with the same name and arguments that wait are to go.
        taken: the keys of other chains that are asked for; their rows are not this chain's.
        delays: see :func:`persevere`.
    """
    using = router.db_for_write(Task, instance=wanted)

    def once() -> Ensured:
        with transaction.atomic(using=using):
            vendors.begin_write(using)
            rows = Task.objects.using(using).filter(task_hash=wanted.task_hash)
            same = list(rows.select_for_update().order_by("id"))
            free = set(rows.unlocked(vendors.now(using)).values_list("pk", flat=True))
            chain = _chain_among(same, wanted, key, taken, remove_existing)
            running = [row for row in chain if row.pk not in free]
            waiting = [row for row in chain if row.pk in free]
            keep = running[-1] if running else waiting[0] if waiting else None
            if keep is not None and not is_declared(key) and is_declared(keep.unique_key):
                return Ensured(None if running else keep, is_new=False)
            owned = same if remove_existing else chain if is_declared(key) else []
            surplus = [row for row in owned if row is not keep]
            rows.filter(pk__in=[row.pk for row in surplus if row.pk in free]).delete()
            if is_declared(key):  # what runs may end, but not go on
                ending = [row.pk for row in surplus if row.pk not in free]
                rows.filter(pk__in=ending).update(repeat=0, unique_key=None)
            # Only rows seen above may lose the key: one that another process stores at this moment
            # has to keep it, so that the insert below fails and the chain is looked for again.
            holders = [row.pk for row in same if row.unique_key == key and row is not keep]
            rows.filter(pk__in=holders).update(unique_key=None)
            if keep is None:
                wanted.identify(unique_key=key)
                wanted.save(using=using, force_insert=True)
                return Ensured(wanted, is_new=True)
            _adapt(keep, wanted, key, replace=not running and replace(keep), waits=not running)
            return Ensured(None if running else keep, is_new=False)

    for _ in range(_TRIES - 1):
        try:
            return persevere(connections[using], "ensure a chain", once, delays)
        except IntegrityError:
            wanted.pk = None  # another process stored it in this moment; now it will be found
    return persevere(connections[using], "ensure a chain", once, delays)


def _chain_among(
    same: list[Task], wanted: Task, key: str, taken: Collection[str], remove_existing: bool
) -> list[Task]:
    """Return the rows that are the chain's already, or are to become it, the best first."""
    live = [
        row for row in same if row.failed_at is None and bool(row.repeat) == bool(wanted.repeat)
    ]
    if is_declared(key):
        # Whoever called for it: a function with a declared period has no second chain, but for
        # those that somebody made for himself.
        return [row for row in live if row.unique_key or row.creator_content_type_id is None]
    mine = [row for row in live if row.unique_key == key or is_declared(row.unique_key)]
    if mine:
        return mine
    unclaimed = [row for row in live if row.unique_key is None or row.unique_key not in taken]
    alike = [row for row in unclaimed if all(_same(row, wanted, name) for name in _ALIKE)]
    return alike or (unclaimed if remove_existing else [])


_ALIKE = ("repeat", "queue", "verbose_name", "creator_content_type_id", "creator_pk")


def _same(row: Task, wanted: Task, name: str) -> bool:
    return bool(getattr(row, name) == getattr(wanted, name))


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
    keys = {chain_key(task_hash) for task_hash in declared}
    ended = []
    # Not every database finds by an index how a text begins; but all do whether there is one.
    keyed = Task.objects.using(using).filter(unique_key__isnull=False)
    chains = keyed.filter(unique_key__startswith=EVERY)
    for row in [row for row in chains if row.unique_key not in keys and is_ours(row)]:
        this_one = Task.objects.using(using).filter(pk=row.pk, unique_key=row.unique_key)
        now = vendors.now(using)
        if not this_one.unlocked(now).delete()[0]:
            this_one.update(repeat=0, unique_key=None)  # it runs: let it be the last
        ended.append(row.task_name)
    return ended

"""The transactions that are open in this thread, and what is to happen once they are committed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper


def open_transactions() -> list[BaseDatabaseWrapper]:
    """Return the connections of this thread on which a transaction is open."""
    return [each for each in connections.all(initialized_only=True) if each.in_atomic_block]


def when_all_are_committed(act: Callable[[], None], database: str) -> None:
    """Do it once every open transaction is committed; at once, where there is none.

    It is not done when one of them is rolled back. The transaction that a ``TestCase`` puts around
    each test does not count where the caller has opened others.

    Args:
        act: what to do.
        database: the alias that says so where no transaction is open.
    """
    found = open_transactions()
    callers = [each for each in found if not all(map(_is_of_a_test, each.atomic_blocks))]
    if not callers:
        # The one that matters most to the caller is that of his own tables.
        is_own = connections[DEFAULT_DB_ALIAS].in_atomic_block
        transaction.on_commit(act, using=DEFAULT_DB_ALIAS if is_own else database)
        return
    left = {each.alias for each in callers}

    def is_committed(alias: str) -> None:
        left.discard(alias)
        if not left:
            act()

    for each in callers:
        transaction.on_commit(partial(is_committed, each.alias), using=each.alias)


def _is_of_a_test(block: object) -> bool:
    return bool(getattr(block, "_from_testcase", False))

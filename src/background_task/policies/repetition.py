"""When a repeating task runs next."""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha1

EVERY = "every:"
STARTUP = "startup:"


def next_run(
    run_at: datetime, repeat: int, repeat_until: datetime | None, now: datetime
) -> datetime | None:
    """Return when the next of a chain is due, or None when the chain ends.

    The next is ``run_at`` plus the smallest whole number of periods, one at least, that is not in
    the past: runs that were missed are skipped and the phase is kept. A chain ends when ``repeat``
    (seconds) is not positive, when ``repeat_until`` has passed, or when the calendar ends.
    """
    if repeat <= 0 or (repeat_until is not None and repeat_until <= now):
        return None
    try:
        period = timedelta(seconds=repeat)
        following = run_at + period
        if following < now:
            following += period * -((following - now) // period)
    except OverflowError:
        return None
    return following


def chain_key(task_hash: str, call: str | None = None) -> str:
    """Return the ``unique_key`` of a chain of which there is to be exactly one.

    Args:
        task_hash: of the name and the arguments.
        call: which call at the bottom of which module asks for the chain; None for the one that
            ``@background(every=…)`` declares.
    """
    if call is None:
        return f"{EVERY}{task_hash}"
    return f"{STARTUP}{task_hash}:{sha1(call.encode(), usedforsecurity=False).hexdigest()[:16]}"


def is_declared(unique_key: str | None) -> bool:
    """Tell whether this is the key of a declared chain.

    Such a chain goes on after one of its runs has failed for good, since the declaration still
    stands. The predecessor's chains end.
    """
    return (unique_key or "").startswith(EVERY)

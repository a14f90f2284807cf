"""A task that is to be cancelled while it runs has a mark for that in its row.

Its worker is asked to end it, and may be lost, or stop, before it has done so. By the mark the task
does not run again then. It stands at the start of the ``options``, which are JSON.
"""

from __future__ import annotations

import json
from typing import Any

KEY = "cancel"
MARK = f'{{"{KEY}": true'


def is_marked(options: str | None) -> bool:
    """Tell whether the task is to be cancelled."""
    return (options or "").startswith(MARK)


def marked(options: str | None) -> str:
    """Return the same options with the mark."""
    return json.dumps({KEY: True, **_decoded(options)})


def unmarked(options: str | None) -> str | None:
    """Return the same options without it."""
    if not is_marked(options):
        return options
    others = {key: value for key, value in _decoded(options).items() if key != KEY}
    return json.dumps(others) if others else None


def _decoded(options: str | None) -> dict[str, Any]:
    try:
        return dict(json.loads(options or "{}"))
    except (ValueError, TypeError):  # edited by hand
        return {}

"""Whether a project has replaced a step that it is allowed to replace.

The predecessor's steps are a contract: who overrides one wants to be asked for each task. What goes
by the batch asks here first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import models

_PACKAGE = str(Path(__file__).parent.parent)


def replaced(owner: Any, *names: str) -> str | None:
    """Return the first of the methods ``names`` of ``owner`` that is not ours; None if all are.

    Asked is whose code it is: a copy kept at import would be too late where a project was faster.
    """
    for name in names:
        function = getattr(owner, name)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        ours = code is not None and code.co_filename.startswith(_PACKAGE)
        if not ours and function is not getattr(models.Model, name, None):
            return f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
    return None

"""The loggers of this package: what a handler raises neither ends a worker nor loses an outcome.

``logging`` lets through what handlers raise that do not look after themselves, such as the one that
mails errors to ``ADMINS``, when it meets an exception that cannot be shown.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any

from background_task.utils import ForcedStop


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """Tells a logger, and goes on when that fails; stderr is told of it."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """See :meth:`logging.Logger.log`, by which every other method goes."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller is who called us
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except ForcedStop:
            raise
        except BaseException:  # not even sys.exit() in it ends the worker
            with suppress(BaseException):
                print(f"A handler of the log has failed to tell: {msg}", file=sys.__stderr__)
                traceback.print_exc(file=sys.__stderr__)


def safe(logger: logging.Logger) -> SafeLogger:
    """Return what tells ``logger``, whatever its handlers do."""
    return SafeLogger(logger)


def named(name: str) -> SafeLogger:
    """Return the same of the logger of this name."""
    return safe(logging.getLogger(name))

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


class SafeLogger:
    """Tells a logger, by the method of the same name, and goes on when that fails.

    Args:
        logger: what is told. Projects and tests put others than ``logging.Logger`` in its place.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        # The line of the caller is told, not that of our own methods.
        is_known = isinstance(logger, logging.Logger | logging.LoggerAdapter)
        self._more = {"stacklevel": 3} if is_known else {}

    def debug(self, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.debug`."""
        self._tell("debug", message, args)

    def info(self, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.info`."""
        self._tell("info", message, args)

    def warning(self, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.warning`."""
        self._tell("warning", message, args)

    def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        """See :meth:`logging.Logger.error`."""
        self._tell("error", message, args, **kwargs)

    def exception(self, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.exception`."""
        self._tell("exception", message, args)

    def critical(self, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.critical`."""
        self._tell("critical", message, args)

    def log(self, level: int, message: str, *args: Any) -> None:
        """See :meth:`logging.Logger.log`."""
        self._tell("log", level, (message, *args))

    def _tell(self, method: str, first: Any, args: tuple[Any, ...], **kwargs: Any) -> None:
        try:
            getattr(self._logger, method)(first, *args, **self._more, **kwargs)
        except ForcedStop:
            raise
        except BaseException:  # not even sys.exit() in it ends the worker
            with suppress(BaseException):
                print(f"A handler of the log has failed to tell: {first}", file=sys.__stderr__)
                traceback.print_exc(file=sys.__stderr__)


def safe(logger: Any) -> SafeLogger:
    """Return what tells ``logger``, whatever its handlers do."""
    return SafeLogger(logger)


def named(name: str) -> SafeLogger:
    """Return the same of the logger of this name."""
    return safe(logging.getLogger(name))

"""Tells the service manager how the worker is, as ``sd_notify(3)`` describes.

It says so by datagrams to a socket that an environment variable names. Where none does, nothing is
said.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from background_task.utils import hold_off_signals

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """What has started this process, if it wants to know how that is.

    Args:
        address: of its socket; empty if there is none.
        patience: how long it may hear nothing before it kills the process, in seconds; None is for
            ever.
    """

    def __init__(self, address: str = "", patience: float | None = None) -> None:
        self._address = address
        self._patience = patience
        self._taken: dict[str, str] = {}

    @classmethod
    def of_this_process(cls) -> ServiceManager:
        """Take it from the environment, where what tasks start does not find it any more."""
        taken = {name: os.environ.pop(name, "") for name in _VARIABLES}
        address, microseconds, process = taken.values()
        is_ours = process in ("", str(os.getpid()))
        # Fifteen digits are thirty years: what is longer, nobody means and no thread can wait for.
        is_number = microseconds.isdecimal() and len(microseconds) <= 15
        patience = int(microseconds) / 1e6 if is_number and is_ours else None
        manager = cls(address, patience)
        manager._taken = {name: value for name, value in taken.items() if value}
        return manager

    def give_back(self) -> None:
        """Put the variables back, for a program that is to take the place of this one."""
        os.environ.update(self._taken)

    def is_ready(self, status: str) -> None:
        """Tasks are being taken."""
        self._tell(f"READY=1\nSTATUS={status}")

    def is_stopping(self) -> None:
        """No more tasks are taken."""
        self._tell("STOPPING=1\nSTATUS=Finishing what runs")

    def watch(self, is_alive: Callable[[], bool]) -> None:
        """From now on, tell that the process lives as long as ``is_alive()`` says so."""
        if self._address and self._patience:
            pause = self._patience / 2
            threading.Thread(
                target=self._keep_telling, args=[is_alive, pause], name="service", daemon=True
            ).start()

    def _keep_telling(self, is_alive: Callable[[], bool], pause: float) -> None:
        hold_off_signals()
        never = threading.Event()
        while is_alive():
            self._tell("WATCHDOG=1")
            never.wait(pause)

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        # An address that begins with @ is of Linux' abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), address)

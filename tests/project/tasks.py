"""Tasks that run in the child processes of the tests; each says what it does in a note."""

import os
import time

from background_task import background
from project.models import Note


@background
def note(text):
    Note.objects.create(text=text)


@background
def slow(text, seconds=1.0):
    Note.objects.create(text=f"{text} begins")
    time.sleep(seconds)
    Note.objects.create(text=f"{text} ends")


@background
def leave(how):
    Note.objects.create(text=f"leaving by {how}")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    os._exit(9)

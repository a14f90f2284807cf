"""Tasks that run in the child processes of the tests; each says what it does in a note."""

import asyncio
import multiprocessing
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
async def slow_async(text, seconds=1.0):
    await Note.objects.acreate(text=f"{text} begins")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        await Note.objects.acreate(text=f"{text} is cancelled")
        raise
    await Note.objects.acreate(text=f"{text} ends")


@background
def fork(how):
    """Come back twice, or have a child that waits to be ended."""
    if how == "process":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
        child.start()
        child.terminate()
        child.join(20)
        Note.objects.create(text=f"child ended by {child.exitcode}")
        return
    if child := os.fork():
        os.waitpid(child, 0)
        Note.objects.create(text="parent")
    elif how == "raise":
        raise ValueError("in the child")


@background
def leave(how):
    Note.objects.create(text=f"leaving by {how}")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    os._exit(9)

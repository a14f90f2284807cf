"""Tasks that run in the child processes of the tests; each says what it does in a note."""

import asyncio
import contextlib
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor

from background_task import background
from background_task.models import Task
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
def saving_its_row(seconds):
    row = Task.objects.get(task_name="project.tasks.saving_its_row")
    time.sleep(seconds)
    row.verbose_name = "half way"
    row.save()


@background
async def blocking_async(text, seconds):
    await Note.objects.acreate(text=f"{text} begins")
    time.sleep(seconds)


@background
async def thread_of_async(text, seconds):
    await Note.objects.acreate(text=f"{text} begins")
    await asyncio.to_thread(time.sleep, seconds)


@background
async def stubborn_async(text, seconds):
    await Note.objects.acreate(text=f"{text} begins")
    for _ in range(seconds):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


@background
def threads_of_its_own(text, seconds):
    Note.objects.create(text=f"{text} begins")
    with ThreadPoolExecutor() as threads:
        threads.submit(time.sleep, seconds)


@background
def closing_files():
    os.closerange(3, 64)


@background
async def fork_async():
    if child := os.fork():
        os.waitpid(child, 0)
        await Note.objects.acreate(text="parent")


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
        _, status = os.waitpid(child, 0)
        Note.objects.create(text=f"child left with {os.waitstatus_to_exitcode(status)}")
    elif how == "raise":
        raise ValueError("in the child")
    elif how == "exit":
        raise SystemExit(7)


@background
def leave(how):
    Note.objects.create(text=f"leaving by {how}")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    os._exit(9)

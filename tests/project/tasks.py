"""Tasks that run in the child processes of the tests; each says what it does in a note."""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

from background_task import background
from background_task.models import Task
from project.models import Note


@background
def note(text):
    Note.objects.create(text=text)


@background
def nothing():
    pass


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


def _write_into_journal(text):
    with open(os.environ["TEST_JOURNAL"], "a") as file:
        file.write(f"{text}\n")


@background
def journal(text, seconds=0.0):
    """Write into a file, which knows nothing of databases."""
    _write_into_journal(text)
    time.sleep(seconds)


@background
async def journal_async(text, seconds=0.0):
    _write_into_journal(text)
    await asyncio.sleep(seconds)


@background(on_worker_loss="fail")
def slow_once(text, seconds):
    slow.task_function(text, seconds)


@background(on_worker_loss="fail")
def journal_once(text, seconds=0.0):
    journal.task_function(text, seconds)


@background(on_worker_loss="fail")
async def journal_once_async(text, seconds=0.0):
    await journal_async.task_function(text, seconds)


@background(on_worker_loss="fail", max_attempts=1)
def fail_once(text, seconds):
    journal.task_function(text, seconds)
    raise ValueError("on purpose")


@background
def journal_until_told(text):
    """Write into the file, and end when there is one beside it."""
    _write_into_journal(text)
    while not os.path.exists(os.environ["TEST_JOURNAL"] + ".end"):
        time.sleep(0.05)


@background
def saving_its_row(seconds):
    row = Task.objects.get(task_name="project.tasks.saving_its_row")
    time.sleep(seconds)
    row.verbose_name = "half way"
    row.save()


def _take_signals(how):
    if how == "ignores":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif how == "blocks":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    else:

        async def use():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, loop.stop)
            loop.remove_signal_handler(signal.SIGTERM)

        asyncio.run(use())


@background
def take_signals(how):
    """Leave the handlers of signals as nobody wants them."""
    _take_signals(how)


@background
def be_deaf(text, how):
    """Hear no signals, for long."""
    _take_signals(how)
    Note.objects.create(text=f"{text} begins")
    time.sleep(600)


@background
def deleting_its_row(text):
    Task.objects.filter(task_name="project.tasks.deleting_its_row").delete()
    Note.objects.create(text=text)


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
    def say_so():
        Note.objects.create(text=f"{text} begins")
        connections.close_all()

    with ThreadPoolExecutor() as threads:
        threads.submit(time.sleep, seconds)
        # By another, so that this one waits: a signal that comes a moment before it does is heard
        # by Python only when the lock is free.
        threads.submit(say_so)


@background
def closing_files():
    os.closerange(3, 64)


@background
async def fork_async(how):
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        await Note.objects.acreate(text=f"child left with {code}")
    elif how == "raise":
        raise ValueError("in the child")
    elif how == "exit":
        raise SystemExit(7)


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


@background(on_worker_loss="fail")
def note_once(text):
    Note.objects.create(text=text)


@background(on_worker_loss="fail")
def leave_for_good():
    os._exit(9)


_met: dict[str, list[asyncio.Event]] = {}


@background
async def meet(place, count):
    """End when ``count`` of these calls run at the same time, in this process."""
    here = _met.setdefault(place, [])
    mine = asyncio.Event()
    here.append(mine)
    if len(here) == count:
        for each in here:
            each.set()
    await mine.wait()


_crowd = {"now": 0, "most": 0}


@background
async def crowd():
    """Note how many of these calls have run at the same time at most."""
    _crowd["now"] += 1
    _crowd["most"] = max(_crowd.values())
    await asyncio.sleep(0.05)
    _crowd["now"] -= 1
    await Note.objects.acreate(text=f"most {_crowd['most']}")


@background
async def leave_async(how):
    await Note.objects.acreate(text=f"leaving by {how}")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "cancel":
        asyncio.current_task().cancel()
        await asyncio.sleep(600)
    if how == "raise":
        raise LookupError("on purpose")
    os._exit(9)


@background
async def open_transaction_async():
    """Leave a transaction open, and with it what was written."""

    def begin():
        connection.set_autocommit(False)
        Note.objects.create(text="never committed")

    await sync_to_async(begin)()


@background
async def query_async(text):
    await Note.objects.acreate(text=text)


@background
async def end_the_loop(how):
    """Do what would end an event loop that nobody looks after."""

    async def leave():
        raise SystemExit(3)

    if how == "exit":
        await asyncio.gather(leave())
    elif how == "stop":
        asyncio.get_running_loop().stop()
    else:
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()


@background
async def terminate_a_child():
    """Note how a process has ended that was asked to."""
    child = await asyncio.create_subprocess_exec("sleep", "60")
    child.terminate()
    await Note.objects.acreate(text=f"child ended by {await child.wait()}")


@background
async def hop(hops):
    """Call itself so many times."""
    if hops:
        await sync_to_async(hop)(hops - 1)


@background
async def leave_a_query_behind(seconds):
    asyncio.create_task(sync_to_async(time.sleep)(seconds))  # noqa: RUF006
    await asyncio.sleep(0.1)


@background
async def open_transaction_beside_others(seconds):
    await sync_to_async(transaction.atomic().__enter__)()
    await asyncio.sleep(seconds)


@background
def environment(name):
    Note.objects.create(text=f"{name} is {os.environ.get(name)}")


def _spin():
    # A function of its own: from Python 3.13 on, what is raised at the very jump of a loop passes
    # by the handlers of the function that the loop is in.
    while True:
        sum(range(100_000))


def _stay(text, how):
    try:
        if how == "loop":
            _spin()
        if how == "lock":  # nothing else in Python gets to run
            deque(itertools.repeat(None), maxlen=0)
        while how == "stubborn":
            with contextlib.suppress(BaseException):
                time.sleep(600)
        time.sleep(600)
    finally:
        Note.objects.create(text=f"{text} tidies up")


# Those with a time-out ask the database nothing first: on a busy machine that may take as long.
@background(timeout=0.5)
def overstay(text, how):
    print(f"{text} overstays", flush=True)
    _stay(text, how)


@background(timeout=0.5, on_worker_loss="fail")
def overstay_once(text, how):
    _stay(text, how)


@background
def stay(text, how):
    Note.objects.create(text=f"{text} begins")
    _stay(text, how)


async def _stay_async(text, how):
    try:
        while how == "stubborn":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(600)
        if how == "block":
            time.sleep(600)
        await asyncio.sleep(600)
    finally:
        await Note.objects.acreate(text=f"{text} tidies up")


@background(timeout=0.5)
async def overstay_async(text, how):
    await _stay_async(text, how)


@background
async def stay_async(text, how):
    await Note.objects.acreate(text=f"{text} begins")
    await _stay_async(text, how)


@background(timeout=60)
def keep_to_the_limit(text):
    Note.objects.create(text=text)


@background(atomic=True)
def write_atomically(text):
    inside = "in" if connection.in_atomic_block else "outside"
    Note.objects.create(text=f"{text} {inside} a transaction")


@background
def leave_after(seconds):
    Note.objects.create(text="about to leave")
    time.sleep(seconds)
    os._exit(9)


@background(on_worker_loss="fail")
async def note_once_async(text):
    await Note.objects.acreate(text=text)


@background(on_worker_loss="fail")
def stay_once(text):
    Note.objects.create(text=f"{text} begins")
    time.sleep(600)


@background(on_worker_loss="fail")
async def stay_once_async(text):
    await Note.objects.acreate(text=f"{text} begins")
    await asyncio.sleep(600)


@background(backoff=0.5)
def fail(text):
    Note.objects.create(text=text)
    raise ValueError("on purpose")


@background(backoff=0.5)
async def fail_async(text):
    await Note.objects.acreate(text=text)
    raise ValueError("on purpose")


@background
async def keep_the_loop(seconds):
    await Note.objects.acreate(text="the loop is kept")
    time.sleep(seconds)


@background
async def wait_async(text):
    await Note.objects.acreate(text=f"{text} begins")
    await asyncio.sleep(600)


@background
def wait_for_a_word(text):
    """Wait for one that nobody says; the wait ends when the other end is closed."""
    ear, mouth = socket.socketpair()
    with ear, mouth:
        Note.objects.create(text=f"{text} begins")
        ear.recv(1)


@background
def leave_a_thread_behind(text, seconds):
    """Be done, while a thread takes so many seconds more to make a note."""

    def make_a_note():
        time.sleep(seconds)
        Note.objects.create(text=text)
        connections.close_all()

    threading.Thread(target=make_a_note, name="left behind").start()


@background
def leave_a_pool_behind(seconds):
    ThreadPoolExecutor(thread_name_prefix="pool").submit(time.sleep, seconds)

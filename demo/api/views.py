"""The API that enqueues a task and shows its state, and the page that uses it."""

import json

from django.core.exceptions import BadRequest, SuspiciousOperation
from django.http import JsonResponse
from django.http.multipartparser import MultiPartParserError
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt

from api.models import Counter, Message
from api.tasks import demo_task
from background_task.models import CompletedTask, Task

LONGEST = Message._meta.get_field("text").max_length
EXPECTED = f"Send a POST with the field 'message': text of 1 to {LONGEST} characters."
CONTENT_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "application/json")
LATEST = 10


class RefusedError(Exception):
    """A request that gets ``status`` and an explanation instead of what it asked for."""

    def __init__(self, status, error, expected=EXPECTED, **headers):
        super().__init__(error)
        self.response = JsonResponse(
            {"error": error, "expected": expected}, status=status, headers=headers
        )


@csrf_exempt  # an API for curl; it neither reads nor trusts a cookie
def enqueue(request):
    """Enqueue ``demo_task`` and answer with its id and the address of its state."""
    try:
        allow(request, EXPECTED, "POST")
        task = demo_task(message_of(request))
    except RefusedError as refused:
        return refused.response
    url = request.build_absolute_uri(reverse("state", args=[task.result_id]))
    answer = {"id": str(task.result_id), "state": "waiting", "url": url}
    return JsonResponse(answer, status=202, headers={"Location": url})


def allow(request, expected, *methods):
    """Refuse the other methods."""
    if request.method not in methods:
        allowed = ", ".join(methods)
        raise RefusedError(405, f"{request.method} is not allowed here.", expected, Allow=allowed)


def message_of(request):
    """Return the message of a request, or refuse it."""
    if "chunked" in request.headers.get("Transfer-Encoding", ""):
        raise RefusedError(411, "A body in chunks cannot be read here: send its Content-Length.")
    # Some servers name a content type where there is no content.
    is_empty = request.headers.get("Content-Length", "") in ("", "0")
    if request.content_type not in CONTENT_TYPES and not is_empty:
        accepted = ", ".join(CONTENT_TYPES)
        raise RefusedError(
            415, f"The content type is {request.content_type!r} and not one of {accepted}."
        )
    try:
        if request.content_type == "application/json":
            fields = json.loads(request.body)
        else:
            fields = request.POST
    except (
        ValueError,
        RecursionError,
        MultiPartParserError,
        BadRequest,
        SuspiciousOperation,
    ) as error:
        raise RefusedError(400, f"The body cannot be read: {error}") from None
    message = fields.get("message") if hasattr(fields, "get") else None
    if message is None:
        raise RefusedError(400, "The field 'message' is missing.")
    if not isinstance(message, str):
        raise RefusedError(400, f"The message is not text: {json.dumps(message)[:80]}")
    if not message.strip():
        raise RefusedError(400, "The message is empty.")
    if len(message) > LONGEST:
        raise RefusedError(400, f"The message has {len(message)} characters.")
    if "\x00" in message or any("\ud800" <= letter <= "\udfff" for letter in message):
        raise RefusedError(400, "The message has a character that cannot be stored.")
    return message


@csrf_exempt  # so that a wrong method is answered by this view
def state(request, result_id):
    """Show what has become of a task."""
    try:
        allow(request, "Send a GET to see the state of the task.", "GET", "HEAD")
    except RefusedError as refused:
        return refused.response
    # A task that ends between two look-ups has left the first table and is in the second.
    for model in (Task, CompletedTask, Task, CompletedTask):
        row = model.objects.filter(result_id=result_id).first()
        if row is not None:
            return JsonResponse(described(row))
    return JsonResponse({"error": f"There is no task {result_id}."}, status=404)


def described(row):
    """Return a row of either table as the API shows it."""
    finished = isinstance(row, CompletedTask)
    if finished:
        word = "failed" if row.failed_at else "done"
    elif row.locked_by:
        word = "running"
    else:
        word = "retrying" if row.attempts else "waiting"
    return {
        "id": str(row.result_id),
        "task": row.task_name,
        "arguments": json.loads(row.task_params)[0],
        "state": word,
        "attempts": row.attempts,
        "enqueued_at": row.enqueued_at,
        "run_at": None if finished else row.run_at,
        "started_at": row.started_at,
        "finished_at": row.run_at if finished else None,
        "error": row.last_error.strip().rpartition("\n")[2] or None,
    }


def latest_rows():
    """Return the latest rows of both tables, each task once.

    One that ends between the two look-ups is seen in both, and the next of its chain in none; then
    both are made again.
    """
    while True:
        waiting = [described(row) for row in Task.objects.order_by("-id")[:LATEST]]
        done = [described(row) for row in CompletedTask.objects.order_by("-id")[:LATEST]]
        if not {row["id"] for row in waiting} & {row["id"] for row in done}:
            return waiting, done


def overview(request):
    """What the page shows, in one answer."""
    counter = Counter.objects.filter(pk=1).first()
    waiting, done = latest_rows()
    latest = sorted([*waiting, *done], key=lambda row: row["enqueued_at"], reverse=True)
    return JsonResponse(
        {
            "tasks": latest[:LATEST],
            "messages": list(Message.objects.order_by("-id").values("text", "saved_at")[:LATEST]),
            "counter": counter.value if counter else 0,
        }
    )


@csrf_exempt
def not_found(request):
    """Answer any other address below /api/ in JSON too."""
    return JsonResponse({"error": f"There is nothing at {request.path}."}, status=404)


def page(request):
    """The page: send a message, and watch it go from waiting to done."""
    return render(request, "api/page.html", {"longest": LONGEST})

"""ASGI applications with a worker in them."""

import os

from django.core.asgi import get_asgi_application

from background_task.embedded import with_worker

_django = get_asgi_application()
application = with_worker(_django)


async def _outer(scope, receive, send):
    """Write down the events of the server's life; for the rest there is Django."""
    if scope["type"] != "lifespan":
        await _django(scope, receive, send)
        return
    for step in ("startup", "shutdown"):
        await receive()
        with open(os.environ["TEST_JOURNAL"], "a") as file:
            file.write(f"{step}\n")
        await send({"type": f"lifespan.{step}.complete"})


mounted = with_worker(_outer)

"""An ASGI application with a worker in it."""

from django.core.asgi import get_asgi_application

from background_task.embedded import with_worker

application = with_worker(get_asgi_application())

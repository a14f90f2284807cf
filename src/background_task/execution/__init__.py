"""What surrounds the body of a task while it runs: its lease, its connections, its thread.

Whatever a task does, the worker can go on: no transaction, no connection and no lock of a row is
left behind. This room decides nothing about success and failure, and writes no outcome.
"""

"""Pure decisions: what a call means, when a task runs again. No rows, no settings, no side effects.

The caller hands in ``now`` and the settings as values. Only what the predecessor's ``TaskSchedule``
promises to resolve "at each read" looks at the clock by itself.
"""

"""Get work and stay alive: finding the tasks, the duties between them, and the signals."""

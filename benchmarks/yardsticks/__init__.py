"""What is measured beside the queues: how little could be done, and how fast."""

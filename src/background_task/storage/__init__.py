"""What changes more than one row, or has to be one transaction; one verb, one file.

This room returns facts. It promises that each verb happens as a whole or not at all, and that it
loses nothing when a database goes away in the middle.
"""

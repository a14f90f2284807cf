"""What a caller touches: the proxy that stands in for a function, and what a call of it means.

A call is either stored as a whole or refused with an error that names the argument.
"""

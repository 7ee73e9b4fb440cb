"""Unpacks archives that clients send, in a process of its own that can do nothing else (``python -m``)."""

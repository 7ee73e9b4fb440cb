"""What can go wrong between a client and the cluster.

::

    ClientError          ``retryable``: the same call may succeed later; ``stops_all``: every other call fails alike
    ├── Unreachable      no answer: refused, cut, timed out; ``may_be_done`` when the request could have arrived
    ├── Refused          an answer that says no; carries the status, the server's words and the request id
    ├── BadAnswer        an answer that a Holdfast node does not give
    ├── WrongBytes       the bytes at the other end are not the ones that were announced
    └── LocalFailure     a file of this machine cannot be read or written, or has a name the cluster refuses
"""

from __future__ import annotations

import os


class ClientError(Exception):
    """Any failure of a call; the message is a whole sentence for a person."""

    retryable = False
    stops_all = False
    may_be_done = False
    retry_after_seconds: float | None = None


class Unreachable(ClientError):
    """No complete answer came."""

    def __init__(self, message: str, *, may_be_done: bool = True, retryable: bool = True) -> None:
        super().__init__(message)
        self.may_be_done = may_be_done
        self.retryable = retryable
        self.stops_all = not may_be_done


class Refused(ClientError):
    """The server answered with an error status."""

    def __init__(
        self, status: int, message: str, *, request_id: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(f"{message.rstrip('.')} (status {status}{f', request {request_id}' if request_id else ''})")
        self.status = status
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds
        self.retryable = status == 429 or status >= 500
        self.stops_all = status == 401
        self.may_be_done = status >= 500 and status != 503


class BadAnswer(ClientError):
    """The server answered with something that is no answer of a Holdfast node."""

    stops_all = True


class WrongBytes(ClientError):
    """The bytes received or stored differ from what was announced."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class LocalFailure(ClientError):
    """A file of this machine is the reason."""

    @classmethod
    def of(cls, error: OSError, doing: str) -> LocalFailure:
        """Return the failure that ``error`` is, met while ``doing`` something ("cannot be read")."""
        reason = os.strerror(error.errno) if error.errno else str(error)
        return cls(f"{doing}: {reason}")

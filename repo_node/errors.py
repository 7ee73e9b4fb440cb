"""What a request can fail with, and the one table that turns every failure into an answer.

Unknown is not absent: 404 is said only when the database says so; every doubt is 503.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from typing_extensions import TypedDict

from repo_node.aql.tree import AqlError
from repo_node.db.aql import TooManyResults
from repo_node.db.blobs import PathConflict
from repo_node.db.errors import (
    AbsenceInDoubt,
    CatalogueError,
    ChangesRefused,
    Immutable,
    KeptOut,
    NotPermitted,
    OutcomeUnknown,
    QuotaExceeded,
)
from repo_node.db.properties import TooManyProperties
from repo_node.db.repositories import BadRepository, RepositoryExists
from repo_node.db.searches import SearchTooLong
from repo_node.db.users import LastAdministrator, NameTaken, NoSuchName, UnknownName
from repo_node.paths import ArtifactPath, BadPath
from repo_node.settings import SettingError
from sharding.errors import BlobUnavailable, StoreError, WriteQuorumNotMet


class RequestError(Exception):
    """A request that cannot be fulfilled; ``status`` and the message are the answer."""

    status = 400

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class NotFound(RequestError):
    status = 404


class ChecksumMismatch(RequestError):
    status = 409


class BodyTooLarge(RequestError):
    status = 413


class BodyTooSlow(RequestError):
    status = 408


class Overloaded(RequestError):
    status = 503


class MadeAnew(RequestError):
    """What the request was for has been replaced meanwhile: the same request again finds the new one."""

    status = 503


class TooManyRequests(RequestError):
    status = 429


class Unauthenticated(RequestError):
    status = 401


class Forbidden(RequestError):
    """``at`` is the path whose existence may have to be hidden from whoever it is told."""

    status = 403

    def __init__(self, message: str, at: ArtifactPath | None = None) -> None:
        super().__init__(message)
        self.at = at


class PartlyStored(Exception):
    """Of an archive a part was stored, or nothing: ``cause`` kept the artifact at ``path`` from being stored."""

    def __init__(self, path: str, cause: Exception, stored: int, wanted: int) -> None:
        super().__init__(f"{stored} of {wanted} members were stored; {path}: {cause}")
        self.path = path
        self.cause = cause
        self.stored = stored
        self.wanted = wanted


def absent(what: NotFound, *, fresh: bool) -> NotFound | AbsenceInDoubt:
    """Return what is to be raised of what Postgres does not know: ``what``, or a doubt while the node is not fresh.

    What answers then may be a server that a failover has left behind.
    """
    return what if fresh else AbsenceInDoubt(f"Postgres says that it is absent, and confirms no heartbeat: {what}")


class ErrorOne(TypedDict):
    status: int
    message: str


class ErrorDocument(TypedDict):
    """What every refusal is told with."""

    errors: list[ErrorOne]


@dataclass(frozen=True, slots=True)
class Answer:
    """``may_retry`` adds Retry-After."""

    status: int
    message: str
    may_retry: bool = False

    def body(self) -> bytes:
        """Return the JSON that every client of Artifactory's API understands."""
        document: ErrorDocument = {"errors": [{"status": self.status, "message": self.message}]}
        # What a client said may be told again, and JSON can say halves of surrogate pairs, which UTF-8 cannot.
        return json.dumps(document, ensure_ascii=False).encode(errors="replace")


def answer_for(error: Exception) -> Answer | None:
    """Return the answer to a request that failed with ``error``; None for a fault of our own."""
    match error:
        case RequestError():
            return Answer(error.status, str(error), error.status in (429, 503))
        case PartlyStored(cause=cause):
            if (found := answer_for(cause)) is None:
                return None
            kept = f"{error.stored} of the archive's {error.wanted} files are stored, and stay" if error.stored else ""
            message = f"{kept or 'Nothing of the archive is stored'}. {error.path} could not be: {found.message}"
            return Answer(found.status, message, found.may_retry)
        case BadPath():
            return Answer(400, f"Bad path: {error}.")
        case SettingError():
            return Answer(400, f"Bad setting: {error}.")
        case PathConflict():
            return Answer(409, f"Path conflict: {error}. Nothing was stored.")
        case NotPermitted():
            return Answer(
                403, f"Not enough permissions to delete or overwrite {error}: it needs the permission delete."
            )
        case TooManyProperties():
            return Answer(400, f"{error} would have more properties than properties_bytes_max allows.")
        case AqlError() | TooManyResults():
            return Answer(400, str(error))
        case SearchTooLong():
            return Answer(400, "The search took longer than search_seconds_max allows; ask for less.")
        case NoSuchName():
            return Answer(404, str(error))
        case UnknownName():
            return Answer(400, str(error))
        case NameTaken():
            return Answer(409, f"There is something named {error} already.")
        case LastAdministrator():
            return Answer(409, f"{error} is the last administrator: make another one first.")
        case RepositoryExists():
            return Answer(409, f"A repository named {error} exists already.")
        case BadRepository():
            return Answer(400, f"The repository cannot be so: {error}. Nothing was changed.")
        case Immutable():
            return Answer(409, f"Refused: {error}. What is there stays; nothing was stored.")
        case QuotaExceeded():
            return Answer(413, f"Refused: {error}. Nothing was stored.")
        case KeptOut():
            return Answer(403, f"Refused: {error}. Nothing was stored.")
        case WriteQuorumNotMet(full=True):
            return Answer(507, f"Not enough space: {error}. Nothing was stored; free or add shards, then retry.")
        case WriteQuorumNotMet():
            return Answer(503, f"Not enough shards can be written now: {error}. Nothing was stored; retry.", True)
        case OutcomeUnknown():
            return Answer(503, "The database did not say whether this was done. It is safe to retry.", True)
        case ChangesRefused():
            return Answer(503, f"{error} It was done in part at most; repeat it later.", True)
        case CatalogueError():
            return Answer(503, "The database cannot be reached now; retry.", True)
        case BlobUnavailable():
            return Answer(503, "No copy of this artifact can be read now; retry.", True)
        case StoreError(retryable=True):
            return Answer(503, "The store cannot do this now; retry.", True)
        case _:
            return None

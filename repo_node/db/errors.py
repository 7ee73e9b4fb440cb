"""What can go wrong between a node and Postgres.

::

    CatalogueError
    ├── CatalogueUnavailable     nothing was done, or it does not matter whether it was: try again later
    │   ├── NoSchema             there are no tables: the database was emptied, or is another one
    │   ├── RacesLost            others were at work on the same rows, each time it was tried
    │   └── AbsenceInDoubt       it answers that something is not there, and may be a server left behind
    ├── OutcomeUnknown           a write was sent and its answer never came: it may stand
    ├── ChangesRefused           the cluster is read-only: the write was not done
    ├── Immutable                the repository allows no overwriting, or no deleting: the write was not done
    ├── QuotaExceeded            the repository's quota is used up: the write was not done
    ├── KeptOut                  the repository's patterns let nothing come to the path: the write was not done
    ├── NotPermitted             whoever asked may not do so much: the write was not done
    ├── SchemaTooOld             this database wants ``holdfast init-db`` first
    └── NotDurable               this Postgres may lose what it has acknowledged
"""

from __future__ import annotations


class CatalogueError(Exception):
    """Any failure of the metadata store."""


class CatalogueUnavailable(CatalogueError):
    """Postgres did not answer, or refused the connection."""


class NoSchema(CatalogueUnavailable):
    """Postgres answered, and the database has not Holdfast's tables. That says nothing about any artifact."""


class RacesLost(CatalogueUnavailable):
    """Postgres ended a statement in favour of others, as often as it was tried."""


class AbsenceInDoubt(CatalogueUnavailable):
    """Postgres answered that something is absent, while it confirms no heartbeat: neither is to be told as known."""


class OutcomeUnknown(CatalogueError):
    """The connection broke, or the deadline passed, while Postgres was at work on a write."""


class ChangesRefused(CatalogueError):
    """The cluster is read-only, as the message says, whatever this node has heard of it."""


class Immutable(CatalogueError):
    """A repository lets nothing be overwritten, or nothing be deleted, as the message says."""


class QuotaExceeded(CatalogueError):
    """What was to be stored is more than a repository's quota has left, as the message says."""


class KeptOut(CatalogueError):
    """A repository's patterns, as they are by now, keep out what was to be stored, as the message says."""


class NotPermitted(CatalogueError):
    """A write would have done more than whoever asked may; the message is the path."""


class SchemaTooOld(CatalogueError):
    """The database's schema is older than this node needs."""


class NotDurable(CatalogueError):
    """Postgres is set to acknowledge commits that a crash would undo."""

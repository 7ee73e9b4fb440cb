"""What may be asked of an item, and shown of it: the one list of fields. What is not here is refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from repo_node.aql.tree import AqlError


class Kind(Enum):
    """What a field's values are, and so how they are compared."""

    REPOSITORY = auto()
    FOLDER = auto()
    TEXT = auto()
    TYPE = auto()
    WHOLE = auto()
    COUNT = auto()
    """A whole number of which 0 also counts as null: what was never downloaded."""
    TIME = auto()
    SHA256 = auto()
    SHA1 = auto()
    MD5 = auto()


DIGEST_BYTES = {Kind.SHA256: 32, Kind.SHA1: 20, Kind.MD5: 16}

ITEM_FIELDS: Mapping[str, Kind] = {
    "repo": Kind.REPOSITORY,
    "path": Kind.FOLDER,
    "name": Kind.TEXT,
    "type": Kind.TYPE,
    "size": Kind.WHOLE,
    "depth": Kind.WHOLE,
    "created": Kind.TIME,
    "created_by": Kind.TEXT,
    "modified": Kind.TIME,
    "modified_by": Kind.TEXT,
    "updated": Kind.TIME,
    "original_md5": Kind.MD5,
    "actual_md5": Kind.MD5,
    "original_sha1": Kind.SHA1,
    "actual_sha1": Kind.SHA1,
    "sha256": Kind.SHA256,
}
STAT_FIELDS: Mapping[str, Kind] = {
    "stat.downloads": Kind.COUNT,
    "stat.downloaded": Kind.TIME,
    "stat.downloaded_by": Kind.TEXT,
    "stat.remote_downloads": Kind.COUNT,
    "stat.remote_downloaded": Kind.TIME,
    "stat.remote_downloaded_by": Kind.TEXT,
    "stat.remote_origin": Kind.TEXT,
    "stat.remote_path": Kind.TEXT,
}
FIELDS: Mapping[str, Kind] = {**ITEM_FIELDS, **STAT_FIELDS}
DEFAULT_FIELDS = (
    "repo", "path", "name", "type", "size", "created", "created_by", "modified", "modified_by", "updated",
)  # fmt: skip
PLACE_FIELDS = ("repo", "path", "name")
"""What somebody who is no administrator must ask for, so that an answer says what of."""

ELSEWHERE = {
    "archive": "what is in archives is not listed",
    "artifact": "builds are not kept",
    "build": "builds are not kept",
    "dependency": "builds are not kept",
    "module": "builds are not kept",
    "promotion": "builds are not kept",
    "release": "release bundles are not kept",
    "release_artifact": "release bundles are not kept",
}
"""Domains that Artifactory joins to items and that do not exist here: asked for, they are an error and never empty."""


def kind_of(field: str) -> Kind:
    """Return the kind of a field. Raises ``AqlError``."""
    if (kind := FIELDS.get(field)) is None:
        raise unknown(field)
    return kind


def unknown(field: str) -> AqlError:
    reason = ELSEWHERE.get(field.partition(".")[0]) if "." in field else None
    shown = repr(field[:60])
    return AqlError(f"{shown} cannot be asked for: {reason} here." if reason else f"Items have no field {shown}.")

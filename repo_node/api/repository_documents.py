"""Artifactory's configuration JSON of a repository, with Holdfast's own fields: read and written."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import TypedDict

from repo_node.api.bodies import ArtifactoryDocument, PlainText, validated
from repo_node.db.repositories import LOCAL, VIRTUAL, Repository
from repo_node.errors import RequestError

Digest = Literal["sha256", "sha1", "md5"]
DIGESTS: tuple[Digest, ...] = get_args(Digest)
ChecksumPolicy = Literal["client-checksums", "server-generated-checksums"]

MEMBERS_MAX = 100
PATTERN_CHARACTERS_MAX = 4_096
BYTES_MAX = (1 << 63) - 1


def check_digests(names: list[Digest]) -> list[Digest]:
    """Return ``names``, each once, in their usual order. Raises ``ValueError``."""
    if "sha256" not in names:
        raise ValueError("sha256 is always computed: it names the content")
    return [name for name in DIGESTS if name in names]


def check_patterns(text: str) -> str:
    """Return a list of patterns without what surrounds it. Raises ``ValueError``."""
    if len(text) > PATTERN_CHARACTERS_MAX:
        raise ValueError(f"a list of patterns has at most {PATTERN_CHARACTERS_MAX} characters")
    if any(not character.isprintable() or character == "\\" for character in text):
        raise ValueError("a pattern has no control characters and no backslash: no path has")
    return text.strip()


Digests = Annotated[list[Digest], AfterValidator(check_digests)]
Text = Annotated[PlainText, Field(max_length=2000)]
Patterns = Annotated[PlainText, AfterValidator(check_patterns)]
Key = Annotated[PlainText, Field(max_length=64)]

FIELDS = {
    "description": "description",
    "notes": "notes",
    "includesPattern": "includes_pattern",
    "excludesPattern": "excludes_pattern",
    "repoLayoutRef": "layout",
}
"""What every repository has: its name in JSON and in ``Configuration``."""

LOCAL_FIELDS = {
    "checksumPolicyType": "checksum_policy",
    "blackedOut": "blacked_out",
    "priorityResolution": "priority",
    "allowOverwrite": "allow_overwrite",
    "allowDelete": "allow_delete",
    "quotaBytes": "quota_bytes",
    "redundancy": "redundancy",
    "trash": "trash",
    "digests": "digests",
}
VIRTUAL_FIELDS = {"repositories": "members", "defaultDeploymentRepo": "default_deployment"}
BY_CLASS = {LOCAL: FIELDS | LOCAL_FIELDS, VIRTUAL: FIELDS | VIRTUAL_FIELDS}
UNSET_BY_NULL = frozenset({"quotaBytes", "redundancy", "defaultDeploymentRepo"})
"""Where null is a value; elsewhere it says nothing."""

OWN = frozenset({"allowOverwrite", "allowDelete", "quotaBytes", "redundancy"})
"""Holdfast's own fields: whoever sends one means it, so that it is refused where it has no meaning."""


class RepositoryDocument(ArtifactoryDocument):
    """What may be said of a repository."""

    key: str | None = None
    rclass: str | None = None
    packageType: str | None = None
    description: Text | None = None
    notes: Text | None = None
    includesPattern: Patterns | None = None
    excludesPattern: Patterns | None = None
    repoLayoutRef: Text | None = None
    checksumPolicyType: ChecksumPolicy | None = None
    blackedOut: bool | None = None
    priorityResolution: bool | None = None
    allowOverwrite: bool | None = None
    allowDelete: bool | None = None
    quotaBytes: int | None = Field(None, ge=0, le=BYTES_MAX)
    redundancy: int | None = Field(None, ge=1, le=16)
    trash: bool | None = None
    digests: Digests | None = None
    repositories: list[Key] | None = Field(None, max_length=MEMBERS_MAX)
    defaultDeploymentRepo: Key | None = None

    @model_validator(mode="after")
    def check_class(self) -> RepositoryDocument:
        if self.packageType is not None and self.packageType.lower() != "generic":
            raise ValueError("the packageType must be generic")
        if self.rclass not in (None, *BY_CLASS):
            raise ValueError(f"the rclass must be one of {', '.join(BY_CLASS)}")
        return self

    def fields_for(self, rclass: str) -> dict[str, Any]:
        """Return what it says of a repository of this class, in ``Configuration``'s names. Raises ``RequestError``."""
        names = BY_CLASS[rclass]
        if strange := OWN.intersection(self.model_fields_set) - names.keys():
            raise RequestError(f"A {rclass} repository has no {min(strange)}.")
        said = {
            attribute: getattr(self, name)
            for name, attribute in names.items()
            if name in self.model_fields_set and (name in UNSET_BY_NULL or getattr(self, name) is not None)
        }
        if "members" in said:
            said["members"] = tuple(dict.fromkeys(said["members"]))
        if "digests" in said:
            said["digests"] = tuple(said["digests"])
        if said.get("default_deployment") == "":
            said["default_deployment"] = None
        return said


class RepositoryConfiguration(TypedDict):
    """A repository; which fields it has depends on its class. ``usedBytes`` is told of one that has a quota."""

    key: str
    rclass: Literal["local", "virtual"]
    packageType: str
    description: str
    notes: str
    includesPattern: str
    excludesPattern: str
    repoLayoutRef: str
    checksumPolicyType: NotRequired[ChecksumPolicy]
    blackedOut: NotRequired[bool]
    priorityResolution: NotRequired[bool]
    allowOverwrite: NotRequired[bool]
    allowDelete: NotRequired[bool]
    quotaBytes: NotRequired[int | None]
    redundancy: NotRequired[int | None]
    trash: NotRequired[bool]
    digests: NotRequired[list[Digest]]
    repositories: NotRequired[list[str]]
    defaultDeploymentRepo: NotRequired[str | None]
    usedBytes: NotRequired[int]


class RepositoryEntry(TypedDict):
    key: str
    type: Literal["LOCAL", "VIRTUAL"]
    description: str
    url: str
    packageType: str


def read_document(key: str, body: Any) -> RepositoryDocument:
    """Return what a body says of the repository ``key``. Raises ``RequestError``."""
    document = validated(body, RepositoryDocument)
    if document.key not in (None, key):
        raise RequestError(f"The body names the repository {document.key}, the URL {key}.")
    return document


def document_of(repository: Repository) -> dict[str, Any]:
    """Return a repository's configuration."""
    document: dict[str, Any] = {
        "key": repository.key,
        "rclass": repository.rclass,
        "packageType": repository.package_type,
    }
    for name, attribute in BY_CLASS[repository.rclass].items():
        value = getattr(repository, attribute)
        document[name] = list(value) if isinstance(value, tuple) else value
    return document


def list_entry(base: str, repository: Repository) -> dict[str, Any]:
    return {
        "key": repository.key,
        "type": repository.rclass.upper(),
        "description": repository.description,
        "url": f"{base}/{repository.key}",
        "packageType": repository.package_type.capitalize(),
    }

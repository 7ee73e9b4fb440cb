"""How a command finds its cluster and its credentials.

Secrets come from files, the environment or a hidden prompt, never from arguments, which every user
of the machine can read.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from repo_node.client.rest import Credentials, Endpoint

DEFAULT_DATA = Path("holdfast-data")
SECRET_BYTES_MAX = 8192

Command = TypeVar("Command", bound=Callable[..., Any])

NO_CLUSTER = """\
No cluster is known here: there is no --url, no --data, no HOLDFAST_URL and no directory ./holdfast-data.
Start one with: holdfast up
or name one, for example: --url http://127.0.0.1:8080"""

NO_CREDENTIALS = """\
No credentials for {url}: there is no --token-file, no --user, no HOLDFAST_TOKEN and no HOLDFAST_USER.
With a token: HOLDFAST_TOKEN in the environment, or --token-file FILE
with a password: HOLDFAST_USER and HOLDFAST_PASSWORD, or --user NAME --password-file FILE
for a cluster that `holdfast up` made on this machine: --data DIR"""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The options that name a cluster and credentials, as they were given."""

    url: str | None = None
    data: Path | None = None
    token_file: str | None = None
    user: str | None = None
    password_file: str | None = None
    ca_file: str | None = None


def connection_options(command: Command) -> Command:
    """Give a command the connection options; it receives them as one keyword argument ``connection``."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> Any:
        names = [field.name for field in fields(ConnectionOptions)]
        given = ConnectionOptions(**{name: arguments.pop(name) for name in names})
        return command(connection=given, **arguments)

    decorated: Any = wrapped
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--url", metavar="URL", help="The cluster or one node, for example http://127.0.0.1:8080."),
    click.option(
        "--data",
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="The data directory of a cluster that `holdfast up` made.",
    ),
    click.option("--token-file", metavar="FILE", help="A file that holds an access token; - reads standard input."),
    click.option("--user", metavar="NAME", help="The user; asks for the password unless a file or variable has it."),
    click.option("--password-file", metavar="FILE", help="A file that holds the password; - reads standard input."),
    click.option("--ca-file", metavar="FILE", help="With https: the authority to believe, and no other."),
)


def find_endpoint(given: ConnectionOptions, environment: Mapping[str, str] | None = None) -> Endpoint:
    """Return the cluster and the credentials to use: options first, then the environment, then ./holdfast-data.

    Raises ``click.UsageError`` when nothing is found and ``click.ClickException`` for what is unusable.
    """
    environment = os.environ if environment is None else environment
    url, found_here = find_url(given, environment)
    credentials = find_given_credentials(given, environment)
    if credentials is None and given.data is not None:
        credentials = admin_credentials(given.data)
    # Whoever can write to this directory must not be able to call secrets of the environment elsewhere.
    if credentials is None and (not found_here or is_loopback(url)):
        credentials = find_environment_credentials(environment)
    if credentials is None and belongs_to(DEFAULT_DATA, url):
        credentials = admin_credentials(DEFAULT_DATA)
    if credentials is None:
        raise click.UsageError(NO_CREDENTIALS.format(url=url))
    return Endpoint(url, credentials, find_authority(given, environment, url))


def find_authority(given: ConnectionOptions, environment: Mapping[str, str], url: str) -> ssl.SSLContext | None:
    """Return whom to believe who the cluster is, None for whom the system, or SSL_CERT_FILE, believes."""
    name = given.ca_file or environment.get("HOLDFAST_CA_FILE")
    if not name and belongs_to(data := given.data or DEFAULT_DATA, url):
        name = read_cluster(data).get("ca_file")
    if not name or urlsplit(url).scheme != "https":
        return None
    try:
        return ssl.create_default_context(cafile=name)
    except ssl.SSLError:
        raise click.ClickException(f"{name} holds no certificate in PEM") from None
    except OSError as error:
        raise click.ClickException(f"{name} cannot be read: {error.strerror}") from None


def find_url(given: ConnectionOptions, environment: Mapping[str, str]) -> tuple[str, bool]:
    """Return the cluster's URL, and whether nothing but ./holdfast-data named it."""
    if given.url is not None:
        return check_url(given.url, "--url"), False
    if given.data is None and environment.get("HOLDFAST_URL"):
        return check_url(environment["HOLDFAST_URL"], "HOLDFAST_URL"), False
    data = given.data or DEFAULT_DATA
    if given.data is None and not data.is_dir():
        raise click.UsageError(NO_CLUSTER)
    return check_url(str(read_cluster(data).get("front_url")), str(data / "cluster.json")), given.data is None


def check_url(url: str, source: str) -> str:
    """Return ``url`` when it can be the base of a cluster; its text is not repeated, as it may hold a password."""
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise click.UsageError(f"{source} is not a URL; write for example http://127.0.0.1:8080") from None
    if parts.username is not None or parts.password is not None:
        raise click.UsageError(
            f"{source} holds a user or password; leave them out and use --user and --password-file, or HOLDFAST_TOKEN"
        )
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_is_right
        or parts.query
        or parts.fragment
    ):
        raise click.UsageError(f"{source} is not an http or https URL; write for example http://127.0.0.1:8080")
    return url.rstrip("/")


def read_cluster(data: Path) -> dict[str, Any]:
    """Return ``cluster.json`` of a data directory. Raises ``click.ClickException``."""
    path = data / "cluster.json"
    try:
        cluster = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise click.UsageError(
            f"there is no {path}; start that cluster with: holdfast up --data {data}, or name another with --url"
        ) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from None
    if not isinstance(cluster, dict):
        raise click.ClickException(f"{path} is not the file that `holdfast up` writes")
    return cluster


def find_given_credentials(given: ConnectionOptions, environment: Mapping[str, str]) -> Credentials | None:
    if given.token_file is not None:
        if given.user is not None or given.password_file is not None:
            raise click.UsageError("give either --token-file or --user and --password-file, not both")
        return Credentials.bearer(read_secret(given.token_file), f"the token in {given.token_file}")
    if given.user is None:
        if given.password_file is not None:
            raise click.UsageError("--password-file needs --user NAME")
        return None
    if given.password_file is not None:
        password, source = read_secret(given.password_file), f"in {given.password_file}"
    elif environment.get("HOLDFAST_PASSWORD"):
        password, source = environment["HOLDFAST_PASSWORD"], "in HOLDFAST_PASSWORD"
    elif sys.stdin.isatty():
        password, source = click.prompt(f"Password of {given.user}", hide_input=True, err=True), "that was typed"
    else:
        raise click.UsageError(f"there is no password for {given.user}; set HOLDFAST_PASSWORD or give --password-file")
    return basic(given.user, password, f"user {given.user} with the password {source}")


def find_environment_credentials(environment: Mapping[str, str]) -> Credentials | None:
    if token := environment.get("HOLDFAST_TOKEN"):
        return Credentials.bearer(check_secret(token.strip(), "HOLDFAST_TOKEN"), "the token in HOLDFAST_TOKEN")
    user, password = environment.get("HOLDFAST_USER"), environment.get("HOLDFAST_PASSWORD")
    if user and password:
        return basic(user, password, "HOLDFAST_USER and HOLDFAST_PASSWORD")
    if user:
        raise click.UsageError("HOLDFAST_USER is set and HOLDFAST_PASSWORD is not; set both, or HOLDFAST_TOKEN")
    return None


def admin_credentials(data: Path) -> Credentials:
    """Return the credentials that ``up`` left in a data directory. Raises ``click.ClickException``."""
    path = data / "admin-password"
    return basic("admin", read_secret(str(path)), f"user admin with the password in {path}")


def start_command(given: ConnectionOptions, url: str) -> str | None:
    """Return how the cluster at ``url`` is started, when it is one that `holdfast up` made here."""
    if given.data is not None and belongs_to(given.data, url):
        return f"holdfast up --data {shlex.quote(str(given.data))}"
    return "holdfast up" if belongs_to(DEFAULT_DATA, url) else None


def belongs_to(data: Path, url: str) -> bool:
    """Return whether ``url`` is one of the cluster in a data directory: no other server may see its password."""
    if not (data / "cluster.json").exists():
        return False
    cluster = read_cluster(data)
    known = [cluster.get("front_url"), *(node.get("url") for node in cluster.get("nodes", []))]
    return origin(url) in [origin(str(other)) for other in known]


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def basic(user: str, password: str, source: str) -> Credentials:
    if ":" in user:
        raise click.UsageError("a user name cannot hold a colon")
    return Credentials.basic(user, password, source)


def read_secret(name: str) -> str:
    """Return the one line in the file ``name`` (``-``: standard input). Raises ``click.ClickException``."""
    try:
        with click.open_file(name, "r", encoding="utf-8") as file:
            text = file.read(SECRET_BYTES_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is not text"
        raise click.ClickException(f"{name} cannot be read: {reason}") from None
    return check_secret(text, name)


def check_secret(text: str, source: str) -> str:
    if not text or "\n" in text or not text.isprintable():
        raise click.ClickException(f"{source} must hold the secret on one line and nothing else")
    return text

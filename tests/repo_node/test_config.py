"""A node's TOML: what is right is read as it stands, what is wrong is named by file and key."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.config import Address, ConfigError, NodeConfig, load

KEY = "8f14e45fceea167a5a36dedd4bea2543d3d9446802a44259755d38e6d163e820"
GOOD = """
[node]
id = "node-1"
zone = "rack-1"
cluster_key_file = "cluster.key"
[database]
dsn = "postgresql://holdfast:hunter2@db.example:5432/holdfast"
[http]
listen = "0.0.0.0:8081"
[internal]
listen = "10.0.0.11:8181"
[[shards]]
path = "disk-1"
"""


class Node:
    """A directory with a configuration and a key in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "node.toml"
        key = directory / "cluster.key"
        key.write_text(KEY)
        key.chmod(0o600)

    def load(self, text: str) -> NodeConfig:
        self.file.write_text(text)
        return load(self.file)

    def complaints(self, text: str) -> list[str]:
        """Return what is wrong with ``text``, a line each, without the file's name that every line must begin with."""
        with pytest.raises(ConfigError) as caught:
            self.load(text)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(f"{self.file}: ") for line in lines), lines
        assert "hunter2" not in str(caught.value) and KEY not in str(caught.value)
        return [line.removeprefix(f"{self.file}: ") for line in lines]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def changed(section: str, line: str, text: str = GOOD) -> str:
    """Return ``text`` with ``line`` in ``section``, in the place of the line for the same key if there is one."""
    key, lines = line.partition("=")[0].strip(), text.splitlines()
    at = lines.index(section)
    end = next((i for i in range(at + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    kept = [old for old in lines[at + 1 : end] if old.partition("=")[0].strip() != key]
    return "\n".join([*lines[: at + 1], *kept, line, *lines[end:], ""])


# ---------------------------------------------------------------- what is right


def test_minimal_configuration_has_the_defaults(node: Node) -> None:
    config = node.load(GOOD)
    assert (config.node.id, config.node.zone) == ("node-1", "rack-1")
    assert str(config.http.listen) == "0.0.0.0:8081"
    assert config.http.shared_listen is None and config.http.metrics_listen is None
    assert config.internal.url == "http://10.0.0.11:8181"
    assert config.database.pool_connections_max == 16
    assert (config.log.format, config.log.level) == ("text", "info")
    [shard] = config.shards
    assert (shard.path, shard.weight, shard.reserve_bytes) == (node.directory / "disk-1", None, 1 << 30)


def test_cluster_key_is_read_from_its_file(node: Node) -> None:
    assert node.load(GOOD).cluster_key == bytes.fromhex(KEY)


def test_relative_paths_are_relative_to_the_file(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    node.file.write_text(GOOD + '[[shards]]\npath = "/srv/disk-2"\n')
    config = load(Path("..") / node.file.name)
    assert [shard.path for shard in config.shards] == [node.directory / "disk-1", Path("/srv/disk-2")]
    assert config.cluster_key


@pytest.mark.parametrize("value", ["5", "5.0", "0.25", "86400"])
def test_whole_numbers_are_seconds_too(node: Node, value: str) -> None:
    config = node.load(changed("[database]", f"statement_timeout_seconds = {value}"))
    assert config.database.statement_timeout_seconds == float(value)


def test_internal_url_is_the_advertised_one_without_a_slash_at_its_end(node: Node) -> None:
    config = node.load(changed("[internal]", 'advertise_url = "https://peer.example:8181/"'))
    assert config.internal.url == "https://peer.example:8181"


def test_secrets_do_not_show_in_the_configuration(node: Node) -> None:
    config = node.load(GOOD)
    for text in (repr(config), str(config), repr(config.database)):
        assert "hunter2" not in text and KEY not in text and repr(bytes.fromhex(KEY)) not in text
    assert "cluster_key" not in config.model_dump()


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:8081", "::1", 8081),
        ("[fe80::1]:1", "fe80::1", 1),
        ("node-1.example.com:8081", "node-1.example.com", 8081),
    ],
)
def test_address_is_read_and_written_the_same(text: str, host: str, port: int) -> None:
    address = Address.model_validate(text)
    assert (address.host, address.port, str(address)) == (host, port, text)
    assert Address.model_validate(address) == address


BAD_ADDRESSES = [
    '"8081"',
    '":8081"',
    '"host"',
    '"host:"',
    '"host:0"',
    '"host:65536"',
    '"host:-1"',
    '"host:http"',
    '"::1:8081"',
    '"http://host:8081"',
    '"ho st:80"',
    '"host:80\\n"',
    '"host:80 "',
    '""',
    "8081",
    "true",
    '["host", 80]',
    '{ host = "h", port = 99999 }',
]


@pytest.mark.parametrize("value", BAD_ADDRESSES)
@pytest.mark.parametrize(
    ("section", "key"), [("[http]", "listen"), ("[http]", "metrics_listen"), ("[internal]", "listen")]
)
def test_bad_address_is_named_with_an_example(node: Node, section: str, key: str, value: str) -> None:
    [complaint] = node.complaints(changed(section, f"{key} = {value}"))
    assert complaint.startswith(f"{section.strip('[]')}.{key}: ")
    assert '"host:port"' in complaint and "0.0.0.0:8081" in complaint


@given(st.text(max_size=30))
def test_no_text_is_an_address_by_accident(text: str) -> None:
    try:
        address = Address.model_validate(text)
    except ValueError:
        return
    assert str(address) == text or text.rpartition(":")[2] != str(address.port), "leading zeros alone may differ"
    assert 0 < address.port < 65_536 and address.host


# ---------------------------------------------------------------- what is wrong

FAULTS = [
    ("[node]", 'id = ""', "node.id", "pattern"),
    ("[node]", 'id = "a b"', "node.id", "pattern"),
    ("[node]", 'id = "-a"', "node.id", "pattern"),
    ("[node]", 'id = "a\\n"', "node.id", "pattern"),
    ("[node]", f'id = "{"a" * 64}"', "node.id", "pattern"),
    ("[node]", "id = 1", "node.id", "string"),
    ("[node]", 'zone = "rack 1"', "node.zone", "pattern"),
    ("[node]", "cluster_key_file = 5", "node.cluster_key_file", "path"),
    ("[node]", 'cluster_key = "abc"', "node.cluster_key", "not a known key; config/node.example.toml"),
    ("[database]", 'dsn = "host=db user=x"', "database.dsn", "postgresql://"),
    ("[database]", 'dsn = "mysql://x:hunter2@db/x"', "database.dsn", "postgresql://"),
    ("[database]", 'dsn = "postgresql://x:hunter2@[::1/x"', "database.dsn", "IPv6"),
    ("[database]", "dsn = 5", "database.dsn", "string"),
    ("[database]", "pool_connections_max = 1", "database.pool_connections_max", "greater than or equal to 2"),
    ("[database]", "pool_connections_max = 501", "database.pool_connections_max", "less than or equal to 500"),
    ("[database]", 'pool_connections_max = "16"', "database.pool_connections_max", "integer"),
    ("[database]", "pool_connections_max = 16.0", "database.pool_connections_max", "integer"),
    ("[database]", "pool_connections_max = true", "database.pool_connections_max", "integer"),
    ("[database]", "connect_timeout_seconds = 0", "database.connect_timeout_seconds", "greater than 0"),
    ("[database]", "connect_timeout_seconds = -1", "database.connect_timeout_seconds", "greater than 0"),
    ("[database]", "connect_timeout_seconds = 86401", "database.connect_timeout_seconds", "86400"),
    ("[database]", "connect_timeout_seconds = nan", "database.connect_timeout_seconds", "finite"),
    ("[database]", "connect_timeout_seconds = inf", "database.connect_timeout_seconds", "86400|finite"),
    ("[database]", 'connect_timeout_seconds = "5"', "database.connect_timeout_seconds", "number"),
    ("[database]", "connect_timeout_seconds = true", "database.connect_timeout_seconds", "number"),
    ("[database]", "connect_timeout_seconds = 2030-01-01", "database.connect_timeout_seconds", "number"),
    ("[database]", "pool_size = 5", "database.pool_size", "not a known key"),
    ("[http]", 'public_url = "artifacts.example"', "http.public_url", "http or https URL"),
    ("[http]", 'public_url = "ftp://artifacts.example"', "http.public_url", "http or https URL"),
    ("[http]", 'public_url = "https://"', "http.public_url", "http or https URL"),
    ("[http]", 'public_url = "https://a.example/?x=1"', "http.public_url", "http or https URL"),
    ("[http]", 'public_url = "https://a.example:99999"', "http.public_url", "Port out of range"),
    ("[http]", 'trusted_proxies = "10.0.0.5"', "http.trusted_proxies", "list of addresses and networks"),
    ("[http]", 'trusted_proxies = ["10.0.0.5/8"]', "http.trusted_proxies", "host bits set"),
    ("[http]", 'trusted_proxies = ["proxy.example"]', "http.trusted_proxies", "IPv4 or IPv6"),
    ("[http]", "trusted_proxies = [5]", "http.trusted_proxies", "list of addresses and networks"),
    ("[http]", "connections_max = 0", "http.connections_max", "greater than or equal to 1"),
    ("[http]", "rate_bytes_per_second_min = -1", "http.rate_bytes_per_second_min", "greater than or equal to 0"),
    ("[internal]", 'advertise_url = "10.0.0.11:8181"', "internal.advertise_url", "http://10.0.0.5:8181"),
    ("[internal]", "calls_per_shard_max = 0", "internal.calls_per_shard_max", "greater than or equal to 1"),
    ("[[shards]]", "weight = 0", "shards.0.weight", "greater than 0"),
    ("[[shards]]", "weight = nan", "shards.0.weight", "finite"),
    ("[[shards]]", 'weight = "1"', "shards.0.weight", "number"),
    ("[[shards]]", "reserve_bytes = -1", "shards.0.reserve_bytes", "greater than or equal to 0"),
    ("[[shards]]", "reserve_bytes = 1.5", "shards.0.reserve_bytes", "integer"),
    ("[[shards]]", "threads = 65", "shards.0.threads", "less than or equal to 64"),
    ("[[shards]]", "path = 5", "shards.0.path", "path"),
    ("[[shards]]", 'zone = "a"', "shards.0.zone", "not a known key"),
]


@pytest.mark.parametrize(("section", "line", "key", "right"), FAULTS, ids=[fault[1][:40] for fault in FAULTS])
def test_wrong_value_is_named_with_what_would_be_right(
    node: Node, section: str, line: str, key: str, right: str
) -> None:
    [complaint] = node.complaints(changed(section, line))
    assert complaint.startswith(f"{key}: "), complaint
    assert any(word in complaint for word in right.split("|")), complaint


@pytest.mark.parametrize(
    ("section", "line", "key"),
    [("[log]", 'format = "xml"', "log.format"), ("[log]", 'level = "INFO"', "log.level")],
)
def test_wrong_choice_is_named_with_the_choices(node: Node, section: str, line: str, key: str) -> None:
    [complaint] = node.complaints(f"{GOOD}{section}\n{line}\n")
    assert complaint.startswith(f"{key}: ")
    assert "'text' or 'json'" in complaint or "'debug', 'info', 'warning' or 'error'" in complaint


REQUIRED = {
    "node.id": 'id = "node-1"\n',
    "node.zone": 'zone = "rack-1"\n',
    "node.cluster_key_file": 'cluster_key_file = "cluster.key"\n',
    "database.dsn": 'dsn = "postgresql://holdfast:hunter2@db.example:5432/holdfast"\n',
    "http.listen": 'listen = "0.0.0.0:8081"\n',
    "internal.listen": 'listen = "10.0.0.11:8181"\n',
    "shards.0.path": 'path = "disk-1"\n',
}


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(node: Node, key: str) -> None:
    assert node.complaints(GOOD.replace(REQUIRED[key], "")) == [f"{key}: is required and missing"]


def test_every_fault_is_named_at_once(node: Node) -> None:
    text = changed(
        "[node]", 'id = "a b"', changed("[http]", 'listen = "80"', GOOD.replace(REQUIRED["database.dsn"], ""))
    )
    assert sorted(line.partition(":")[0] for line in node.complaints(text)) == [
        "database.dsn",
        "http.listen",
        "node.id",
    ]


@pytest.mark.parametrize("name", ["node", "database", "http", "internal"])
def test_missing_section_is_named(node: Node, name: str) -> None:
    document = tomllib.loads(GOOD)
    lines = [f"[{key}]\n" + "".join(f'{k} = "{v}"\n' for k, v in table.items()) for key, table in document.items()
             if key not in (name, "shards")]  # fmt: skip
    text = "".join(lines) + '[[shards]]\npath = "disk-1"\n'
    assert node.complaints(text) == [f"{name}: is required and missing"]


def test_unknown_section_is_named(node: Node) -> None:
    [complaint] = node.complaints(GOOD + "[htttp]\nx = 1\n")
    assert complaint.startswith("htttp: is not a known key")


def test_no_shard_is_a_fault(node: Node) -> None:
    [complaint] = node.complaints("shards = []\n" + GOOD.partition("[[shards]]")[0])
    assert complaint.startswith("shards: ") and "at least one" in complaint


@pytest.mark.parametrize("second", ["disk-1", "./disk-1", "x/../disk-1", "disk-1/", "link"])
def test_two_shards_at_one_path_are_a_fault(node: Node, second: str) -> None:
    (node.directory / "disk-1").mkdir()
    (node.directory / "link").symlink_to("disk-1")
    [complaint] = node.complaints(f'{GOOD}[[shards]]\npath = "{second}"\n')
    assert complaint.startswith("shards: ") and "same path" in complaint


@pytest.mark.parametrize("listen", ["0.0.0.0:8181", "[::]:8181"])
def test_internal_listener_on_every_interface_needs_a_url_for_peers(node: Node, listen: str) -> None:
    text = changed("[internal]", f'listen = "{listen}"')
    [complaint] = node.complaints(text)
    assert complaint.startswith("internal.advertise_url: is required")
    assert "http://10.0.0.5:8181" in complaint
    assert node.load(changed("[internal]", 'advertise_url = "http://10.0.0.7:8181"', text)).internal.url.endswith(
        ".7:8181"
    )


# ---------------------------------------------------------------- the files themselves


def test_cluster_key_in_the_toml_is_refused_and_not_shown(node: Node) -> None:
    [complaint] = node.complaints(f'cluster_key = "{KEY}"\n{GOOD}')
    assert complaint.startswith("cluster_key: ") and "cluster_key_file" in complaint


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [("", 0o600, "0 bits"), ("00" * 32, 0o600, "pattern"), (KEY, 0o644, "chmod 600"), (None, 0, "there is no file")],
)
def test_bad_cluster_key_is_named_with_key_and_file(node: Node, text: str | None, mode: int, reason: str) -> None:
    key = node.directory / "cluster.key"
    key.unlink()
    if text is not None:
        key.write_text(text)
        key.chmod(mode)
    [complaint] = node.complaints(GOOD)
    assert complaint.startswith("node.cluster_key_file: ")
    assert str(key) in complaint and reason in complaint


def test_s12_keys_that_are_accepted_beside_the_clusters_are_read_with_the_same_care(node: Node) -> None:
    new = node.directory / "new.key"
    text = changed("[node]", 'accepted_key_files = ["new.key"]')
    [complaint] = node.complaints(text)
    assert complaint.startswith("node.accepted_key_files: ") and "there is no file" in complaint
    new.write_text(KEY[::-1])
    new.chmod(0o640)
    [complaint] = node.complaints(text)
    assert "chmod 600" in complaint
    new.chmod(0o600)
    assert node.load(text).accepted_keys == (bytes.fromhex(KEY[::-1]),)
    assert KEY[::-1] not in repr(node.load(text)) + node.load(text).model_dump_json()
    assert node.load(GOOD).accepted_keys == ()
    [complaint] = node.complaints(f'accepted_keys = ["{KEY}"]\n{GOOD}')
    assert complaint.startswith("accepted_keys: ")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.toml: there is no such file"):
        load(tmp_path / "no-such.toml")


@pytest.mark.parametrize("text", ["[node", "a = ", "[node]\nid = 'x'\nid = 'y'\n"])
def test_file_that_is_no_toml_is_named_with_the_line(node: Node, text: str) -> None:
    [complaint] = node.complaints(text)
    assert complaint.startswith("is not valid TOML: ")
    assert "line" in complaint or "end of document" in complaint


def test_file_that_cannot_be_read_is_named(node: Node, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be read"):
        load(tmp_path)
    node.file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"node.toml: cannot be read"):
        load(node.file)


# ---------------------------------------------------------------- a node of several processes


@given(workers=st.integers(1, 64), pool=st.integers(128, 500), connections=st.integers(1, 20_000))
def test_processes_share_what_their_node_may_use(workers: int, pool: int, connections: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = changed("[node]", f"workers = {workers}")
        text = changed("[database]", f"pool_connections_max = {pool}", text)
        config = Node(Path(directory)).load(changed("[http]", f"connections_max = {connections}", text))
    shares = [config.share_of(process) for process in range(workers)]
    assert sum(one.database.pool_connections_max for one in shares) == pool
    assert min(one.database.pool_connections_max for one in shares) >= 2
    assert connections <= sum(one.http.connections_max for one in shares) < connections + workers
    if workers == 1:
        assert shares == [config]


def test_more_processes_than_the_pool_has_connections_for_are_refused(node: Node) -> None:
    text = changed("[database]", "pool_connections_max = 7", changed("[node]", "workers = 4"))
    (line,) = node.complaints(text)
    assert line == "database.pool_connections_max: must be at least 8, 2 for each of the node's 4 workers"

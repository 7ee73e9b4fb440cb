"""What a Postgres URL says: its servers, and that none of them may be a standby."""

from __future__ import annotations

import pytest

from repo_node.dsn import BadDsn, name_server, parse_dsn

TWO = (("a", 5432), ("b", 5433))


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("postgresql://u:p@a/d", (("a", 5432),)),
        ("postgresql://u:p@a,b:5433/d", TWO),
        ("postgres:///d?host=a,b:5433", TWO),
        ("postgresql://a,b/d?port=5432,5433", TWO),
        ("postgresql://a,b/d?port=7", (("a", 7), ("b", 7))),
        ("postgresql://[::1]:7,[::2]/d", (("::1", 7), ("::2", 5432))),
        ("postgresql://u@%2Frun%2Fpostgresql/d", (("/run/postgresql", 5432),)),
        ("postgresql:///d", ()),
    ],
)
def test_servers_are_those_of_the_url_with_their_ports(url: str, servers: tuple[tuple[str, int], ...]) -> None:
    assert parse_dsn(url).servers == servers


def test_ports_left_out_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    assert parse_dsn("postgresql://a,b:7/d").servers == (("a", 6000), ("b", 7))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("postgresql://a/d", "primary"),
        ("postgresql://a,b/d", "read-write"),
        ("postgresql://a/d?target_session_attrs=read-write", "read-write"),
        ("postgresql://a,b/d?target_session_attrs=primary", "primary"),
    ],
)
def test_a_server_that_takes_writes_is_wanted_where_several_are_named(url: str, target: str) -> None:
    assert parse_dsn(url).target == target


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("mysql://x:canary@a/d", "postgresql://"),
        ("postgresql://x:canary@a,/d", "empty"),
        ("postgresql://x:canary@a,,b/d", "empty"),
        ("postgresql://x:canary@a:x/d", "port"),
        ("postgresql://x:canary@a:70000/d", "port"),
        ("postgresql://x:canary@a,b,c/d?port=1,2", "3 hosts and 2 ports"),
        ("postgresql://x:canary@[::1]7/d", "IPv6"),
        ("postgresql://x:canary@a,b/d?target_session_attrs=any", "standby"),
        ("postgresql://x:canary@a,b/d?target_session_attrs=standby", "standby"),
    ],
)
def test_what_cannot_be_used_is_refused_with_advice_and_without_the_password(url: str, advice: str) -> None:
    with pytest.raises(BadDsn, match=advice) as refusal:
        parse_dsn(url)
    assert "canary" not in str(refusal.value)


def test_servers_are_named_as_people_write_them() -> None:
    assert [name_server(one) for one in (("a", 1), ("::1", 2), ("/run/x", 3))] == ["a:1", "[::1]:2", "/run/x"]

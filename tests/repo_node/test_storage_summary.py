"""``api/storageinfo``: what is stored by the last count, in Artifactory's document and its clients' number formats."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.api.storage_info import say_share, say_size
from repo_node.db import storage_summary
from tests.repo_node.nodes import RunningCluster, random_bytes, wait_until

PATH = "/artifactory/api/storageinfo"
REPOSITORIES = "/artifactory/api/repositories"

# As peimanja/artifactory_exporter reads numbers, and what it multiplies them by.
NUMBER = re.compile(r"(\d{1,3}(?:\d|(?:,\d{3})*(?:\.\d{1,2})?)?) ?(%|bytes|[KMGT]B)?")
UNITS = {None: 1, "bytes": 1, "%": 0.01, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
FILE_STORE = re.compile(rf"{NUMBER.pattern} \((?:100|[1-9]?[0-9])(?:\.[0-9]{{1,2}})?%\)")


def info(cluster: RunningCluster) -> dict[str, Any]:
    answer = cluster.admin.get(PATH)
    assert answer.status == 200, answer
    document: dict[str, Any] = answer.json()
    return document


def counted_anew(cluster: RunningCluster) -> dict[str, Any]:
    """Have everything counted, and return what is told then."""
    wait_until(lambda: cluster.admin.get(PATH).status == 200)
    before = info(cluster)["calculatedAt"]
    assert cluster.admin.post_json(f"{PATH}/calculate", {}).status == 202
    wait_until(lambda: info(cluster)["calculatedAt"] > before)
    return info(cluster)


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["repoKey"]: row for row in document["repositoriesSummaryList"]}


def test_repositories_trash_and_total_are_told_as_they_were_counted(one: RunningCluster) -> None:
    local, virtual = f"sum-{uuid4().hex[:8]}", f"sum-{uuid4().hex[:8]}-all"
    assert one.admin.put_json(f"{REPOSITORIES}/{local}", {"rclass": "local"}).status == 200
    assert one.admin.put_json(f"{REPOSITORIES}/{virtual}", {"rclass": "virtual", "repositories": [local]}).status == 200
    same = random_bytes(1000)
    for path, body in (("a/b/one", same), ("a/two", same), ("three", random_bytes(500)), ("gone", random_bytes(70))):
        assert one.admin.put(f"/artifactory/{local}/{path}", body).status == 201
    before = rows_of(counted_anew(one))
    assert one.admin.delete(f"/artifactory/{local}/gone").status == 204
    document = counted_anew(one)
    rows = rows_of(document)
    assert rows[local] == {
        "repoKey": local, "repoType": "LOCAL", "foldersCount": 2, "filesCount": 3, "usedSpace": "2.44 KB",
        "usedSpaceInBytes": 2500, "itemsCount": 5, "packageType": "Generic", "projectKey": "default",
        "percentage": rows[local]["percentage"],
    }  # fmt: skip
    assert rows[local]["percentage"].endswith("%")
    virtual_row = rows[virtual]
    assert (virtual_row["repoType"], virtual_row["usedSpace"], virtual_row["percentage"]) == (
        "VIRTUAL",
        "0 bytes",
        "0%",
    )
    assert rows["auto-trashcan"]["usedSpaceInBytes"] == before["auto-trashcan"]["usedSpaceInBytes"] + 70
    keys = [row["repoKey"] for row in document["repositoriesSummaryList"]]
    assert keys == [*sorted(keys[:-2]), "auto-trashcan", "TOTAL"] and len(set(keys)) == len(keys)
    for name in ("foldersCount", "filesCount", "itemsCount", "usedSpaceInBytes"):
        assert rows["TOTAL"][name] == sum(row[name] for key, row in rows.items() if key != "TOTAL"), name


def test_binaries_are_counted_once_and_every_figure_is_a_string_that_the_exporter_reads(one: RunningCluster) -> None:
    folder, body = f"/artifactory/generic-local/{uuid4().hex}", random_bytes(2048)
    before = counted_anew(one)["binariesSummary"]
    for name in ("a", "b", "c"):
        assert one.admin.put(f"{folder}/{name}", body).status == 201
    document = counted_anew(one)
    after = document["binariesSummary"]
    grown = {name: number_of(after[name]) - number_of(before[name]) for name in after}
    assert (grown["binariesCount"], grown["artifactsCount"], grown["itemsCount"]) == (1, 3, 4)
    assert after["optimization"].endswith("%")
    assert set(document["fileStoreSummary"]) == {
        "storageType", "storageDirectory", "totalSpace", "usedSpace", "freeSpace",
    }  # fmt: skip
    for name in ("usedSpace", "freeSpace"):
        assert FILE_STORE.fullmatch(document["fileStoreSummary"][name])
    assert number_of(document["fileStoreSummary"]["totalSpace"]) > 0
    for row in document["repositoriesSummaryList"]:
        assert number_of(row["usedSpace"]) >= 0 and NUMBER.fullmatch(row["percentage"])


def test_a_file_system_that_shards_share_is_counted_once(one: RunningCluster) -> None:
    wait_until(lambda: one.admin.get(PATH).status == 200)
    [capacity] = {row["capacity_bytes"] for row in one.sql("SELECT capacity_bytes FROM shard_space")}
    total = number_of(info(one)["fileStoreSummary"]["totalSpace"])
    assert abs(total - capacity) <= capacity / 100


def test_a_count_runs_once_however_many_ask_and_not_beside_another(one: RunningCluster) -> None:
    before = counted_anew(one)["calculatedAt"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: one.admin.post_json(f"{PATH}/calculate", {}).status, range(8)))
    assert answers == [202] * 8
    wait_until(lambda: info(one)["calculatedAt"] > before)
    database = one.first.node.database

    async def beside_another() -> bool:
        async with database.apart() as connection:
            await connection.fetchval("SELECT pg_advisory_lock(3, 2)")
            return await storage_summary.calculate(database)

    assert one.on_loop(beside_another()) is False


def test_before_the_first_count_the_figures_are_unknown_not_zero(one: RunningCluster) -> None:
    wait_until(lambda: one.admin.get(PATH).status == 200)
    [kept] = one.sql("DELETE FROM storage_summary RETURNING calculated_at")
    answer = one.admin.get(PATH)
    assert answer.status == 503 and answer.headers["Retry-After"]
    counted = one.admin.post_json(f"{PATH}/calculate", {})
    assert counted.status == 202
    wait_until(lambda: one.admin.get(PATH).status == 200)
    assert info(one)["calculatedAt"] >= kept["calculated_at"].isoformat()[:19]


def test_only_an_administrator_is_told(one: RunningCluster) -> None:
    for client in (one.first.client(), one.with_token("read", "write")):
        assert client.get(PATH).status in (401, 403)
        assert client.post_json(f"{PATH}/calculate", {}).status in (401, 403)


def number_of(text: str) -> float:
    """Return a number as the exporter reads it."""
    match = NUMBER.match(text)
    assert match is not None, text
    return float(match[1].replace(",", "")) * UNITS[match[2]]


@given(st.integers(0, 1 << 60))
def test_a_size_is_written_so_that_it_is_read_back_within_a_hundredth(count_bytes: int) -> None:
    text = say_size(count_bytes)
    assert NUMBER.fullmatch(text)
    assert number_of(text) == pytest.approx(count_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.00 KB"), (1 << 20, "1.00 MB"), (3 << 50, "3,072.00 TB")],
)
def test_sizes_in_artifactorys_units(count_bytes: int, text: str) -> None:
    assert say_size(count_bytes) == text


def test_shares() -> None:
    assert [say_share(0, 0), say_share(0, 5), say_share(1, 3), say_share(3, 1)] == ["0%", "0%", "33.33%", "300.00%"]

"""Properties as clients set, read, change and drop them, of one artifact and of whole trees."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_node.paths import FORBIDDEN_IN_KEYS, BadPath
from repo_node.properties import parse_properties
from tests.repo_node.http import Answer
from tests.repo_node.nodes import RunningCluster, errors_of, new_path

PLAIN = st.characters(exclude_categories=("Cc", "Cs"))
KEYS = st.text(PLAIN.filter(lambda c: c not in FORBIDDEN_IN_KEYS), min_size=1, max_size=20)
VALUES = st.text(PLAIN, max_size=20)
PROPERTIES = st.dictionaries(KEYS, st.lists(VALUES, min_size=1, max_size=4, unique=True), min_size=1, max_size=5)


def escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\,;|=" else c for c in text)


def written(properties: dict[str, list[str]], separator: str) -> str:
    return separator.join(f"{escaped(key)}={','.join(map(escaped, values))}" for key, values in properties.items())


@given(PROPERTIES, st.sampled_from([";", "|"]))
def test_whatever_is_escaped_is_read_as_it_was(properties: dict[str, list[str]], separator: str) -> None:
    found = parse_properties(written(properties, separator))
    assert {key: list(values) for key, values in found.items()} == properties


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = parse_properties(text)
    except Exception as error:
        assert type(error).__name__ in ("BadPath", "RequestError")
    else:
        assert found and all(values for values in found.values())


def test_one_name_may_be_given_twice_and_a_value_may_hold_an_equals_sign() -> None:
    assert parse_properties("a=1;a=2=3,4") == {"a": ("1", "2=3", "4")}
    assert parse_properties("flag") == {"flag": ("",)}
    with pytest.raises(BadPath):
        parse_properties("a b=1")


# ---------------------------------------------------------------- over REST


def storage(path: str) -> str:
    return path.replace("/artifactory/", "/artifactory/api/storage/", 1)


def metadata(path: str) -> str:
    return path.replace("/artifactory/", "/artifactory/api/metadata/", 1)


def set_to(one: RunningCluster, path: str, text: str, more: str = "") -> Answer:
    return one.admin.put(f"{storage(path)}?properties={quote(text)}{more}")


def patch(one: RunningCluster, path: str, props: Any, query: str = "") -> Answer:
    return one.admin.request("PATCH", metadata(path) + query, json.dumps({"props": props}).encode())


def properties(one: RunningCluster, path: str) -> dict[str, list[str]]:
    answer = one.admin.get(f"{storage(path)}?properties")
    if answer.status == 404:
        assert "No properties could be found" in errors_of(answer)[1]
        return {}
    found: dict[str, list[str]] = answer.json()["properties"]
    return found


def test_properties_are_set_changed_and_dropped(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    assert set_to(one, path, "os=linux,mac;qa=done").status == 204
    assert properties(one, path) == {"os": ["linux", "mac"], "qa": ["done"]}
    assert set_to(one, path, "qa=again|more=a\\=b").status == 204
    assert properties(one, path) == {"os": ["linux", "mac"], "qa": ["again"], "more": ["a=b"]}
    assert one.admin.delete(f"{storage(path)}?properties=os,no-such").status == 204
    assert properties(one, path) == {"qa": ["again"], "more": ["a=b"]}
    assert patch(one, path, {"qa": None, "more": "text", "n": [1, "2", True]}).status == 204
    assert properties(one, path) == {"more": ["text"], "n": ["1", "2", "true"]}
    assert one.admin.delete(f"{storage(path)}?properties=more,n").status == 204
    assert properties(one, path) == {}
    assert one.admin.get(path).body == b"x"


def test_a_change_shows_in_last_updated_alone(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    before = one.admin.get(storage(path)).json()
    set_to(one, path, "a=1")
    after = one.admin.get(storage(path)).json()
    assert after.pop("lastUpdated") > before.pop("lastUpdated")
    assert after == before


@pytest.mark.parametrize("query", ["", "&recursive=1"])
def test_a_folder_takes_all_in_it_along(one: RunningCluster, query: str) -> None:
    top = new_path().rpartition("/")[0]
    paths = [f"{top}/a", f"{top}/sub/b", f"{top}/sub/deeper/c"]
    for path in [*paths, f"{top}-beside/d", f"{top}.e"]:
        one.admin.put(path, b"x")
    assert set_to(one, top, "k=v", query).status == 204
    for path in [top, f"{top}/sub", *paths]:
        assert properties(one, path) == {"k": ["v"]}
    assert properties(one, f"{top}-beside/d") == properties(one, f"{top}.e") == {}
    assert set_to(one, top, "only=me", "&recursive=0").status == 204
    assert properties(one, top) == {"k": ["v"], "only": ["me"]}
    assert properties(one, paths[0]) == {"k": ["v"]}
    assert patch(one, f"{top}/sub", {"k": None, "p": "1"}, "?recursiveProperties=1").status == 204
    assert properties(one, paths[2]) == {"p": ["1"]} and properties(one, paths[0]) == {"k": ["v"]}
    assert patch(one, top, {"p": "2"}, "?recursive=0").status == 204
    assert properties(one, paths[2]) == {"p": ["1"]}


def test_more_than_a_page_is_changed_in_steps(one: RunningCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repo_node.properties.PAGE", 3)
    top = new_path().rpartition("/")[0]
    paths = [f"{top}/{folder}/{name}" for folder in ("a", "a-b", "a/b") for name in ("x", "y", "z")]
    for path in paths:
        one.admin.put(path, b"x")
    assert set_to(one, top, "k=v").status == 204
    assert [properties(one, path) for path in paths] == [{"k": ["v"]}] * len(paths)


def test_the_root_has_none_but_passes_them_on(one: RunningCluster) -> None:
    one.admin.put_json("/artifactory/api/repositories/props-root", {})
    one.admin.put("/artifactory/props-root/a", b"x")
    one.admin.put("/artifactory/props-root/b/c", b"x")
    assert set_to(one, "/artifactory/props-root", "k=v").status == 204
    assert properties(one, "/artifactory/props-root/a") == properties(one, "/artifactory/props-root/b/c")
    assert errors_of(set_to(one, "/artifactory/props-root", "k=v", "&recursive=0"))[0] == 400


@pytest.mark.parametrize("text", ["", "a b=1", "=1", "a/b=1", "a+=1", "x" * 300 + "=1", "a=\x07"])
def test_what_cannot_be_a_property_is_refused(one: RunningCluster, text: str) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    assert set_to(one, path, text).status == 400
    assert properties(one, path) == {}


@pytest.mark.parametrize("props", [None, {}, [], "x", {"a": {}}, {"a": [[]]}, {"a b": "1"}, {"": "1"}, {"a": "\0"}])
def test_a_patch_that_cannot_be_is_refused(one: RunningCluster, props: Any) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    assert patch(one, path, props).status == 400


def test_what_is_not_there_has_no_properties(one: RunningCluster) -> None:
    path = new_path()
    for answer in (set_to(one, path, "a=1"), patch(one, path, {"a": "1"}), set_to(one, "/artifactory/none/x", "a=1")):
        assert "Unable to find item" in errors_of(answer)[1] and answer.status == 404


def test_too_much_is_refused_and_changes_nothing(one: RunningCluster) -> None:
    top = new_path().rpartition("/")[0]
    for name in ("a", "b"):
        one.admin.put(f"{top}/{name}", b"x")
    with one.settings(properties_bytes_max=1024):
        assert patch(one, f"{top}/b", {"k": "x" * 900}).status == 204
        answer = patch(one, top, {"other": "y" * 200})
        assert errors_of(answer)[0] == 400 and "properties_bytes_max" in errors_of(answer)[1]
        assert properties(one, f"{top}/a") == properties(one, top) == {}


def test_matrix_parameters_constrain_what_is_found(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(f"{path};color=red,blue;os=linux", b"x")
    found = {
        "": 200,
        ";color=red": 200,
        ";color=red,blue": 200,
        ";color=green": 404,
        ";color=red,green": 404,
        ";shape=round": 200,  # it has no shape: nothing conflicts
        ";shape+=round": 404,
        ";color+=red;os+=linux": 200,
        ";color+=red;shape+=x": 404,
    }
    assert {asked: one.admin.get(path + asked).status for asked in found} == found
    assert {asked: one.admin.head(path + asked).status for asked in found} == found


def test_properties_live_with_the_artifact(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(f"{path};v=1", b"first")
    set_to(one, path, "qa=done")
    one.admin.put(f"{path};v=2", b"second")
    assert properties(one, path) == {"v": ["2"]}, "an upload says anew what it is"
    restore = path.replace("/artifactory/", "/artifactory/api/trash/restore/", 1)
    set_to(one, path, "late=1")
    assert one.admin.request("POST", restore).status == 202, "a change of properties is no restore"
    assert one.admin.get(path).body == b"first"
    assert properties(one, path) == {"v": ["1"], "qa": ["done"]}


def test_a_token_that_may_not_write_may_not_annotate(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    reader = one.with_token("read")
    assert reader.put(f"{storage(path)}?properties=a=1").status == 403
    assert reader.delete(f"{storage(path)}?properties=a").status == 403
    assert reader.request("PATCH", metadata(path), b'{"props":{"a":"1"}}').status == 403


def test_each_change_leaves_one_event(one: RunningCluster) -> None:
    path = new_path()
    one.admin.put(path, b"x")
    set_to(one, path, "a=1")
    set_to(one, path, "a=1")
    patch(one, path, {"a": None})
    rows = one.sql(
        "SELECT principal, detail FROM events WHERE kind = 'properties' AND path = $1 ORDER BY id",
        path.removeprefix("/artifactory/generic-local/"),
    )
    assert [(row["principal"], json.loads(row["detail"])) for row in rows] == [
        ("admin", {"items": 1, "set": {"a": ["1"]}, "dropped": []}),
        ("admin", {"items": 1, "set": {}, "dropped": ["a"]}),
    ]


def test_a_folder_is_made_with_its_properties(one: RunningCluster) -> None:
    path = new_path("-folder")
    for number, suffix in enumerate((";k=1/", "/;k=1", ";k=1/;k=1")):
        assert one.admin.put(f"{path}{number}{suffix}").status == 201
        url = f"{path}{number}".replace("/artifactory/", "/artifactory/api/storage/")
        assert one.admin.get(f"{url}?properties").json()["properties"] == {"k": ["1"]}


def test_a_value_that_comes_twice_is_kept_once_and_no_value_is_no_property(one: RunningCluster) -> None:
    path = new_path()
    url = path.replace("/artifactory/", "/artifactory/api/storage/")
    one.admin.put(f"{path};a=1,2,1;a=2;b=x")
    assert one.admin.get(f"{url}?properties").json()["properties"] == {"a": ["1", "2"], "b": ["x"]}
    one.admin.put(f"{url}?properties=a=3,3;c=1;c=1")
    patch = {"props": {"b": [], "d": ["y", "z", "y"]}}
    metadata = url.replace("/storage/", "/metadata/")
    assert one.admin.request("PATCH", metadata, json.dumps(patch).encode()).status == 204
    found = one.admin.get(f"{url}?properties").json()["properties"]
    assert found == {"a": ["3"], "c": ["1"], "d": ["y", "z"]}

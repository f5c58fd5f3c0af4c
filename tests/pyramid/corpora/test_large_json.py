"""Large JSON documents: every entry where it lies, whatever the pieces that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid.corpora import large_json
from pyramid.corpora.large_json import entries
from pyramid.errors import DataError, UnsafeInputError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\\\\")), PLAIN, max_size=6),
    st.lists(PLAIN, max_size=5),
    st.tuples(st.integers(1, 40), st.sampled_from([None, 1]), st.booleans()),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_entries_load_to_what_json_reads(
    tmp_path: Path, data: dict[str, Any], items: list[Any], style: tuple[int, int | None, bool]
) -> None:
    piece, indent, ascii_only = style
    document = {**data, "videos": items}
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    before = large_json._PIECE
    large_json._PIECE = piece
    try:
        assert [entry.load() for entry, _ in entries(str(path), "videos")] == items
        every = [entry for entry, _ in entries(str(path))]
        inside = [entry.load() for entry, _ in entries(str(path), "videos", or_all=True)]
    finally:
        large_json._PIECE = before
    assert [entry.load() for entry in every] == list(document.values())
    assert sorted(map(json.dumps, inside)) == sorted(
        [json.dumps(value) for name, value in document.items() if name != "videos"] + [json.dumps(v) for v in items]
    )


def test_members_of_an_object_inside_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "d").write_text('{"date": 1, "videos": {"a": [1], "b": {}}, "c": 2}')
    assert [e.key for e, _ in entries(str(tmp_path / "d"), "videos")] == ["a", "b"]
    assert [e.key for e, _ in entries(str(tmp_path / "d"), "videos", or_all=True)] == ["date", "a", "b", "c"]


def test_cut_short_anywhere_it_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"a": {"x": [1, 2.5, "y"]}, "videos": [{"u": 1}, {"u": None}], "n": 12})
    path = tmp_path / "d.json"
    for end in range(len(text)):
        path.write_text(text[:end])
        with pytest.raises(DataError, match=r"d\.json', byte \d+"):
            list(entries(str(path)))


@pytest.mark.parametrize(
    "text", ["{1: 2}", '{"a" 2}', '{"a": 1,, "b": 2}', '{"a": 1 "b": 2}', '{"a": nul}', "[" * 100_000]
)
def test_other_texts_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(DataError, match=r"d\.json"):
        list(entries(str(tmp_path / "d.json")))
    (tmp_path / "d.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(DataError, match=r"d\.json"):
        list(entries(str(tmp_path / "d.json")))


def test_an_entry_larger_than_allowed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "MAX_ENTRY_BYTES", 1000)
    monkeypatch.setattr(large_json, "_PIECE", 100)
    (tmp_path / "d.json").write_text(json.dumps({str(i): "x" * 500 for i in range(20)}))
    assert len(list(entries(str(tmp_path / "d.json")))) == 20
    (tmp_path / "d.json").write_text(json.dumps({"a": "x" * 5000}))
    with pytest.raises(UnsafeInputError, match="larger than 1000"):
        list(entries(str(tmp_path / "d.json")))

"""Deny and allow lists as files: what is read, what is counted, what is refused."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from nightjar.config import AllowList, DenyList
from nightjar.errors import InputError
from nightjar.sources import raw_files
from nightjar.stages import plain_lists
from nightjar.stages.plain_lists import PlainList

COLUMNS = {"user_id": "u", "item_id": "i"}


def read(path: Path, content: bytes | str, **source: Any) -> tuple[list[tuple[str, str]], int, int]:
    """(rows, rows counted, unusable) of one file with that content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    kind = "jsonl" if "jsonl" in path.name else path.suffix[1:].replace("gz", "csv")
    files = DenyList.model_validate({"path": str(path), "format": kind, "columns": COLUMNS, **source})
    found = PlainList(
        files, raw_files(files, date(2026, 1, 1), 1, "x"), "user_id", "item_id", "retrieve.deny.0"
    )
    rows = [tuple(row.values()) for batch in found.batches() for row in batch.to_pylist()]
    return rows, found.counts.rows, found.counts.unusable


def test_csv_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    content = 'i,extra,u\n007,x, ann \n1.50,"a, b",\u00e9va\n,x,nobody\n8,x,\ntoo,few\n" 9",x,"two\tbs"\n'
    rows, total, unusable = read(tmp_path / "a.csv", content)
    assert rows == [("ann", "007"), ("éva", "1.50"), ("two\tbs", "9")]
    assert (total, unusable) == (6, 3)


def test_csv_without_a_header_with_another_delimiter_and_packed(tmp_path: Path) -> None:
    packed = gzip.compress(b"ann;1\nbob;2\n")
    rows, total, _ = read(tmp_path / "a.csv.gz", packed, delimiter=";", names=["u", "i"])
    assert rows == [("ann", "1"), ("bob", "2")] and total == 2


def test_an_empty_file_is_an_empty_list(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "") == ([], 0, 0)
    assert read(tmp_path / "b.csv", "u,i\n") == ([], 0, 0)
    assert read(tmp_path / "c.jsonl", "\n\n") == ([], 0, 0)


def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_lists, "LINES", 2)
    lines = [
        json.dumps({"u": "ann", "i": 7}),
        json.dumps({"u": "bob", "i": None}),
        "not json",
        "",
        json.dumps(["u", "i"]),
        json.dumps({"i": "x", "u": {"id": 1}}),
        json.dumps({"u": " cleo ", "i": "\u00e9"}),
    ]
    rows, total, unusable = read(tmp_path / "a.jsonl", "\n".join(lines))
    assert rows == [("ann", "7"), ("cleo", "é")]
    assert (total, unusable) == (6, 4)


def test_parquet_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"i": [1, None, 3], "other": [0, 0, 0], "u": ["ann", "bob", "cleo"]}), path)
    rows, total, unusable = read(path, path.read_bytes())
    assert rows == [("ann", "1"), ("cleo", "3")] and (total, unusable) == (3, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "u,j\n1,2\n"), ("a.parquet", b"no parquet"), ("a.csv", b"u,i\n\xff\xfe,2\n")],
)
def test_a_file_that_is_no_list_is_named(tmp_path: Path, name: str, content: bytes | str) -> None:
    with pytest.raises(InputError, match=rf"retrieve.deny.0: .*{name} cannot be read"):
        read(tmp_path / name, content)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        (DenyList, {"columns": {"user_id": "u"}}, "no mapping for item_id"),
        (DenyList, {"columns": {**COLUMNS, "segment": "s"}}, "'segment' is no column of ours"),
        (DenyList, {"columns": {"user_id": "u"}, "sql": {"item_id": "upper(i)"}}, "neither `sql`"),
        (AllowList, {"columns": {"item_id": "i"}}, "no mapping for segment"),
        (
            AllowList,
            {
                "columns": COLUMNS,
                "members": {
                    "path": "x",
                    "format": "csv",
                    "columns": {"user_id": "u", "segment": "s"},
                },
            },
            "needs no members",
        ),
        (AllowList, {"columns": {"segment": "s", "item_id": "i"}, "others": "some"}, "everything"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused(kind: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind.model_validate({"path": "x", "format": "csv", **more})

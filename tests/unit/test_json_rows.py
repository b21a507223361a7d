"""scripts.lib.files: JSON lists written row by row, and objects let go while they are read."""

from __future__ import annotations

import pytest

from scripts.lib import files


@pytest.mark.parametrize("rows", [[], [{}], [{"b": 1, "a": ["x\ny", {"c": None}]}, {"a": "中\u2028"}, {"z": []}]])
def test_a_list_written_row_by_row_has_the_bytes_of_one_written_whole(tmp_path, rows):
    files.write_json(tmp_path / "whole.json", rows)
    with (tmp_path / "rows.json").open("w", encoding="utf-8") as file:
        files.write_json_list(file, iter(rows))
    assert (tmp_path / "rows.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_hook_decides_what_stays_of_each_object(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text('{"files": {"a": {"sha256": "x", "size": 1}}, "rest": {"b": 2}}')
    found = files.read_json(path, hook=lambda record: "kept" if "sha256" in record else record)
    assert found == {"files": {"a": "kept"}, "rest": {"b": 2}}

"""The benchmark of scale: its rows, and that its smallest case works."""

from benchmarks.scale.__main__ import line_of, measure


def test_a_stage_is_measured_with_its_files(tmp_path):
    rows = [measure("trials", stage, 3, tmp_path) for stage in ("sweep", "draw")]
    assert [row["stage"] for row in rows] == ["sweep", "draw"]
    assert rows[1]["file_bytes"].keys() == {"sweep.json", "table.md"}
    assert (tmp_path / "table.md").read_text().count("\n| ") == 4
    for row in rows:
        assert row["peak_bytes"] > row["file_bytes"]["sweep.json"] > 0
        assert line_of({**row, "growth": 2.0}).count("|") == 9

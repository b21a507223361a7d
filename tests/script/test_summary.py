"""The last lines of `make demo`."""

from __future__ import annotations

import json

from scripts.summary import main, summary_lines


def test_summary_names_numbers_verdict_and_paths(tmp_path, capsys):
    (tmp_path / "results/report").mkdir(parents=True)
    (tmp_path / "results/report/index.html").touch()
    metrics = {
        "base_exact_match": 10.0,
        "tuned_exact_match": 40.0,
        "tuned_minus_base_exact_match": 30.0,
        "tuned_minus_base_exact_match_low": 12.0,
        "tuned_minus_base_exact_match_high": 45.0,
    }
    (tmp_path / "results/metrics.json").write_text(json.dumps(metrics))
    assert main(["--root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "tuned - base +30.0 points, interval +12.0 to +45.0: tuned is better" in printed
    assert "results/report/index.html" in printed
    assert "results/gguf" not in printed


def test_interval_over_zero_is_no_detectable_difference(tmp_path):
    (tmp_path / "results").mkdir()
    names = ("", "_low", "_high")
    values = dict(zip((f"tuned_minus_base_exact_match{name}" for name in names), (1.0, -2.0, 4.0), strict=True))
    (tmp_path / "results/metrics.json").write_text(json.dumps(values))
    assert "no detectable difference" in "\n".join(summary_lines(tmp_path))


def test_missing_or_broken_metrics_are_told(tmp_path):
    assert "no results/metrics.json yet" in summary_lines(tmp_path)[0]
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text("{")
    assert "no results/metrics.json yet" in summary_lines(tmp_path)[0]

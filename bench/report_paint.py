"""First paint and filtering of the report with Open-EQA's 1,636 questions, in Chromium.   By hand:

    python -m bench.report_paint [--questions 1636] [--repeats 5]

`baseline` is what people write by hand: one HTML page with every question, its eight pictures and answers in a table,
here by pandas' own to_html, filtered by hiding rows. `ours` is results/report/index.html with the same questions and
pictures. Seconds are medians of the first contentful paint; `filter_ms` is from a key in the search field to the frame
that shows what is left; `loaded_s` until the browser has loaded everything. `select_ms`, `sort_ms` and `score_ms` are the
same for a choice in the fields by category, source and change, by order, and by score, which the page by hand does not
have. Of several the slowest counts. Memory is Chromium's, all processes. Times are printed, not asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.lib import finish, side

TEST_EPISODES = 6
FILTERS = ("sofa", "red chair", "what color", "")
# field: values chosen one after the other; the last one takes the choice back
CHOICES = {
    "select_ms": (("f-category", ("1", "2", "")), ("f-source", ("1", "")), ("f-change", ("better", "disagree", ""))),
    "sort_ms": (("f-sort", ("up", "down", "low", "room")),),
    "score_ms": (("f-metric", ("1", "2", "0")),),
}


def make_pages(folder: Path, questions: int) -> None:
    """Both pages over the same results."""
    import html

    import pandas

    from scripts import write_report
    from scripts.lib.files import read_json, read_jsonl
    from scripts.make_demo_episodes import QUESTIONS_AN_EPISODE
    from tests.report.results_folder import make_results, page_arguments

    own = TEST_EPISODES * QUESTIONS_AN_EPISODE
    make_results(folder, test_episodes=TEST_EPISODES, copies=-(-questions // own), most=questions)
    if write_report.main(page_arguments(folder, "link")):
        raise SystemExit("bench.report_paint: write_report failed")
    episodes = read_json(folder / "results/frames/manifest.json")["episodes"]
    table = {}
    for model in ("base", "tuned", "blind"):
        for row in read_jsonl(folder / f"results/metrics/{model}.questions.jsonl"):
            line = table.setdefault(row["question_id"], {})
            if not line:
                names = episodes[row["episode_history"]]["frames"]
                line["frames"] = "".join(f'<img src="../frames/{name}" width="130">' for name in names)
                line |= {key: html.escape(row[key]) for key in ("question", "answer", "category", "source")}
            line[model] = html.escape(row["prediction"])
            line[f"{model} exact match"], line[f"{model} F1"] = row["exact_match"], row["f1"]
    body = pandas.DataFrame(table.values()).to_html(escape=False, table_id="list")
    page = f"<!doctype html><meta charset=utf-8><title>answers</title><input id=f-text>{body}"
    (folder / "results/report/table.html").write_text(page, encoding="utf-8")


def browse(page_file: Path, repeats: int) -> dict:
    """Open a page `repeats` times in a fresh Chromium; medians."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("bench.report_paint: no chromium here; install Debian's package chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    by_hand = "table.html" in page_file.name
    paints, loads, filters, memory = [], [], [], []
    chosen: dict[str, list[float]] = {} if by_hand else {name: [] for name in CHOICES}
    for _ in range(repeats):
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.set_default_timeout(300_000)
            page.goto(page_file.resolve().as_uri())
            if page.locator("article, noscript").count():
                page.wait_for_selector("html[data-ready]")
            page.wait_for_timeout(500)
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            loads.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            if by_hand:
                page.evaluate(HIDE_ROWS)
            filters.append(max(page.evaluate(FILTER, ["f-text", "input", words]) for words in FILTERS))
            for name, times in chosen.items():
                values = [(field, value) for field, all_values in CHOICES[name] for value in all_values]
                times.append(max(page.evaluate(FILTER, [field, "change", value]) for field, value in values))
            memory.append(chromium_mb())
            browser.close()
    return {
        "seconds": round(statistics.median(paints) / 1000, 4),
        "loaded_s": round(statistics.median(loads) / 1000, 3),
        "filter_ms": round(statistics.median(filters), 1),
        **{name: round(statistics.median(times), 1) for name, times in chosen.items()},
        "peak_mb": round(max(memory)),
    }


# what a page by hand would do: look at the text of each row
HIDE_ROWS = """() => document.getElementById('f-text').addEventListener('input', (event) => {
  const words = event.target.value.toLowerCase().split(' ').filter(Boolean);
  for (const row of document.querySelectorAll('#list tbody tr')) {
    const text = row.textContent.toLowerCase();
    row.style.display = words.every((word) => text.includes(word)) ? '' : 'none';
  }
})"""
FILTER = """([name, kind, value]) => new Promise((done) => {
  const field = document.getElementById(name);
  field.value = value;
  const started = performance.now();
  field.dispatchEvent(new Event(kind));
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(performance.now() - started))));
})"""


def chromium_mb() -> float:
    """Proportional memory of this process's children, in MiB: shared pages are counted once."""
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Make both pages, open both, print."""
    parser = argparse.ArgumentParser(prog="bench.report_paint", description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1636, help="test questions; Open-EQA has 1,636 in all")
    parser.add_argument("--repeats", type=int, default=5, help="times that each page is opened")
    parser.add_argument("--side", nargs=3, metavar=("NAME", "PAGE", "REPEATS"), help="one side, called by this bench")
    args = parser.parse_args(argv)
    if args.side:
        print(json.dumps(browse(Path(args.side[1]), int(args.side[2]))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        make_pages(Path(scratch), args.questions)
        report = Path(scratch) / "results/report"
        baseline = side("report_paint", "baseline", report / "table.html", args.repeats)
        ours = side("report_paint", "ours", report / "index.html", args.repeats)
    names = ("filter_ms", "loaded_s", *CHOICES)
    sides = (("baseline", baseline), ("ours", ours))
    facts = {f"{who}_{name}": one[name] for who, one in sides for name in names if name in one}
    return finish(
        "report_paint", baseline, ours, questions=args.questions, baseline_peak_mb=baseline["peak_mb"], **facts
    )


if __name__ == "__main__":
    sys.exit(main())

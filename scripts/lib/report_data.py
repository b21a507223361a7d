"""What the report shows, gathered from results/: every part may be missing or broken, and is then named, not fatal.

The page needs numbers in a shape that a template can print without thinking; all arithmetic of the charts is here.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.errors import EqaError
from scripts.lib.files import is_disabled, read_json, read_jsonl
from scripts.lib.llm_match import match_score

if TYPE_CHECKING:
    from scripts.lib.provenance import Job

MODELS = {
    "base": ("Base", "the base model as it came"),
    "tuned": ("Tuned", "the base model with the trained adapter"),
    "blind": ("Blind", "the base model without the pictures: what the words alone give away"),
    "majority": ("Majority", "the most common training answer of each category, no model at all"),
}
METRICS = {
    "exact_match": ("Exact match", "the answer equals an accepted one, but for case, articles and punctuation"),
    "f1": ("Token F1", "words shared with the closest accepted answer"),
    "bleu4": ("BLEU-4", "word sequences up to four long"),
    "rouge1": ("ROUGE-1", "single words shared"),
    "rouge2": ("ROUGE-2", "word pairs shared; an answer of one word has none"),
    "rougeL": ("ROUGE-L", "longest common run of words"),
    "chrf": ("chrF", "letter sequences shared"),
    "yes_no": ("Yes/no", "right yes or no, on questions that ask for it"),
}
JUDGED = ("llm_match", "LLM-Match", "marks of a judge model, Open-EQA's own protocol")
# order of the rules in the pipeline, for the table of times; what is not named here comes last
RULES = [
    "make_demo_episodes",
    "fetch_questions",
    "fetch_prompts",
    "list_source",
    "fetch_episodes",
    "extract_archive",
    "index_episodes",
    "split_questions",
    "sample_frames",
    "join_frames",
    "make_demo_model",
    "fetch_base_model",
    "build_sft",
    "export_parquet",
    "train_adapter",
    "merge_adapter",
    "verify_merge",
    "predict",
    "join_predictions",
    "predict_majority",
    "score",
    "judge_answers",
    "export_openeqa",
    "compare_models",
    "export_gguf",
    "prepare_ollama",
    "import_ollama",
    "bench_lmdeploy",
    "check_serving",
    "write_config",
    "write_plots",
    "write_model_card",
    "write_report",
]
# what the page shows at once of results/adapter/guards.json and results/train_log/speed.json; the rest is folded
GUARDS = {
    "linear4bit": "layers held in 4 bits",
    "linear_layers": "of linear layers to quantize",
    "nested": "with double quantization",
    "types": "4-bit type",
    "adapters": "layers with an adapter",
    "trained_parameters": "trained parameters",
}
SPEED = {
    "device": "device",
    "devices": "devices",
    "seconds": "seconds",
    "questions_per_s": "questions per second",
    "samples_per_s": "samples per second",
    "peak_gpu_mb": "GPU memory, MB",
    "peak_rss_mb": "memory, MB",
    "resumed_from_step": "resumed from step",
}
LONG_JOB_S = 1.0  # shorter jobs are folded
LONGEST_ANSWER = 100_000  # characters of an answer that the page holds; the rest stays in results/predictions
SHOWN_EPISODES = 200  # dropped episodes listed by name; the rest is counted


# ------------------------------------------------------------------------------------------------ reading


class Reader:
    """Reads files under one folder and remembers what was missing.

    Attributes:
        missing: [{"path", "why"}] in the order in which the parts were asked for.
        read: files that were there, by the names that messages give them.
    """

    def __init__(self, root: Path, shown: str = "results") -> None:
        """`root` is read; `shown` is what messages call it, so that no path of this machine gets into the page."""
        self.root, self.shown = root, shown
        self.missing: list[dict[str, str]] = []
        self.read: list[str] = []

    def note(self, relative: str, why: str) -> None:
        """Remember a missing part once."""
        entry = {"path": f"{self.shown}/{relative}", "why": why}
        if entry not in self.missing:
            self.missing.append(entry)

    def mapping(self, relative: str, optional: bool = False) -> dict:
        """A JSON object, or {} where it is missing or no object."""
        path = self.root / relative
        if not path.exists():
            if not optional:
                self.note(relative, "not there yet")
            return {}
        self.read.append(f"{self.shown}/{relative}")
        try:
            value = read_json(path)
        except (EqaError, OSError) as error:
            self.note(relative, reason(error, path))
            return {}
        if not isinstance(value, dict):
            self.note(relative, "no JSON object")
            return {}
        return clean(value)

    def rows(self, relative: str, optional: bool = False) -> list[dict]:
        """JSON objects, one a line, or [] where the file is missing or broken."""
        path = self.root / relative
        if not path.exists():
            if not optional:
                self.note(relative, "not there yet")
            return []
        self.read.append(f"{self.shown}/{relative}")
        try:
            return [clean(row) for row in read_jsonl(path)]
        except (EqaError, OSError) as error:
            self.note(relative, reason(error, path))
            return []


def reason(error: Exception, path: Path) -> str:
    """Why a file could not be read, without the path of this machine."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).replace(f"{path}: ", "")


def clean(value: object) -> object:
    """`value` with what a page cannot hold replaced: NaN and infinities by None, half surrogates and NUL by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(clean(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    return value


def number(value: object) -> float | None:
    """`value` as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def text(value: object) -> str:
    """`value` if it is text, else ''."""
    return value if isinstance(value, str) else ""


def mapping(value: object) -> dict:
    """`value` if it is an object, else {}."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list:
    """`value` if it is a list, else []."""
    return value if isinstance(value, list) else []


# ------------------------------------------------------------------------------------------------ scores


def score_of(part: object) -> dict | None:
    """{"value", "low", "high"} of one metric, or None where it has no value."""
    value = number(mapping(part).get("value"))
    if value is None:
        return None
    return {"value": value, "low": number(part.get("low")), "high": number(part.get("high"))}


def change_of(part: object) -> dict | None:
    """{"difference", "low", "high", "verdict", "minimum_detectable"} of one metric, or None."""
    part = mapping(part)
    difference = number(part.get("difference"))
    if difference is None:
        return None
    low, high = number(part.get("low")), number(part.get("high"))
    return {
        "difference": difference,
        "low": low,
        "high": high,
        "verdict": text(part.get("verdict")) or verdict(low, high),
        "minimum_detectable": number(part.get("minimum_detectable")),
    }


def verdict(low: float | None, high: float | None) -> str:
    """What an interval of a difference says."""
    if low is None or high is None:
        return "not known"
    return "better" if low > 0 else "worse" if high < 0 else "no detectable difference"


def model_labels() -> dict[str, dict]:
    """{model: {"key", "label", "name", "help"}} of the models of one run."""
    return {
        key: {"key": key, "label": label, "name": label.lower(), "help": meaning}
        for key, (label, meaning) in MODELS.items()
    }


def metric_keys(scores: Mapping[str, Mapping]) -> list[str]:
    """Metrics that at least one model has, the known ones first."""
    found = {key for result in scores.values() for key in mapping(result.get("overall"))}
    return [key for key in (*METRICS, JUDGED[0]) if key in found] + sorted(found - set(METRICS) - {JUDGED[0]})


def add_judgement(scores: dict, rows: Sequence[dict], judged: Mapping) -> None:
    """Put the judge's marks beside the other scores, as one metric more.

    Args:
        scores: of {model}.json; gains LLM-Match overall and by group.
        rows: lines of {model}.questions.jsonl; gain it where the question has a mark.
        judged: of llm_match_{model}.json.
    """
    key = JUDGED[0]
    if score_of(judged.get("overall")):
        scores.setdefault("overall", {})[key] = judged["overall"]
    for by in ("by_category", "by_source"):
        for name, one in mapping(judged.get(by)).items():
            group = mapping(scores.get(by)).get(name)
            if isinstance(group, dict) and score_of(one):
                group[key] = one
    marks = mapping(judged.get("marks"))
    for row in rows:
        mark = number(marks.get(text(row.get("question_id"))))
        if mark is not None:
            row[key] = match_score(mark)


def metric_facts(key: str) -> dict:
    """Key, label and one-line meaning of a metric."""
    if key == JUDGED[0]:
        return {"key": key, "label": JUDGED[1], "help": JUDGED[2]}
    label, meaning = METRICS.get(key, (key.replace("_", " "), ""))
    return {"key": key, "label": label, "help": meaning}


def overall_rows(
    keys: Sequence[str], scores: Mapping[str, Mapping], models: Sequence[str], pair: Mapping
) -> list[dict]:
    """One row a metric: each model's score, the change, the ceiling."""
    rows = []
    for key in keys:
        ceilings = [number(mapping(result.get("ceiling")).get(key)) for result in scores.values()]
        rows.append(
            {
                **metric_facts(key),
                "scores": {m: score_of(mapping(scores.get(m, {}).get("overall")).get(key)) for m in models},
                "change": change_of(mapping(pair.get("overall")).get(key)),
                "ceiling": next((value for value in ceilings if value is not None), None),
            }
        )
    return rows


def group_rows(by: str, key: str, scores: Mapping[str, Mapping], models: Sequence[str], pair: Mapping) -> list[dict]:
    """One row a category or source: count, each model's score of metric `key`, the change."""
    groups = {m: mapping(scores.get(m, {}).get(by)) for m in models}
    names = sorted({name for part in groups.values() for name in part} | set(mapping(pair.get(by))))
    rows = []
    for name in names:
        parts = {m: mapping(groups[m].get(name)) for m in models}
        counts = [number(part.get("count")) for part in (*parts.values(), mapping(mapping(pair.get(by)).get(name)))]
        count = next((int(value) for value in counts if value is not None), None)
        found = {m: score_of(parts[m].get(key)) for m in models}
        change = change_of(mapping(mapping(pair.get(by)).get(name)).get(key))
        if any(found.values()) or change:
            rows.append({"name": name, "count": count, "scores": found, "change": change})
    return rows


def headline(row: Mapping | None, left: Mapping, right: Mapping, count: int, spaces: int, confidence: float) -> dict:
    """The verdict in words.

    Args:
        row: of `overall_rows`, the first metric; None where there are no scores at all.
        left, right: {"key", "label", "name"} of the two models; the name is the label inside a sentence.
        count, spaces: size of the test part.
        confidence: coverage of the intervals, between 0 and 1.
    Returns:
        {"title", "detail", "tone"}: tone is better, worse, same or none.
    """
    a, b = left["name"], right["name"]
    b_first = right["label"]  # where it begins a sentence
    asked = f"{count:,} test question{'s' * (count != 1)} about {spaces:,} room{'s' * (spaces != 1)}" if count else ""
    if row is None or not (row["scores"].get(left["key"]) or row["scores"].get(right["key"])):
        return {"title": "No scores yet", "detail": "The page shows what is there.", "tone": "none"}
    first, second = row["scores"].get(left["key"]), row["scores"].get(right["key"])
    if first is None or second is None:
        there, gone = (b_first, a) if first is None else (left["label"], b)
        value = (second or first)["value"]
        return {
            "title": f"{there}: {value:.1f} {row['label'].lower()}; {gone} has no score yet",
            "detail": f"On {asked}." if asked else "",
            "tone": "none",
        }
    change = row["change"]
    if change is None:
        return {
            "title": f"{row['label']} {a} {first['value']:.1f}, {b} {second['value']:.1f}",
            "detail": "Whether they differ is not known: the comparison is missing.",
            "tone": "none",
        }
    size = f"{abs(change['difference']):.1f} point{'s' * (abs(change['difference']) != 1)}"
    span = interval_words(change["low"], change["high"], confidence)
    detail = f"{row['label']} went from {first['value']:.1f} to {second['value']:.1f} of 100 on {asked}{span}."
    if change["verdict"] == "better":
        return {"title": f"{b_first} is better than {a} by {size}", "detail": detail, "tone": "better"}
    if change["verdict"] == "worse":
        return {"title": f"{b_first} is worse than {a} by {size}", "detail": detail, "tone": "worse"}
    if spaces < 2:
        detail += " One room is too few to tell a difference from chance."
    elif change["minimum_detectable"]:  # 0 where the answers are the same
        detail += f" This test set shows differences from about {change['minimum_detectable']:.0f} points on."
    return {"title": f"No detectable difference between {b} and {a}", "detail": detail, "tone": "same"}


def interval_words(low: float | None, high: float | None, confidence: float) -> str:
    """', 95% interval of the change +1.0 to +2.0' or ''."""
    if low is None or high is None:
        return ""
    return f"; {confidence:.0%} interval of the change {signed(low)} to {signed(high)}"


def signed(value: float, digits: int = 1) -> str:
    """'+1.0', '−1.0' (a real minus sign) or '0.0'."""
    rounded = round(value, digits)
    if rounded == 0:
        return f"{0:.{digits}f}"
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}"
    return f"{sign}{abs(rounded):.{digits}f}"


# ------------------------------------------------------------------------------------------------ charts


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 x 10^n) inside [low, high]; about `wanted` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def curve_points(rows: object) -> list[tuple[float, float]]:
    """(step, loss) of one curve, by step; of a step that was run twice, as after a resume, the later record."""
    points = {}
    for row in listing(rows):
        step, loss = number(mapping(row).get("step")), number(mapping(row).get("loss"))
        if step is not None and loss is not None:
            points[step] = loss
    return sorted(points.items())


def loss_chart(curves: Mapping, best_step: float | None) -> dict | None:
    """The loss curves in a box of 100 x 100, y down.

    Returns:
        {"series": [{"name", "path", "points": [{"x", "y", "step", "loss"}]}], "x_ticks", "y_ticks": [{"at", "label"}],
        "best": x or None, "steps", "rows": [{"step", "train", "val"}]}, or None where there is nothing to draw.
    """
    series = {name: curve_points(curves.get(name)) for name in ("train", "val")}
    every = [point for points in series.values() for point in points]
    if not every:
        return None
    last = max(step for step, _ in every)
    first = min(step for step, _ in every)
    low, high = min(loss for _, loss in every), max(loss for _, loss in every)
    low = 0.0 if low >= 0 and low < high * 0.5 else low
    high = high + (high - low or abs(high) or 1.0) * 0.05

    def x(step: float) -> float:
        return round(100 * (step - first) / (last - first), 3) if last > first else 50.0

    def y(loss: float) -> float:
        return round(100 - 100 * (loss - low) / (high - low), 3)

    drawn = []
    for name, points in series.items():
        if points:
            placed = [{"x": x(step), "y": y(loss), "step": int(step), "loss": loss} for step, loss in points]
            path = "M" + "L".join(f"{point['x']:g} {point['y']:g}" for point in placed)
            drawn.append({"name": name, "path": path, "points": placed})
    by_step: dict[int, dict] = {}
    for name, points in series.items():
        for step, loss in points:
            by_step.setdefault(int(step), {"step": int(step), "train": None, "val": None})[name] = loss
    return {
        "series": drawn,
        "x_ticks": [{"at": x(t), "label": f"{t:g}"} for t in ticks(first, last, 5) if t == int(t)],
        "y_ticks": [{"at": y(t), "label": f"{t:g}"} for t in ticks(low, high)],
        "best": x(best_step) if best_step is not None and first <= best_step <= last else None,
        "best_step": int(best_step) if best_step is not None else None,
        "steps": int(last),
        "rows": [by_step[step] for step in sorted(by_step)],
        "last": {name: points[-1][1] for name, points in series.items() if points},
    }


# ------------------------------------------------------------------------------------------------ run


def job_name(path: Path, root: Path) -> tuple[str, str]:
    """(rule, wildcard) of benchmarks/RULE.tsv, benchmarks/RULE/WILDCARD.tsv and the like in logs/."""
    parts = path.relative_to(root).with_suffix("").parts
    return parts[0], "/".join(parts[1:])


def read_benchmark(path: Path) -> dict:
    """{"seconds", "peak_mb"} of a Snakemake benchmark: the last run in the file; {} where it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    if not rows:
        return {}
    return {name: _float(rows[-1].get(column)) for name, column in (("seconds", "s"), ("peak_mb", "max_rss"))}


def _float(value: object) -> float | None:
    try:
        return number(float(value))
    except (TypeError, ValueError):
        return None


def read_log_facts(path: Path) -> dict:
    """The JSON line of facts that a script ends its log with; {} where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65536))  # the facts are one line at the end
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if line.startswith("{") and '"script"' in line:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            return clean(value) if isinstance(value, dict) else {}
    return {}


def timing(benchmarks: Path, logs: Path, names: Container[tuple[str, str]] | None = None) -> dict:
    """Time and memory of each job.

    Args:
        benchmarks, logs: Snakemake's folders, which keep what jobs of other recipes left.
        names: (rule, wildcard) of the jobs that count; None where that is not known: all.
    Returns:
        {"rows": [{"rule", "job", "seconds", "peak_mb", "share", "long"}], "seconds": sum, "peak_mb": largest}: share is of
        the longest job, 0..100. Snakemake's benchmark of a job where there is one, else what its script told.
    """
    jobs: dict[tuple[str, str], dict] = {}
    for path in sorted(logs.rglob("*.log")) if logs.is_dir() else []:
        name = job_name(path, logs)
        facts = read_log_facts(path) if names is None or name in names else {}
        if "seconds" in facts:
            jobs[name] = {"seconds": number(facts["seconds"]), "peak_mb": number(facts.get("peak_mb"))}
    for path in sorted(benchmarks.rglob("*.tsv")) if benchmarks.is_dir() else []:
        name = job_name(path, benchmarks)
        found = read_benchmark(path) if names is None or name in names else {}
        found = {key: value for key, value in found.items() if value is not None}
        if found:
            before = jobs.get(name, {})
            # a job shorter than Snakemake's first look at it has no memory in the benchmark
            peak = max(found.get("peak_mb") or 0, before.get("peak_mb") or 0) or None
            jobs[name] = {"seconds": found.get("seconds", before.get("seconds")), "peak_mb": peak}
    longest = max((job["seconds"] or 0 for job in jobs.values()), default=0)
    rows = [
        {
            "rule": rule,
            "job": job,
            **jobs[rule, job],
            "share": 100 * (jobs[rule, job]["seconds"] or 0) / (longest or 1),
            "long": (jobs[rule, job]["seconds"] or 0) >= LONG_JOB_S,
        }
        for rule, job in sorted(jobs, key=lambda name: (place_of(name[0]), name))
    ]
    return {
        "rows": rows,
        "seconds": sum(row["seconds"] or 0 for row in rows),
        "peak_mb": max((row["peak_mb"] or 0 for row in rows), default=0),
    }


def place_of(rule: str) -> int:
    """Where a rule stands in the pipeline."""
    return RULES.index(rule) if rule in RULES else len(RULES)


def log_names(jobs: Iterable[Job]) -> set[tuple[str, str]]:
    """(rule, wildcard) of jobs, as their files in logs/ and benchmarks/ are called."""
    return {job_name(Path(log), Path("logs")) for job in jobs for log in job.log if log.startswith("logs/")}


def lineage_rows(jobs: Iterable[Job]) -> list[dict]:
    """Artifact, the rule that made it, at which commit, from which data; from raw data to metrics.

    Returns:
        [{"artifact", "sha256", "made_by", "commit", "used": [...]}] in the pipeline's order; scripts and lock files, which
        every job uses, are not listed: the commit stands for them. A commit ends in "+" where tracked files differed.
    """
    rows = [
        {
            "artifact": output,
            "sha256": sha256,
            "made_by": job.rule,
            "commit": short_commit(text(job.made.get("commit"))),
            "used": sorted(
                name for name in job.inputs if not name.startswith("scripts/") and not name.endswith(".lock")
            ),
        }
        for job in jobs
        for output, sha256 in job.outputs.items()
    ]
    return sorted(rows, key=lambda row: (place_of(row["made_by"]), row["artifact"]))


def short_commit(name: str) -> str:
    """Ten digits of a commit, and the "+" of one with edits."""
    return name[:10] + ("+" if len(name) > 10 and name.endswith("+") else "")


def flat_config(config: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """[("train.seed", "7"), ...] in the file's order."""
    rows = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            rows += flat_config(value, f"{name}.")
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows


def facts_table(part: Mapping, skip: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(name, value) of a small object, for a list of facts; nested objects flattened, long lists counted."""
    rows = []
    for name, value in flat_config({k: v for k, v in part.items() if k not in set(skip)}):
        if re.fullmatch(r"\d{5,}", value):
            value = f"{int(value):,}"
        rows.append((name.replace("_", " "), value if len(value) <= 200 else f"{value[:200]}…"))
    return rows


def two_tables(part: Mapping, first: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """{"first": facts named in `first`, in its order and words, "rest": all others}; a 0 is no news and goes to rest."""
    shown = {key: label for key, label in first.items() if part.get(key) not in (None, 0, 0.0, "", [])}
    rows = []
    for key, label in shown.items():
        value = part[key]
        told = ", ".join(map(str, value)) if isinstance(value, list) else facts_table({key: value})[0][1]
        rows.append((label, told))
    return {"first": rows, "rest": facts_table(part, shown)}


# ------------------------------------------------------------------------------------------------ gallery


def join_questions(
    rows: Mapping[str, Sequence[Mapping]],
    predictions: Mapping[str, Mapping[str, str]],
    index: Mapping[str, Mapping],
    test_ids: Sequence[str],
    models: Sequence[str],
    keys: Sequence[str],
) -> list[dict]:
    """One record a test question, joined by question_id, whatever parts are there.

    Args:
        rows: lines of {model}.questions.jsonl, by model.
        predictions: {model: {question_id: answer}}, used where a model has no scored line.
        index: questions of results/index/questions.json by id.
        test_ids: ids of the test part.
        models: the answers to show.
        keys: metrics of the scores.
    Returns:
        Records sorted by (episode, id): {"id", "q", "c", "s", "e", "space", "a": accepted, "p": [answer or None, one
        a model], "m": [[score or None, one a metric] or None, one a model]}.
    """
    scored = {m: {text(row.get("question_id")): row for row in rows.get(m, ())} for m in models}
    # the split says what the test part is; without it, whatever was scored or predicted
    ids = {i for i in test_ids if isinstance(i, str)} or {i for part in scored.values() for i in part}
    ids = ids or {i for m in models for i in predictions.get(m, {})}
    found = []
    for name in ids - {""}:
        lines = [scored[m][name] for m in models if name in scored[m]]
        about = {**mapping(index.get(name)), **(lines[0] if lines else {})}
        accepted = [text(a) for a in listing(about.get("accepted")) if text(a)]
        if not accepted:
            accepted = [text(a) for a in (about.get("answer"), *listing(about.get("extra_answers"))) if text(a)]
        record = {
            "id": name,
            "q": shortened(text(about.get("question"))) or "(question text is missing)",
            "c": text(about.get("category")) or "unknown",
            "s": text(about.get("source")) or "unknown",
            "e": text(about.get("episode_history")),
            "space": text(about.get("space")),
            "a": [shortened(answer) for answer in dict.fromkeys(accepted)],
            "p": [],
            "m": [],
        }
        for m in models:
            line = scored[m].get(name)
            answer = line.get("prediction") if line else predictions.get(m, {}).get(name)
            record["p"].append(shortened(answer) if isinstance(answer, str) else None)
            record["m"].append([short_score(line.get(key)) for key in keys] if line else None)
        found.append(record)
    return sorted(found, key=lambda record: (record["e"], record["id"]))


def shortened(value: str) -> str:
    """`value`, cut where it is longer than a page should hold."""
    if len(value) <= LONGEST_ANSWER:
        return value
    return f"{value[:LONGEST_ANSWER]}… (cut; {len(value):,} characters in all)"


def short_score(value: object) -> float | int | None:
    """A score with at most two decimals: enough to show, small in the page."""
    found = number(value)
    if found is None:
        return None
    return int(found) if found == int(found) else round(found, 2)


# ------------------------------------------------------------------------------------------------ all of it


def gather(
    results: Path,
    base: Path,
    benchmarks: Path,
    logs: Path,
    behind: Callable[[Sequence[str]], Sequence[Job]] | None = None,
) -> dict:
    """Everything that the page shows but the pictures.

    Args:
        results: folder results/ of a run, complete or not.
        base: models/base/manifest.json.
        benchmarks: Snakemake's benchmarks/.
        logs: Snakemake's logs/.
        behind: gives the jobs behind the files that the page was made from, for lineage and times; None where nobody
            knows them: times of all jobs that left some, and no lineage.
    Returns:
        The context of the template; `missing` names the parts that are not there.
    """
    reader = Reader(results)
    config = reader.mapping("config.json")
    scores, rows, predictions = {}, {}, {}
    for model in MODELS:
        scores[model] = reader.mapping(f"metrics/{model}.json")
        rows[model] = reader.rows(f"metrics/{model}.questions.jsonl")
        answers = reader.rows(f"predictions/{model}.jsonl", optional=bool(rows[model]))
        predictions[model] = {text(row.get("question_id")): row.get("prediction") for row in answers}
    for model in ("base", "tuned"):
        judged = reader.mapping(f"metrics/llm_match_{model}.json", optional=True)
        if not is_disabled(judged):
            add_judgement(scores[model], rows[model], judged)
    comparison = reader.mapping("metrics/comparison.json")
    pair = mapping(mapping(comparison.get("pairs")).get("tuned_minus_base"))
    index = reader.mapping("index/questions.json")
    episodes = reader.mapping("index/episodes.json")
    split = reader.mapping("split/split.json")
    frames = reader.mapping("frames/manifest.json")
    labels = model_labels()
    context = compose(
        scores=scores,
        rows=rows,
        predictions=predictions,
        pair=pair,
        labels=labels,
        left="base",
        right="tuned",
        confidence=number(mapping(comparison.get("score")).get("confidence"))
        or number(mapping(config.get("score")).get("confidence"))
        or 0.95,
        index=index,
        split=split,
        shown=("base", "tuned", "blind"),
    )
    base_reader = Reader(base.parent, "models/base")
    base_facts = base_reader.mapping(base.name)
    adapter = reader.mapping("adapter/manifest.json")
    curves = reader.mapping("train_log/curves.json")
    context |= {
        "kind": "report",
        "notes": [],
        "preset": text(config.get("preset")),
        "config": flat_config(config),
        "config_changes": [],
        "demo": mapping(config.get("model")).get("source") == "demo",
        "base": base_summary(base_facts, config),
        "chart": loss_chart(curves, number(adapter.get("best_step"))),
        "training": facts_table(adapter, ("files", "base_sha256")),
        "speed": two_tables(reader.mapping("train_log/speed.json", optional=True), SPEED),
        "guards": two_tables(reader.mapping("adapter/guards.json", optional=not adapter), GUARDS),
        "split": split_summary(split),
        "budget": budget_summary(reader.mapping("sft/token_budget.json")),
        "episodes": episodes_summary(episodes, context["gallery"]["questions"], index),
        "verify": verify_summary(reader.mapping("merged/verify.json")),
        "delivered": delivered(reader),
        "origins": {
            text(r.get("episode_history")): text(r.get("root"))
            for r in listing(episodes.get("episodes"))
            if isinstance(r, dict)
        },
        "frames": {
            name: {
                "frames": [text(f) for f in listing(mapping(one).get("frames"))],
                "indices": [i for i in listing(mapping(one).get("indices")) if isinstance(i, int)],
                "total": number(mapping(one).get("total")),
            }
            for name, one in mapping(frames.get("episodes")).items()
        },
    }
    # after all that reads
    jobs = behind([*base_reader.read, *reader.read]) if behind else ()
    context |= {
        "timing": timing(benchmarks, logs, log_names(jobs) if jobs else None),
        "lineage": lineage_rows(jobs),
        "lineage_unknown": [],
        "missing": base_reader.missing + reader.missing,
    }
    return context


def compose(
    scores: Mapping[str, dict],
    rows: Mapping[str, Sequence[Mapping]],
    predictions: Mapping[str, Mapping],
    pair: Mapping,
    labels: Mapping[str, Mapping],
    left: str,
    right: str,
    confidence: float,
    index: Mapping,
    split: Mapping,
    shown: Sequence[str],
) -> dict:
    """The part of the context that compares models: headline, tables, gallery. Keys are as in `gather`."""
    keys = metric_keys(scores)
    models = list(labels)
    test_ids = listing(mapping(split.get("parts")).get("test"))
    by_id = {text(row.get("question_id")): row for row in listing(index.get("questions")) if isinstance(row, dict)}
    question_keys = [key for key in keys if any(key in row for part in rows.values() for row in part)]
    questions = join_questions(rows, predictions, by_id, test_ids, shown, question_keys)
    overall = overall_rows(keys, scores, models, pair)
    spaces = len({record["space"] or record["e"] for record in questions})
    categories = Counter(record["c"] for record in questions)
    sources = Counter(record["s"] for record in questions)
    return {
        "models": [labels[key] for key in models if any(row["scores"].get(key) for row in overall)],
        "left": labels[left],
        "right": labels[right],
        "confidence": confidence,
        "overall": overall,
        "groups": [
            {
                "key": key,
                "name": name,
                "metrics": [{**metric_facts(m), "rows": group_rows(key, m, scores, models, pair)} for m in keys],
            }
            for key, name in (("by_category", "Category"), ("by_source", "Source"))
        ],
        "headline": headline(
            overall[0] if overall else None, labels[left], labels[right], len(questions), spaces, confidence
        ),
        "spaces": spaces,
        "engines": engines(scores, labels),
        "gallery": {
            "metrics": [metric_facts(key) for key in question_keys],
            "models": [labels[key] for key in shown],
            "left": shown.index(left),
            "right": shown.index(right),
            "categories": sorted(categories.items()),
            "sources": sorted(sources.items()),
            "questions": questions,
        },
    }


def engines(scores: Mapping[str, Mapping], labels: Mapping[str, Mapping]) -> list[dict]:
    """How each model's answers were made."""
    found = []
    for key, label in labels.items():
        meta = mapping(mapping(scores.get(key, {}).get("meta")).get("predictions"))
        if meta:
            found.append(
                {"name": label["name"], **{k: text(meta.get(k)) for k in ("engine", "dtype", "weights", "decoding")}}
            )
    return found


def base_summary(manifest: Mapping, config: Mapping) -> dict:
    """Name, revision and size of the base model."""
    parameters = number(manifest.get("parameters"))
    return {
        "name": text(manifest.get("name")) or text(mapping(config.get("model")).get("name")),
        "revision": text(manifest.get("revision")),
        "parameters": int(parameters) if parameters is not None else None,
        "architecture": text(manifest.get("architecture")),
    }


def split_summary(split: Mapping) -> dict | None:
    """Sizes of the parts and what they share."""
    if not split:
        return None
    counts = mapping(split.get("counts"))
    leakage = mapping(split.get("leakage"))
    return {
        "by": text(split.get("by")),
        "parts": [
            {"part": part, **{k: number(mapping(counts.get(part)).get(k)) for k in ("questions", "episodes", "spaces")}}
            for part in ("train", "val", "test")
        ],
        "leakage": [(key.replace("_", " "), int(value)) for key, value in leakage.items() if number(value) is not None],
        "leaks": leakage.get("leaks") is True,  # "allowed" says what the user allows, not what there is
        "known": bool(leakage),
    }


def budget_summary(budget: Mapping) -> dict | None:
    """The longest sample against the limit, and the parts."""
    longest, limit = number(budget.get("longest")), number(budget.get("cutoff_len"))
    if longest is None or limit is None or limit <= 0:
        return None
    return {
        "longest": int(longest),
        "limit": int(limit),
        "share": min(100.0, 100 * longest / limit),
        "facts": [
            (name, f"{number(budget.get(key)):,.10g}")
            for name, key in (
                ("mean of a sample", "mean"),
                ("of which pictures, at most", "image_tokens"),
                ("of which words, at most", "text_tokens"),
                ("longest prompt in evaluation", "longest_prompt"),
                ("new tokens allowed", "max_new_tokens"),
            )
            if number(budget.get(key)) is not None
        ],
        "sizes": [
            (size, int(number(mapping(one).get("pictures")) or 0), number(mapping(one).get("tokens")))
            for size, one in mapping(budget.get("sizes")).items()
        ],
    }


def episodes_summary(episodes: Mapping, questions: Sequence[Mapping], index: Mapping) -> dict | None:
    """Episodes used, real and rendered, and those dropped with the reason."""
    rows = [row for row in listing(episodes.get("episodes")) if isinstance(row, dict)]
    if not rows:
        return None
    dropped = [row for row in rows if row.get("status") not in (None, "ok")]
    used = [row for row in rows if row.get("status") in (None, "ok")]
    tested = {record["e"] for record in questions}
    return {
        "used": len(used),
        "real": sum(row.get("root") == "source" for row in used),
        "rendered": sum(row.get("root") == "demo" for row in used),
        "test_real": sorted(
            text(r.get("episode_history"))
            for r in used
            if r.get("root") == "source" and r.get("episode_history") in tested
        ),
        "test_rendered": sum(r.get("root") == "demo" and r.get("episode_history") in tested for r in used),
        "dropped": [
            {"name": text(r.get("episode_history")), "status": text(r.get("status")), "why": text(r.get("reason"))}
            for r in dropped[:SHOWN_EPISODES]
        ],
        "more": max(0, len(dropped) - SHOWN_EPISODES),
        "count_dropped": len(dropped),
        "count_missing": sum(r.get("status") == "missing" for r in dropped),
    }


def verify_summary(verify: Mapping) -> dict | None:
    """The largest logit difference between adapter and merged model against its limit."""
    if not verify or is_disabled(verify):
        return None
    largest, limit = number(verify.get("largest_logit_difference")), number(verify.get("tolerance"))
    share = number(verify.get("share_identical"))
    return {
        "largest": largest,
        "tolerance": limit,
        "within": None if largest is None or limit is None else largest <= limit,
        "share": share,
        "sample": number(verify.get("sample")),
        "dtype": text(verify.get("dtype")),
    }


def delivered(reader: Reader) -> list[dict]:
    """What became of each thing to hand over: made, switched off, or missing."""
    rows = []
    for name, relative in (
        ("Merged model", "merged/manifest.json"),
        ("GGUF for llama.cpp", "gguf/manifest.json"),
        ("Ollama import", "ollama/import.json"),
        ("LMDeploy benchmark", "serve/lmdeploy.json"),
    ):
        value = reader.mapping(relative)
        files = mapping(value.get("files"))
        size = sum(number(mapping(one).get("size")) or 0 for one in files.values())
        if is_disabled(value):
            state = f"switched off by {text(value.get('key'))}"
        elif not value:
            state = "missing"
        elif files:
            state = f"{len(files)} file{'s' * (len(files) != 1)}, {bytes_words(size)}"
        else:
            state = "done"
        rows.append(
            {
                "name": name,
                "state": state,
                "facts": [] if files else facts_table(value, ("files", "status", "key"))[:12],
            }
        )
    return rows


def bytes_words(size: float) -> str:
    """'4.3 GB', '12.0 MB' or '3 kB'."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{math.ceil(size / 1e3)} kB"

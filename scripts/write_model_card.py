"""Write the model card: Hugging Face front matter, data, licences, recipe, metrics with intervals, hashes.   By hand:
python -m scripts.write_model_card --results-dir results --base models/base/manifest.json \
    --template scripts/templates/model_card.md.j2 --output results/model_card.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import is_disabled, read_json, read_manifest, sha256_file, write_text
from scripts.lib.ollama_folder import MIN_VERSION, NO_CONVERTER

MODELS = ("base", "tuned", "blind", "majority")
METRICS = {
    "exact_match": "exact match",
    "f1": "token F1",
    "bleu4": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
}
# of the recipe: what made the weights. Places on a disk (data.source, model.path) are none of the reader's business
RECIPE = ("train", "vision", "frames")
MISSING = "n/a"
PARTS = ("train", "val", "test")
# what each kind of data is called in the card's front matter: (type, name)
DATASETS = {
    "real": ("open-eqa", "Open-EQA"),
    "rendered": ("rendered-demo", "rendered demo"),
    "mixed": ("open-eqa-and-rendered", "Open-EQA and rendered demo"),
}


def number(value: Any, digits: int = 1) -> str:
    """A score as text; "n/a" for what is not there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return f"{value:.{digits}f}"


def with_interval(score: Mapping | None) -> str:
    """ "41.2 (35.0 to 47.1)" of {"value", "low", "high"}."""
    if not score:
        return MISSING
    return f"{number(score.get('value'))} ({number(score.get('low'))} to {number(score.get('high'))})"


def cell(value: Any) -> str:
    """Text that cannot break out of a Markdown table or open HTML."""
    text = " ".join(str(value).split())
    for bad, good in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'")):
        text = text.replace(bad, good)
    return text or " "


def metric_rows(scores: Mapping[str, Mapping], pair: Mapping) -> list[dict]:
    """One row a metric that any model has: intervals of each model, and tuned minus base."""
    rows = []
    for key, name in METRICS.items():
        if not any(key in score.get("overall", {}) for score in scores.values()):
            continue
        difference = pair.get("overall", {}).get(key, {})
        low, high = number(difference.get("low")), number(difference.get("high"))
        rows.append(
            {
                "name": name,
                "cells": [with_interval(score.get("overall", {}).get(key)) for score in scores.values()],
                "difference": f"{number(difference.get('difference'))} ({low} to {high})" if difference else MISSING,
                "verdict": cell(difference.get("verdict", MISSING)),
            }
        )
    return rows


def category_rows(base: Mapping, tuned: Mapping) -> list[dict]:
    """Exact match by category."""
    rows = []
    for name in sorted({*base.get("by_category", {}), *tuned.get("by_category", {})}):
        mine = tuned.get("by_category", {}).get(name, {})
        other = base.get("by_category", {}).get(name, {})
        rows.append(
            {
                "name": cell(name),
                "count": mine.get("count", other.get("count", 0)),
                "base": with_interval(other.get("exact_match")),
                "tuned": with_interval(mine.get("exact_match")),
            }
        )
    return rows


def kinds_of_parts(split: Mapping, questions: Mapping, config: Mapping) -> dict[str, dict[str, int]]:
    """Where the questions of each part come from: part -> {"real": count, "rendered": count}.

    The base model says nothing of it: a tiny base may be tested on real frames.

    Args:
        split: results/split/split.json.
        questions: results/index/questions.json; {} where it is not at hand, then the recipe decides.
        config: the recipe.
    """
    root = {row["question_id"]: row.get("root") for row in questions.get("questions", [])}
    data = config["data"]
    only = "rendered" if not data["source"] else "real" if not data["demo_episodes"] else ""
    found = {}
    for part in PARTS:
        ids = split.get("parts", {}).get(part)
        if ids and all(key in root for key in ids):
            rendered = sum(root[key] == "demo" for key in ids)
            found[part] = {"real": len(ids) - rendered, "rendered": rendered}
        else:
            count = split.get("counts", {}).get(part, {}).get("questions", 0)
            # both kinds are there and nothing tells them apart: the licences of both are to be named
            found[part] = {kind: count if only in (kind, "") else 0 for kind in ("real", "rendered")}
    return found


def kind(counts: Mapping[str, int]) -> str:
    """ "real", "rendered" or "mixed"."""
    return "mixed" if counts["real"] and counts["rendered"] else "real" if counts["real"] else "rendered"


def front_matter(base: Mapping, demo: bool, data_kind: str, tuned: Mapping, name: str) -> str:
    """YAML that huggingface.co reads at the top of a model card, with the scores as a model-index.

    Args:
        base: manifest of the base model.
        demo: whether it is the demo's.
        data_kind: `kind` of the test part.
        tuned: results/metrics/tuned.json.
        name: of the model.
    """
    import yaml

    results = [
        {"type": key, "name": METRICS[key], "value": round(score["value"], 2)}
        for key, score in sorted(tuned.get("overall", {}).items())
        if key in METRICS and isinstance(score, Mapping) and isinstance(score.get("value"), int | float)
    ]
    data = {
        "license": "apache-2.0" if not demo else "other",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["embodied-question-answering", "open-eqa", "qwen3-vl", "qlora", "multi-image"],
    }
    if demo:
        data["license_name"] = "demo-weights"
    else:
        data |= {"base_model": str(base.get("name", "")), "base_model_relation": "finetune"}
    if results:
        dataset = dict(zip(("type", "name"), DATASETS[data_kind], strict=True))
        task = {"type": "visual-question-answering", "name": "embodied question answering"}
        data["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": results}]}]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def optional(path: Path) -> dict:
    """A parsed file that the card can do without: {} where it is missing or switched off."""
    if not path.is_file():
        return {}
    value = read_json(path)
    return {} if is_disabled(value) or not isinstance(value, dict) else value


def needed(path: Path, what: str) -> dict:
    """A parsed JSON object that the card cannot do without."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise EqaError(f"{path}: this {what} is no JSON object; make it again: snakemake --force {path}")
    return value


def hashes(results: Path, base: Path) -> list[tuple[str, str]]:
    """(file, sha256) of the base's manifest and of every file of adapter, merged model and GGUF, in that order."""
    rows = [("models/base/manifest.json", sha256_file(base))]
    for folder in ("adapter", "merged", "gguf"):
        manifest = optional(results / folder / "manifest.json")
        rows += [
            (cell(f"{folder}/{name}"), record["sha256"]) for name, record in sorted(manifest.get("files", {}).items())
        ]
    return rows


def llm_match(results: Path) -> str:
    """ "base 31.0 (..), tuned 48.1 (..)", or "" where it is switched off."""
    said = []
    for model in ("base", "tuned"):
        judged = optional(results / f"metrics/llm_match_{model}.json")
        score = judged.get("overall") if judged else None
        if isinstance(score, Mapping) and "value" in score:
            said.append(f"{model} {with_interval(score)}")
    return ", ".join(said)


def hardware(results: Path) -> str:
    """Device, speed and memory of the training, as results/train_log/speed.json has them; "" where it is missing."""
    speed = optional(results / "train_log/speed.json")
    words = {
        "device": "{}",
        "samples_per_s": "{} samples/s",
        "peak_rss_mb": "{} MB of memory",
        "peak_gpu_mb": "{} MB of GPU memory",
    }
    return ", ".join(
        cell(text.format(speed[key])) for key, text in words.items() if speed.get(key) not in (None, "", 0)
    )


def card_values(results: Path, base_path: Path) -> dict:
    """Everything that the template shows.

    Args:
        results: the results folder.
        base_path: models/base/manifest.json.
    Raises:
        EqaError: a needed file is missing or not what it should be.
    """
    config = needed(results / "config.json", "recipe")
    base = read_manifest(base_path)
    scores = {model: optional(results / f"metrics/{model}.json") for model in MODELS}
    comparison = needed(results / "metrics/comparison.json", "comparison")
    split = needed(results / "split/split.json", "split")
    budget = needed(results / "sft/token_budget.json", "token budget")
    adapter = read_manifest(results / "adapter/manifest.json")
    verify = needed(results / "merged/verify.json", "proof of the merge")
    demo = base.get("source") == "demo"
    name = config["serve"]["model_name"]
    counts = split.get("counts", {})
    kinds = kinds_of_parts(split, optional(results / "index/questions.json"), config)
    everything = {key: sum(part[key] for part in kinds.values()) for key in ("real", "rendered")}
    share = verify.get("share_identical")
    recipe = [
        (f"{section}.{key}", cell(value))
        for section in RECIPE
        for key, value in sorted(config.get(section, {}).items())
    ]
    return {
        "title": cell(name),
        "front_matter": front_matter(base, demo, kind(kinds["test"]), scores["tuned"], name),
        "demo": demo,
        "data_kind": kind(everything),
        "test_kind": kind(kinds["test"]),
        "base": {key: cell(base.get(key, MISSING)) for key in ("name", "source", "revision", "architecture")}
        | {"parameters": f"{base['parameters']:,}" if isinstance(base.get("parameters"), int) else MISSING},
        "base_licence": "made by this project" if demo else "Apache-2.0 (Qwen3-VL), its own card applies",
        "frames": config["frames"]["count"],
        "max_pixels": config["vision"]["image_max_pixels"],
        "prompt": cell(config["predict"]["prompt"]),
        "dtype": cell(config["predict"]["dtype"]),
        "serve_name": cell(name),
        "count": scores["tuned"].get("count", counts.get("test", {}).get("questions", MISSING)),
        "confidence": f"{100 * config['score']['confidence']:g}",
        "models": MODELS,
        "rows": metric_rows(scores, comparison.get("pairs", {}).get("tuned_minus_base", {})),
        "categories": category_rows(scores["base"], scores["tuned"]),
        "llm_match": llm_match(results),
        "split": {"by": cell(split.get("by", MISSING))},
        "parts": [
            {"name": part, "kind": kind(kinds[part])}
            | {key: counts[part].get(key, MISSING) for key in ("questions", "episodes", "spaces")}
            for part in PARTS
            if part in counts
        ],
        "recipe": recipe,
        "adapter": {"steps": adapter.get("steps"), "best_step": adapter.get("best_step")},
        "budget": {"longest": budget.get("longest", MISSING), "cutoff_len": budget.get("cutoff_len", MISSING)},
        "hardware": hardware(results),
        "verify": {
            "sample": cell(verify.get("sample", MISSING)),
            "difference": f"{verify['largest_logit_difference']:.2g}"
            if "largest_logit_difference" in verify
            else MISSING,
            "tolerance": cell(verify.get("tolerance", MISSING)),
            "identical": f"{100 * share:.0f} %" if isinstance(share, int | float) else MISSING,
        },
        "demo_data": everything["rendered"] > 0,
        "real_data": everything["real"] > 0,
        "ollama": {
            "first": ".".join(map(str, MIN_VERSION)),
            "gguf_only": ".".join(map(str, NO_CONVERTER)),
            "gguf": bool(optional(results / "gguf/manifest.json")),
        },
        "hashes": hashes(results, base_path),
    }


def run(results: Path, base: Path, template: Path, output: Path) -> dict:
    """Render the card.

    Raises:
        EqaError: a needed file is missing, or the template is broken.
    """
    import jinja2

    values = card_values(results, base)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    try:
        text = environment.from_string(template.read_text(encoding="utf-8")).render(values)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise EqaError(f"{template}:{f' line {line}:' if line else ''} {error}; `git checkout {template}`") from None
    write_text(output, text)
    return {"bytes": len(text.encode())}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="write_model_card", description="Write the model card.")
    parser.add_argument("--results-dir", type=path_argument, required=True, help="folder with all results")
    parser.add_argument("--base", type=path_argument, required=True, help="manifest.json of the base model")
    parser.add_argument("--template", type=path_argument, required=True, help="Jinja template of the card")
    parser.add_argument("--output", type=path_argument, required=True, help="Markdown file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(args: argparse.Namespace) -> dict:
        return run(args.results_dir, args.base, args.template, args.output)

    return entry("write_model_card", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Ask a server 20 test questions and compare with the tuned predictions.   By hand:
python -m scripts.check_serving --server llamacpp --test results/sft/test.json \
    --predictions results/predictions/tuned.jsonl --output results/serve/check_llamacpp.json --config \
    "$(python -c 'import json,yaml;c=yaml.safe_load(open("config/config.yaml"));print(json.dumps(c))')"

Servers: ollama (OLLAMA_HOST), lmdeploy and llamacpp (serve.host, serve.port). Fails below serve.agreement.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.answer_scores import token_f1
from scripts.lib.chat_client import SERVERS, ChatClient, Decoding, default_url, sample_message
from scripts.lib.cli import entry, json_argument, one_line, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, read_jsonl, write_json

log = logging.getLogger("check_serving")
QUESTIONS = 20
OFFENDERS = 5
TEMPERATURES = {"greedy": 0.0, "tutorial": 0.2}


def choose(samples: Sequence[dict], count: int) -> list[dict]:
    """`count` samples, the same each time whatever else is in the test part: the lowest hashes of question_id."""
    ranked = sorted(samples, key=lambda sample: hashlib.sha256(sample["question_id"].encode()).hexdigest())
    return sorted(ranked[:count], key=lambda sample: sample["question_id"])


def same(left: str, right: str) -> bool:
    """Whether two answers are the same but for white space."""
    return left.split() == right.split()


def compare(rows: Sequence[dict]) -> dict:
    """Agreement and token F1 between what was predicted and what is served.

    Args:
        rows: {"question_id", "predicted", "served"}; at least one.
    Returns:
        agreement 0..1, token_f1 0..100 (mean), offenders: the different ones, lowest F1 first.
    """
    scored = [{**row, "f1": round(token_f1(row["served"], [row["predicted"]]), 2)} for row in rows]
    # two empty answers have no words in common, and agree
    for row in scored:
        if same(row["served"], row["predicted"]):
            row["f1"] = 100.0
    different = [row for row in scored if not same(row["served"], row["predicted"])]
    return {
        "agreement": round(1 - len(different) / len(scored), 4),
        "token_f1": round(sum(row["f1"] for row in scored) / len(scored), 2),
        "offenders": sorted(different, key=lambda row: (row["f1"], row["question_id"]))[:OFFENDERS],
    }


def run(
    server: str, test: Path, predictions: Path, config: dict, output: Path, url: str = "", frames: Path | None = None
) -> dict:
    """Ask, compare, write.

    Args:
        server: "ollama", "lmdeploy" or "llamacpp".
        test: results/sft/test.json.
        predictions: results/predictions/tuned.jsonl.
        config: serve, predict.
        output: results/serve/check_{server}.json; written also when the check fails.
        url: address, in place of the config's.
        frames: folder that the pictures are relative to; default results/frames beside results/sft.
    Raises:
        EqaError: server down, a question without prediction, agreement below serve.agreement.
    """
    samples = read_json(test, "test part")
    predicted = {row["question_id"]: row["prediction"] for row in read_jsonl(predictions, "predictions")}
    chosen = choose(samples, QUESTIONS)
    if not chosen:
        raise EqaError(f"{test}: no test question to ask; raise split.test")
    missing = sorted(s["question_id"] for s in chosen if s["question_id"] not in predicted)
    if missing:
        raise EqaError(f"{predictions}: no prediction for question {missing[0]} of {test}; predict again")
    serve, predict = config["serve"], config["predict"]
    decoding = Decoding(predict["max_new_tokens"], TEMPERATURES[predict["decoding"]], predict["seed"])
    where = url or default_url(server, serve["host"], serve["port"])
    rows = []
    with ChatClient(server, where, serve["model_name"]) as client:
        client.check()
        for number, sample in enumerate(chosen, 1):
            message = sample_message(sample, frames or test.parent.parent / "frames")
            served = client.ask([message], decoding).strip()
            want = predicted[sample["question_id"]].strip()
            rows.append({"question_id": sample["question_id"], "predicted": want, "served": served})
            log.info("%d of %d: %s", number, len(chosen), "same" if same(served, want) else "different")
    result = compare(rows)
    passed = result["agreement"] >= serve["agreement"]
    record = {
        "server": server,
        "model": serve["model_name"],
        "questions": len(rows),
        "decoding": predict["decoding"],
        "threshold": serve["agreement"],
        "passed": passed,
        **result,
        "answers": rows,
    }
    write_json(output, record)
    same_count = round(result["agreement"] * len(rows))
    log.info("%s: %d of %d the same, token F1 %.1f", server, same_count, len(rows), result["token_f1"])
    for row in result["offenders"]:
        log.info(
            "  %s: predicted %r, served %r", *(one_line(row[k])[:120] for k in ("question_id", "predicted", "served"))
        )
    if not passed:
        raise EqaError(
            f"{server} gives {same_count} of {len(rows)} answers as predicted: agreement {result['agreement']:g} < "
            f"serve.agreement={serve['agreement']:g}; see {output} and the lines above, or lower serve.agreement"
        )
    return {"agreement": result["agreement"], "token_f1": result["token_f1"], "questions": len(rows)}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_serving", description="Compare what is served with what was predicted."
    )
    parser.add_argument("--server", choices=SERVERS, required=True, help="what kind of server")
    parser.add_argument("--test", type=path_argument, required=True, help="test part")
    parser.add_argument("--predictions", type=path_argument, required=True, help="predictions of the tuned model")
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: serve, predict")
    parser.add_argument("--output", type=path_argument, required=True, help="JSON to write")
    parser.add_argument("--url", default="", help="address of the server, in place of the config's")
    parser.add_argument(
        "--frames", type=path_argument, help="folder of the frames; default: frames beside the test part's"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(a: argparse.Namespace) -> dict:
        return run(a.server, a.test, a.predictions, a.config, a.output, a.url, a.frames)

    return entry("check_serving", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())

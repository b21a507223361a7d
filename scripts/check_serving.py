"""Ask a server 20 test questions and compare with the tuned predictions.   By hand:
python -m scripts.check_serving --server llamacpp --test results/sft/test.json \
    --predictions results/predictions/tuned.jsonl --output results/serve/check_llamacpp.json --config \
    "$(python -c 'import json,yaml;c=yaml.safe_load(open("config/config.yaml"));print(json.dumps(c))')"

Servers: ollama (OLLAMA_HOST; --imported results/ollama/import.json names the model), lmdeploy and llamacpp (serve.host,
serve.port). Fails below serve.agreement; the record of a failed check is work/serve/failed_check_SERVER.json.
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
from scripts.lib.files import is_disabled, read_json, read_jsonl, remove, write_json

log = logging.getLogger("check_serving")
QUESTIONS = 20
OFFENDERS = 5
FAILED = Path("work/serve")  # Snakemake deletes the output of a job that fails
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


def variety(answers: Sequence[str]) -> dict:
    """How much there is to compare: {"non_empty", "different"} of some answers, white space aside."""
    said = [" ".join(answer.split()) for answer in answers]
    return {"non_empty": sum(map(bool, said)), "different": len(set(said))}


def check_variety(server: str, predictions: Path, predicted: dict, served: dict, count: int) -> None:
    """Refuse a comparison that would agree whatever is served.

    Args:
        predictions: file of the predictions, for the message.
        predicted, served: of `variety`.
        count: answers of each.
    Raises:
        EqaError: most predictions are empty, or the server says one and the same to different questions.
    """
    if 2 * predicted["non_empty"] < count:
        raise EqaError(
            f"{predictions}: {count - predicted['non_empty']} of {count} predicted answers are empty, so agreement says "
            "nothing about what is served; look at the training (results/report/index.html), then predict again"
        )
    if served["different"] == 1 < predicted["different"]:
        raise EqaError(
            f"{server} gives one and the same answer to all {count} questions, the predictions hold "
            f"{predicted['different']} different ones; it serves another model, or does not see pictures and questions"
        )


def imported_model(record: Path | None, name: str) -> str:
    """The model to ask an Ollama server for: the one that was imported, under its own tag.

    Args:
        record: results/ollama/import.json; None where the check is run by hand without it.
        name: config serve.model_name, which may point at another model than ours.
    Raises:
        EqaError: no such record, or not one.
    """
    if record is None:
        return name
    value = read_json(record, "record of the import")
    if is_disabled(value):
        log.info("%s: the import is switched off (deliver.ollama); asking %s, whoever made it", record, name)
        return name
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, str):
        raise EqaError(f"{record}: names no model; import again: snakemake --force {record}")
    return model


def run(
    server: str,
    test: Path,
    predictions: Path,
    config: dict,
    output: Path,
    url: str = "",
    frames: Path | None = None,
    imported: Path | None = None,
) -> dict:
    """Ask, compare, write.

    Args:
        server: "ollama", "lmdeploy" or "llamacpp".
        test: results/sft/test.json.
        predictions: results/predictions/tuned.jsonl.
        config: serve, predict.
        output: results/serve/check_{server}.json, written where the check passes; the record of a failed one goes to
            work/serve/failed_check_{server}.json.
        url: address, in place of the config's.
        frames: folder that the pictures are relative to; default results/frames beside results/sft.
        imported: results/ollama/import.json, for Ollama.
    Raises:
        EqaError: server down, a question without prediction, nothing to compare, agreement below serve.agreement.
    """
    remove(output)  # of an earlier check: whatever fails from here on, it says nothing about what is served now
    samples = read_json(test, "test part")
    try:
        known = {row["question_id"]: row["prediction"] for row in read_jsonl(predictions, "predictions")}
    except (KeyError, TypeError):
        raise EqaError(f"{predictions}: a line without question_id and prediction; predict again") from None
    chosen = choose(samples, QUESTIONS)
    if not chosen:
        raise EqaError(f"{test}: no test question to ask; raise split.test")
    missing = sorted(s["question_id"] for s in chosen if s["question_id"] not in known)
    if missing:
        raise EqaError(f"{predictions}: no prediction for question {missing[0]} of {test}; predict again")
    serve, predict = config["serve"], config["predict"]
    decoding = Decoding(predict["max_new_tokens"], TEMPERATURES[predict["decoding"]], predict["seed"])
    where = url or default_url(server, serve["host"], serve["port"])
    model = imported_model(imported, serve["model_name"]) if server == "ollama" else serve["model_name"]
    rows = []
    with ChatClient(server, where, model) as client:
        client.check()
        for number, sample in enumerate(chosen, 1):
            message = sample_message(sample, frames or test.parent.parent / "frames")
            served = client.ask([message], decoding).strip()
            want = known[sample["question_id"]].strip()
            rows.append({"question_id": sample["question_id"], "predicted": want, "served": served})
            log.info("%d of %d: %s", number, len(chosen), "same" if same(served, want) else "different")
        digest = client.digest
    result = compare(rows)
    said = {side: variety([row[side] for row in rows]) for side in ("predicted", "served")}
    passed = result["agreement"] >= serve["agreement"]
    record = {
        "server": server,
        "model": model,
        "digest": digest,
        "questions": len(rows),
        "decoding": predict["decoding"],
        "threshold": serve["agreement"],
        "passed": passed,
        **result,
        **said,
        "answers": rows,
    }
    same_count = round(result["agreement"] * len(rows))
    log.info("%s: %d of %d the same, token F1 %.1f", server, same_count, len(rows), result["token_f1"])
    for row in result["offenders"]:
        log.info(
            "  %s: predicted %r, served %r", *(one_line(row[k])[:120] for k in ("question_id", "predicted", "served"))
        )
    failed = FAILED / f"failed_check_{server}.json"
    remove(failed)
    try:
        check_variety(server, predictions, said["predicted"], said["served"], len(rows))
        if not passed:
            raise EqaError(
                f"{server} gives {same_count} of {len(rows)} answers as predicted: agreement {result['agreement']:g} < "
                f"serve.agreement={serve['agreement']:g}; see {failed} and the lines above, or lower serve.agreement"
            )
    except EqaError:
        write_json(failed, {**record, "passed": False})
        raise
    write_json(output, record)
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
        "--imported", type=path_argument, help="for ollama: results/ollama/import.json, which names the model"
    )
    parser.add_argument(
        "--frames", type=path_argument, help="folder of the frames; default: frames beside the test part's"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(a: argparse.Namespace) -> dict:
        return run(a.server, a.test, a.predictions, a.config, a.output, a.url, a.frames, a.imported)

    return entry("check_serving", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())

"""LLM-Match: let a judge model mark each answer, by Open-EQA's official protocol; nothing unless deliver.llm_match.

By hand (the key comes from EQA_JUDGE_API_KEY; a server on this machine needs none):
    python -m scripts.judge_answers --model tuned --predictions results/predictions/tuned.jsonl \
        --questions results/index/questions.json --split results/split/split.json \
        --prompts data/raw/openeqa/prompts/manifest.json --config '{...}' --work-dir work/judge \
        --output results/metrics/llm_match_tuned.json
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from scripts.lib import llm_match, openai_client
from scripts.lib.addresses import is_local, public, read_key
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.config import canonical_json
from scripts.lib.errors import EqaError
from scripts.lib.evaluation import Gold, read_gold, read_predictions
from scripts.lib.files import check_manifest, disabled, is_disabled, read_json, read_manifest, sha256_file, write_json
from scripts.lib.progress import Progress
from scripts.score import DIGITS, figures, grouped

log = logging.getLogger(__name__)
KEY_VARIABLE = "EQA_JUDGE_API_KEY"
THREADS = 8  # requests under way; the rate limit bounds them further
SHOWN_REPLY = 120


@dataclass(frozen=True)
class Task:
    """One answer to be judged: the request and where its reply is kept."""

    question_id: str
    prompt: str
    cache: Path


def read_prompts(manifest: Path) -> dict[str, str]:
    """The official judge prompts, without the line break at their ends.

    Raises:
        EqaError: not fetched, or a file differs from its manifest.
    """
    if is_disabled(read_manifest(manifest)):
        raise EqaError(f"{manifest}: Open-EQA's prompts were not fetched; run again with deliver.llm_match=true")
    check_manifest(manifest)
    prompts = {}
    for name in (llm_match.PROMPT, llm_match.PROMPT_EXTRA):
        path = manifest.parent / name
        if not path.is_file():
            raise EqaError(f"{path}: this judge prompt is missing; fetch it: snakemake --force {manifest}")
        prompts[name] = path.read_text(encoding="utf-8").strip()  # the official evaluator strips them too
    return prompts


def make_task(gold: Gold, prediction: str, prompts: Mapping[str, str], judge: Mapping, work_dir: Path) -> Task:
    """Fill in the prompt; the cache's name is the hash of everything that the reply depends on."""
    extra = gold.accepted[1:]
    prompt = llm_match.fill(
        prompts[llm_match.prompt_name(extra)],
        gold.question,
        gold.accepted[0],
        extra,
        llm_match.shown_prediction(prediction) or "",
    )
    identity = {"prompt": prompt, "max_tokens": llm_match.MAX_TOKENS}
    identity |= {key: judge[key] for key in ("url", "model", "temperature", "seed")}
    name = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    return Task(gold.question_id, prompt, work_dir / name[:2] / f"{name}.json")


def ask(tasks: Sequence[Task], judge: Mapping, key: str) -> None:
    """Put every task to the judge; a reply with a mark is cached at once, so that nothing judged is ever lost.

    Raises:
        EqaError: the judge fails for good; what was judged until then stays in the cache.
    """
    limit = openai_client.RateLimit(judge["requests_per_minute"])

    def one(task: Task) -> None:
        reply = openai_client.chat(
            judge["url"],
            judge["model"],
            [{"role": "user", "content": task.prompt}],
            key=key,
            limit=limit,
            what="judge.url",
            temperature=judge["temperature"],
            seed=judge["seed"],
            max_tokens=llm_match.MAX_TOKENS,
        )
        write_json(task.cache, {"reply": reply.text, "model": reply.model, "fingerprint": reply.fingerprint})

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        futures = [pool.submit(one, task) for task in tasks]
        with Progress(len(tasks), "answers") as progress:
            for future in futures:
                future.add_done_callback(lambda _: progress.update())
            _, rest = wait(futures, return_when=FIRST_EXCEPTION)
        for future in rest:
            future.cancel()
        wait(rest)
    failures = [future.exception() for future in futures if not future.cancelled() and future.exception()]
    if failures:
        judged = sum(task.cache.is_file() for task in tasks)
        log.info("%d of %d replies are kept in the cache; running again goes on from there", judged, len(tasks))
        raise failures[0]


def read_reply(task: Task) -> dict | None:
    """The cached reply of a task; None without a whole one."""
    if not task.cache.is_file():
        return None
    try:
        reply = read_json(task.cache)
    except EqaError:
        return None
    return reply if isinstance(reply, dict) and isinstance(reply.get("reply"), str) else None


def summarise(golds: Sequence[Gold], marks: Mapping[str, int], settings: Mapping) -> dict:
    """Mean score with its interval, overall and by group, over the answers that have a mark.

    Raises:
        EqaError: none has.
    """
    if not marks:
        raise EqaError("judge.url: no reply held a mark from 1 to 5; see whether judge.model follows the prompt")
    rows = [
        {
            "space": g.space,
            "category": g.category,
            "source": g.source,
            "score": llm_match.match_score(marks[g.question_id]),
        }
        for g in golds
        if g.question_id in marks
    ]

    def one(part: Sequence[Mapping]) -> dict:
        return {"count": len(part), **figures(part, ["score"], settings)["score"]}

    return {
        "overall": one(rows),
        "by_category": grouped(rows, "category", one),
        "by_source": grouped(rows, "source", one),
    }


def run(args: argparse.Namespace) -> dict:
    """Read, judge, write; returns facts for stdout."""
    config = args.config
    if not config["deliver"]["llm_match"]:
        write_json(args.output, disabled("deliver.llm_match"))
        return {"status": "disabled"}
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request would bury ours
    judge = config["judge"]
    openai_client.endpoint(judge["url"], "judge.url")
    key = read_key(KEY_VARIABLE)
    if not key and not is_local(judge["url"]):
        raise EqaError(
            f"{KEY_VARIABLE} is not set; export {KEY_VARIABLE}=... with the key of judge.url={public(judge['url'])}"
        )
    golds = read_gold(args.questions, args.split)
    predictions = read_predictions(args.predictions, [gold.question_id for gold in golds])
    prompts = read_prompts(args.prompts)
    args.work_dir.mkdir(parents=True, exist_ok=True)

    from filelock import FileLock

    # one judge at a time: two would double the rate that the server allows
    with FileLock(args.work_dir / "lock"):
        tasks = [make_task(gold, predictions[gold.question_id], prompts, judge, args.work_dir) for gold in golds]
        # equal answers to equal questions are judged once; replies without a mark are asked for again
        waiting = {task.cache: task for task in tasks if _mark(read_reply(task)) is None}
        log.info(
            "%d answers, %d from the cache; %s",
            len(tasks),
            sum(task.cache not in waiting for task in tasks),
            llm_match.estimate([t.prompt for t in waiting.values()], judge["model"], judge["requests_per_minute"]),
        )
        ask(list(waiting.values()), judge, key)
        replies = {task.question_id: read_reply(task) for task in tasks}
    marks = {name: mark for name, reply in replies.items() if (mark := _mark(reply)) is not None}
    unread = {
        name: (reply or {}).get("reply", "")[:SHOWN_REPLY] for name, reply in replies.items() if name not in marks
    }
    result = summarise(golds, marks, config["score"])
    if unread:
        log.info("%d of %d replies hold no mark and count nowhere: %s", len(unread), len(tasks), sorted(unread)[:3])
    known = sum(llm_match.match_score(mark) for mark in marks.values())
    write_json(
        args.output,
        {
            "model": args.model,
            "count": len(tasks),
            "judged": len(marks),
            "unparsable": len(unread),
            "unparsable_replies": unread,
            # the mean if every unread reply had meant the worst or the best mark
            "value_at_worst": round(known / len(tasks), DIGITS),
            "value_at_best": round((known + 100.0 * len(unread)) / len(tasks), DIGITS),
            **result,
            "marks": {name: marks[name] for name in sorted(marks)},
            "judge": {
                **{key: judge[key] for key in ("url", "model", "temperature", "seed")},
                "max_tokens": llm_match.MAX_TOKENS,
                "models": sorted({reply["model"] for reply in replies.values() if reply and reply.get("model")}),
                "fingerprints": sorted({r["fingerprint"] for r in replies.values() if r and r.get("fingerprint")}),
                "prompts": {name: sha256_file(args.prompts.parent / name) for name in sorted(prompts)},
            },
        },
    )
    return {
        "model": args.model,
        "judged": len(marks),
        "unparsable": len(unread),
        "llm_match": result["overall"]["value"],
    }


def _mark(reply: Mapping | None) -> int | None:
    return llm_match.parse_mark(reply["reply"]) if reply else None


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="judge_answers", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="name of the model, as in results/predictions/NAME.jsonl")
    parser.add_argument("--predictions", type=path_argument, required=True, help="answers, one JSON object a line")
    parser.add_argument("--questions", type=path_argument, required=True, help="results/index/questions.json")
    parser.add_argument("--split", type=path_argument, required=True, help="results/split/split.json")
    parser.add_argument(
        "--prompts",
        type=path_argument,
        default=Path("data/raw/openeqa/prompts/manifest.json"),
        help="manifest of Open-EQA's prompts",
    )
    parser.add_argument("--config", type=json_argument, required=True, help="sections judge, score, deliver as JSON")
    parser.add_argument("--work-dir", type=path_argument, required=True, help="folder of replies, kept between runs")
    parser.add_argument("--output", type=path_argument, required=True, help="scores with intervals and marks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("judge_answers", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Measure LMDeploy on the merged model: one picture and eight, batch 1 to 64.   By hand, in envs/serve:
python -m scripts.bench_lmdeploy --merged results/merged/manifest.json --test results/sft/test.json \
    --budget results/sft/token_budget.json --output results/serve/lmdeploy.json --config \
    '{"deliver":{"lmdeploy":true},"serve":{"max_batch_size":64,"cache_share":0.6,"eager_mode":false},
      "predict":{"dtype":"bfloat16"}}'

CUDA only. Also draws results/serve/lmdeploy.png. What each number means stands in the JSON itself.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.lib.chat_client import openai_content, sample_message
from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_path, check_manifest, disabled, read_json, remove, write_json
from scripts.lib.gpu_memory import ran_out
from scripts.lib.ollama_folder import check_shards
from scripts.lib.openai_client import GIVEN_UP
from scripts.lib.progress import Progress
from scripts.lib.serve_settings import lmdeploy_dtype, session_length

log = logging.getLogger("bench_lmdeploy")
PICTURES = (1, 8)
ROUNDS = {1: 16, 4: 8, 16: 4, 64: 2}  # batch -> measured rounds: enough requests for a p95, minutes on a T4
DEFINITIONS = {
    "batch": "requests handed over at the same instant; the next round starts when all of them are answered",
    "latency_s": "from that instant to a request's last token: reading, decoding and encoding its pictures included",
    "time_to_first_token_s": "from that instant to a request's first token",
    "p50, p95": "nearest-rank percentiles over all requests of all rounds",
    "requests_per_s": "requests of all rounds divided by the time from each round's start to its last token, summed",
    "tokens_per_s": "new tokens (prompt not counted) divided by the same time",
    "warm_up": "one unmeasured round before each row",
    "decoding": "greedy, until the end token or max_new_tokens",
    "memory_mb": "memory in use on the whole device: before loading, after loading with the key-value cache, highest",
}


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile: the smallest value that at least `share` of all do not exceed.

    Args:
        values: at least one.
        share: 0 < share <= 1.
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def pick_samples(samples: Sequence[dict], count: int) -> list[dict]:
    """`count` samples, episodes changing from one to the next, so that a batch shares as few pictures as it can."""
    by_episode: dict[str, list[dict]] = {}
    for sample in samples:
        by_episode.setdefault(sample["episode_history"], []).append(sample)
    queues = [rows for _, rows in sorted(by_episode.items())]
    longest = max(map(len, queues))
    order = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return [order[number % len(order)] for number in range(count)]


def summarize(rounds: Iterable[dict]) -> dict:
    """One row of the table out of its measured rounds.

    Args:
        rounds: each {"seconds": wall time, "requests": [{"latency", "first", "new_tokens", "prompt_tokens"}]}.
    """
    rounds = list(rounds)
    requests = [request for item in rounds for request in item["requests"]]
    seconds = sum(item["seconds"] for item in rounds)
    latency, first = ([request[key] for request in requests] for key in ("latency", "first"))
    new = sum(request["new_tokens"] for request in requests)
    return {
        "requests": len(requests),
        "seconds": round(seconds, 3),
        "latency_s": {"p50": round(percentile(latency, 0.5), 4), "p95": round(percentile(latency, 0.95), 4)},
        "time_to_first_token_s": {"p50": round(percentile(first, 0.5), 4), "p95": round(percentile(first, 0.95), 4)},
        "requests_per_s": round(len(requests) / seconds, 3),
        "tokens_per_s": round(new / seconds, 2),
        "new_tokens_mean": round(new / len(requests), 2),
        "prompt_tokens_mean": round(sum(r["prompt_tokens"] for r in requests) / len(requests), 1),
    }


def chat_prompts(samples: Sequence[dict], frames: Path, pictures: int) -> list[list[dict]]:
    """OpenAI messages with the first `pictures` frames of each sample as data URLs: what a client sends."""
    prompts = []
    for sample in samples:
        message = sample_message(sample, frames)
        message.images = message.images[:pictures]
        prompts.append([{"role": "user", "content": openai_content(message)}])
    return prompts


def run_round(pipe, prompts: list[list[dict]], generation) -> dict:
    """Hand all prompts over at once and time each answer."""
    started = time.perf_counter()
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    final: dict[int, object] = {}
    for part in pipe.stream_infer(prompts, gen_config=generation):
        now = time.perf_counter() - started
        if part.finish_reason in GIVEN_UP:
            said = " ".join(str(getattr(part, "error_message", "") or "no reason given").split())[:200]
            raise EqaError(f"LMDeploy gave up on a request: {said}; lower serve.max_batch_size or serve.cache_share")
        if part.generate_token_len:
            first.setdefault(part.index, now)
        last[part.index], final[part.index] = now, part
    if len(final) != len(prompts):
        raise EqaError(f"LMDeploy answered {len(final)} of {len(prompts)} requests; look into the log")
    requests = [
        {
            "latency": last[index],
            "first": first.get(index, last[index]),
            "new_tokens": part.generate_token_len,
            "prompt_tokens": part.input_token_len,
        }
        for index, part in sorted(final.items())
    ]
    return {"seconds": max(last.values()), "requests": requests}


class MemoryWatch:
    """Highest memory in use on CUDA device 0, sampled in a thread. Unit: MiB."""

    def __init__(self) -> None:
        self.highest = self.now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @staticmethod
    def now() -> int:
        import torch

        free, total = torch.cuda.mem_get_info(0)
        return (total - free) // 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.highest = max(self.highest, self.now())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(folder: Path, samples: list[dict], frames: Path, settings: dict, max_new_tokens: int) -> dict:
    """Load the model and time every combination of pictures and batch.

    Args:
        folder: merged model.
        samples: results/sft/test.json.
        frames: folder that their pictures are relative to.
        settings: dtype, session_len, max_batch_size, cache_share, eager_mode.
        max_new_tokens: longest answer.
    Raises:
        EqaError: no CUDA device, out of memory.
    """
    import torch

    if not torch.cuda.is_available():
        raise EqaError("bench_lmdeploy: LMDeploy needs a CUDA device and there is none; set deliver.lmdeploy=false")
    import lmdeploy
    import transformers

    before = MemoryWatch.now()
    engine = lmdeploy.PytorchEngineConfig(
        dtype=settings["dtype"],
        session_len=settings["session_len"],
        max_batch_size=settings["max_batch_size"],
        cache_max_entry_count=settings["cache_share"],
        eager_mode=settings["eager_mode"],
    )
    generation = lmdeploy.GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False)
    most = len(samples[0]["images"])
    rows = []
    try:
        with MemoryWatch() as watch, lmdeploy.pipeline(str(folder), backend_config=engine) as pipe:
            loaded = MemoryWatch.now()
            plan = [(number, *item) for number in sorted({min(n, most) for n in PICTURES}) for item in ROUNDS.items()]
            with Progress(sum(rounds + 1 for _, _, rounds in plan), "rounds") as progress:
                for pictures, batch, rounds in plan:
                    prompts = chat_prompts(pick_samples(samples, batch * (rounds + 1)), frames, pictures)
                    batches = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
                    run_round(pipe, batches[-1], generation)
                    progress.update()
                    row = {"pictures": pictures, "batch": batch, "rounds": rounds}
                    row |= summarize(run_round(pipe, part, generation) for part in batches[:-1])
                    progress.update(rounds)
                    log.info(
                        "%d pictures, batch %d: p50 %.3f s, %.2f requests/s",
                        pictures,
                        batch,
                        row["latency_s"]["p50"],
                        row["requests_per_s"],
                    )
                    rows.append(row)
    except (RuntimeError, AssertionError) as error:
        if not ran_out(error):
            raise
        raise EqaError(
            f"LMDeploy ran out of GPU memory with serve.max_batch_size={settings['max_batch_size']} and "
            f"serve.cache_share={settings['cache_share']}; lower one of them, or free the card (nvidia-smi)"
        ) from None
    return {
        "runs": rows,
        "memory_mb": {"before": before, "loaded": loaded, "highest": watch.highest},
        "device": torch.cuda.get_device_name(0),
        "versions": {
            "lmdeploy": lmdeploy.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def draw(record: dict, path: Path) -> bool:
    """Plot requests/s and latency over the batch; whether it could (a bare GPU host may lack matplotlib)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no matplotlib here: %s is not drawn", path)
        return False
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    speed, wait = figure.subplots(1, 2)
    for pictures in sorted({row["pictures"] for row in record["runs"]}):
        rows = [row for row in record["runs"] if row["pictures"] == pictures]
        batches = [row["batch"] for row in rows]
        label = f"{pictures} picture{'s' if pictures > 1 else ''}"
        (line,) = speed.plot(batches, [row["requests_per_s"] for row in rows], marker="o", label=label)
        for share, style in (("p50", "-"), ("p95", "--")):
            seconds = [row["latency_s"][share] for row in rows]
            wait.plot(batches, seconds, style, marker="o", color=line.get_color(), label=f"{label}, {share}")
    for axes, title in ((speed, "requests/s"), (wait, "latency, s")):
        axes.set(xscale="log", xlabel="batch (requests at once)", title=title, ylim=(0, None))
        axes.set_xticks(sorted(ROUNDS), [str(batch) for batch in sorted(ROUNDS)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"LMDeploy {record['versions']['lmdeploy']} on {record['device']}", fontsize=10)
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
    return True


def run(merged: Path, test: Path, budget: Path, config: dict, output: Path, frames: Path | None = None) -> dict:
    """Measure and write `output` and the plot beside it.

    Args:
        merged: results/merged/manifest.json.
        test: results/sft/test.json.
        budget: results/sft/token_budget.json.
        config: deliver.lmdeploy, serve, predict.dtype.
        output: results/serve/lmdeploy.json.
        frames: folder that the pictures are relative to; default results/frames beside results/sft.
    Raises:
        EqaError: no CUDA device, a broken merged folder, no test question, out of memory.
    """
    if not config["deliver"]["lmdeploy"]:
        write_json(output, disabled("deliver.lmdeploy"))
        remove(output.with_suffix(".png"))  # of an earlier recipe
        return {"status": "disabled"}
    check_manifest(merged)
    check_shards(merged.parent)
    samples = read_json(test, "test part")
    if not samples:
        raise EqaError(f"{test}: no test question to ask; raise split.test")
    tokens = read_json(budget, "token budget")
    serve = config["serve"]
    settings = {key: serve[key] for key in ("max_batch_size", "cache_share", "eager_mode")}
    settings |= {"session_len": session_length(tokens, budget), "dtype": lmdeploy_dtype(config["predict"]["dtype"])}
    found = measure(
        merged.parent,
        samples,
        frames or test.parent.parent / "frames",
        settings,
        tokens.get("max_new_tokens", 128),
    )
    remove(output.with_suffix(".png"))  # where it cannot be drawn, none is better than that of other numbers
    record = {"status": "measured", "settings": settings, "definitions": DEFINITIONS, **found}
    record["plot"] = output.with_suffix(".png").name if draw(record, output.with_suffix(".png")) else None
    write_json(output, record)
    best = max(record["runs"], key=lambda row: (row["pictures"], row["requests_per_s"]))
    return {"requests_per_s": best["requests_per_s"], "pictures": best["pictures"], "batch": best["batch"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_lmdeploy", description="Measure LMDeploy on the merged model (CUDA).")
    parser.add_argument("--merged", type=path_argument, required=True, help="manifest.json of the merged folder")
    parser.add_argument("--test", type=path_argument, required=True, help="test part")
    parser.add_argument("--budget", type=path_argument, required=True, help="token_budget.json")
    parser.add_argument(
        "--frames", type=path_argument, help="folder of the frames; default: frames beside the test part's"
    )
    parser.add_argument("--config", type=json_argument, required=True, help="JSON: the rule's part of the config")
    parser.add_argument("--output", type=path_argument, required=True, help="JSON to write; the plot lies beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    def door(args: argparse.Namespace) -> dict:
        return run(args.merged, args.test, args.budget, args.config, args.output, args.frames)

    return entry("bench_lmdeploy", build_parser, door, argv)


if __name__ == "__main__":
    sys.exit(main())

"""Write a Modelfile that fits the merged model and the token budget.   By hand:
python -m scripts.prepare_ollama --merged results/merged/manifest.json --budget results/sft/token_budget.json \
    --output results/ollama/Modelfile \
    --config '{"predict":{"max_new_tokens":16,"decoding":"greedy"},"frames":{"count":8}}'
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import check_manifest, read_json, write_text
from scripts.lib.ollama_folder import MIN_VERSION, MOST_ENLARGED_TOKENS, ollama_view
from scripts.lib.tokens import MARKS_PER_IMAGE

# what Ollama from 0.30 on makes of a frame, whatever its size (measured: 8 frames exceed 8,192)
OLLAMA_IMAGE_TOKENS = MOST_ENLARGED_TOKENS + MARKS_PER_IMAGE
LEAST_CONTEXT = 8192
TEMPERATURES = {"greedy": 0.0, "tutorial": 0.2}  # config predict.decoding
STOPS = ("<|im_end|>", "<|endoftext|>")
# Messages hold the system text too; ChatML wants a line feed after the role and after each <|im_end|>. Ollama's own code for
# the model, RENDERER qwen3-vl-instruct, would write a space after the pictures, which no training sample has (measured with
# Ollama 0.24.0: 4 of 20 answers change).
CHATML = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def context_length(pictures: int, cutoff_len: int, max_new_tokens: int, model_limit: int) -> int:
    """num_ctx: what Ollama reserves for the pictures, plus the longest text, plus the answer; a power of two.

    Args:
        pictures: config frames.count.
        cutoff_len: longest sample of the token budget; its text part is never longer. Unit: tokens.
        max_new_tokens: config predict.max_new_tokens.
        model_limit: max_position_embeddings of the model.
    Returns:
        Tokens, at least 8192 unless the model ends before that.
    """
    need = max(LEAST_CONTEXT, pictures * OLLAMA_IMAGE_TOKENS + cutoff_len + max_new_tokens)
    return min(1 << (need - 1).bit_length(), model_limit)


def modelfile(source: str, num_ctx: int, temperature: float) -> str:
    """Text of a Modelfile.

    Args:
        source: path of the merged folder, relative to the Modelfile.
        num_ctx: context. Unit: tokens.
        temperature: 0 is greedy.
    Source:
        ollama v0.33.0-rc2 docs/modelfile.mdx; v0.34.2 model/renderers/image_tags.go.
    """
    version = ".".join(map(str, MIN_VERSION))
    lines = [
        (
            f"# Qwen3-VL needs Ollama {version} or newer. From the project's folder: ollama create NAME -f "
            "results/ollama/Modelfile (before 0.34.1; newer ones take GGUF, see docs/serving.md)"
        ),
        f"FROM {source}",
        "",
        "# as in training. RENDERER qwen3-vl-instruct would put a space between the pictures and the question",
        f'TEMPLATE """{CHATML}"""',
        "",
        f"PARAMETER temperature {temperature:g}",
        "# Ollama's own default of 1.1 in older versions would change greedy answers",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {num_ctx}",
        *(f'PARAMETER stop "{stop}"' for stop in STOPS),
    ]
    return "\n".join(lines) + "\n"


def parse_modelfile(text: str, path: Path) -> dict:
    """What the project's own Modelfiles say, as `POST /api/create` wants it.

    Returns:
        {"from", "renderer", "parser", "template", "parameters": {name: value, "stop": [..]}}.
    Raises:
        EqaError: an instruction that this reader does not know.
    """
    result: dict = {"parameters": {}}
    lines = iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word.upper() in ("FROM", "RENDERER", "PARSER"):
            result[word.lower()] = rest
        elif word.upper() == "TEMPLATE" and rest.startswith('"""'):
            body = rest[3:]
            while not body.endswith('"""'):
                following = next(lines, None)
                if following is None:
                    raise EqaError(
                        f'{path}: TEMPLATE has no closing """; write the Modelfile again: snakemake --force {path}'
                    )
                body += "\n" + following
            result["template"] = body[:-3]
        elif word.upper() == "PARAMETER":
            name, _, value = rest.partition(" ")
            if name == "stop":
                result["parameters"].setdefault("stop", []).append(value.strip().strip('"'))
            else:
                result["parameters"][name] = _number(value.strip())
        else:
            raise EqaError(f"{path}: unknown line {line[:60]!r}; write the Modelfile again: snakemake --force {path}")
    if "from" not in result:
        raise EqaError(f"{path}: no FROM line; write the Modelfile again: snakemake --force {path}")
    return result


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(merged: Path, budget: Path, config: dict, output: Path) -> dict:
    """Check the merged folder as Ollama's converter reads it, then write the Modelfile.

    Args:
        merged: results/merged/manifest.json.
        budget: results/sft/token_budget.json.
        config: predict.max_new_tokens, predict.decoding, frames.count.
        output: Modelfile.
    Raises:
        EqaError: Ollama could not read the folder; no token budget.
    """
    check_manifest(merged, deep=False)
    view = ollama_view(merged.parent)
    tokens = read_json(budget, "token budget")
    cutoff = tokens.get("cutoff_len") if isinstance(tokens, dict) else None
    if not isinstance(cutoff, int):
        raise EqaError(f"{budget}: no cutoff_len; make it again: snakemake --force {budget}")
    answer = config["predict"]["max_new_tokens"]
    num_ctx = context_length(config["frames"]["count"], cutoff, answer, view["context_length"])
    source = Path(os.path.relpath(merged.parent, output.parent)).as_posix()
    write_text(output, modelfile(source, num_ctx, TEMPERATURES[config["predict"]["decoding"]]))
    return {"num_ctx": num_ctx, "tensors": view["tensors"]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prepare_ollama", description="Write a Modelfile for the merged model.")
    parser.add_argument("--merged", type=path_argument, required=True, help="manifest.json of the merged folder")
    parser.add_argument("--budget", type=path_argument, required=True, help="token_budget.json")
    parser.add_argument(
        "--config", type=json_argument, required=True, help="JSON: predict.max_new_tokens, .decoding, frames.count"
    )
    parser.add_argument("--output", type=path_argument, required=True, help="Modelfile to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("prepare_ollama", build_parser, lambda a: run(a.merged, a.budget, a.config, a.output), argv)


if __name__ == "__main__":
    sys.exit(main())

"""What transformers answers to chat requests: the reference for servers. Run in envs/train:
python -m tests.lib.serving_reference --model FOLDER --requests R.json --output O.json

R.json: [{"text", "images": [path...], "max_new_tokens"}].
O.json: [{"answer", "prompt_tokens", "first": {token: log-probability of the 20 best first tokens}, "tokens": [id...],
"pieces": [text that each token adds to the answer], "leads": [log-probability of each chosen token over the second
best]}].
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path


def answer(model, processor, request: dict) -> dict:
    import torch

    content = [{"type": "image", "path": path} for path in request["images"]] + [
        {"type": "text", "text": request["text"]}
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=request["max_new_tokens"],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    best = out.logits[0][0].float().log_softmax(-1).topk(20)
    tokenizer = processor.tokenizer
    ids = out.sequences[0, length:].tolist()
    texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)]
    leads = [row[0].float().log_softmax(-1).topk(2).values for row in out.logits]
    return {
        "tokens": ids,
        "pieces": [later[len(text) :] for text, later in itertools.pairwise(texts)],
        "leads": [float(two[0] - two[1]) for two in leads],
        "answer": tokenizer.decode(out.sequences[0, length:], skip_special_tokens=True),
        "prompt_tokens": length,
        "first": {int(i): float(v) for i, v in zip(best.indices, best.values, strict=True)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "requests", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    import torch
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    torch.set_num_threads(1)
    model = Qwen3VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval().to(args.device)
    processor = AutoProcessor.from_pretrained(args.model)
    rows = [answer(model, processor, request) for request in json.loads(args.requests.read_text())]
    args.output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

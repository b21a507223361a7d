"""The demo's merged model with Qwen3-VL's real token ids and position grid. Run in envs/train:
python -m tests.lib.numbered_model --merged results/merged --output FOLDER

Ollama before 0.30 has both written into its own engine (model/models/qwen3vl: tokens 151652, 151653 and 151655, 48 x 48
positions), so the demo's model, which has others, ends its runner. Here the words keep their rows and meaning, the added
tokens move to their real ids, and the 16 x 16 grid of positions is interpolated to 48 x 48, as the model itself does for
each picture. Answers stay nearly those of the demo; what is compared with a server is what transformers says to this one.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from scripts.lib.files import read_json, write_json, write_manifest
from scripts.lib.tiny_qwen import REAL_FIRST_ADDED_ID, REAL_VOCAB_SIZE

GRID = 48
NEVER_SAID = "<|fim_pad|>"  # its row stands at every id that has no word


def renumber(value: object, moved: dict[int, int]) -> object:
    """Ids of added tokens, wherever a config's key says that it holds some."""
    if isinstance(value, dict):
        return {
            key: renumber_ids(item, moved) if key.endswith("token_id") else renumber(item, moved)
            for key, item in value.items()
        }
    return value


def renumber_ids(value: object, moved: dict[int, int]) -> object:
    if isinstance(value, list):
        return [renumber_ids(item, moved) for item in value]
    return moved.get(value, value) if isinstance(value, int) else value


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("merged", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    args = parser.parse_args()
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    args.output.mkdir(parents=True)
    for path in sorted(args.merged.iterdir()):
        if path.is_file() and path.name not in ("manifest.json", "verify.json", "model.safetensors"):
            shutil.copyfile(path, args.output / path.name)

    tokenizer = read_json(args.output / "tokenizer.json")
    old = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    moved = {number: REAL_FIRST_ADDED_ID + place for place, number in enumerate(sorted(old))}
    vocab = {word: moved.get(number, number) for word, number in tokenizer["model"]["vocab"].items()}
    taken = set(vocab.values()) | set(moved.values())
    unused = [number for number in range(REAL_VOCAB_SIZE) if number not in taken]
    vocab |= {f"<|unused_{number}|>": number for number in unused}
    tokenizer["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    for token in tokenizer["added_tokens"]:
        token["id"] = moved[token["id"]]
    write_json(args.output / "tokenizer.json", tokenizer)

    config = renumber(read_json(args.output / "config.json"), moved)
    config["text_config"]["vocab_size"] = REAL_VOCAB_SIZE
    config["vision_config"]["num_position_embeddings"] = GRID * GRID
    write_json(args.output / "config.json", config, indent=2)
    generation = args.output / "generation_config.json"
    write_json(generation, renumber(read_json(generation), moved), indent=2)

    weights = load_file(args.merged / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    rows = weights[name]
    never = next(number for number, word in old.items() if word == NEVER_SAID)
    table = rows[never].expand(REAL_VOCAB_SIZE, -1).clone()
    for number in range(len(taken)):
        table[moved.get(number, number)] = rows[number]
    weights[name] = table
    name = "model.visual.pos_embed.weight"
    side = round(len(weights[name]) ** 0.5)
    grid = weights[name].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (GRID, GRID), mode="bilinear", align_corners=True)
    weights[name] = grid.permute(0, 2, 3, 1).reshape(GRID * GRID, -1).contiguous()
    save_file(weights, args.output / "model.safetensors", metadata={"format": "pt"})
    write_manifest(args.output)


if __name__ == "__main__":
    main()

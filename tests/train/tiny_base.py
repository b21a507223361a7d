"""A base model folder without weights: the demo's kind of tokenizer and Qwen3-VL's processor."""

from __future__ import annotations

from pathlib import Path

TEXT = [
    "Which colour is the chair beside the table? The sofa is red. How many lamps are there? Two. Is the door open?",
    "These pictures were taken one after another while walking through one place. Answer with a few words. Question:",
    "user assistant system what where kitchen bedroom bathroom living room white black green blue wooden window shelf",
]


def make_tiny_base(folder: Path, min_pixels: int = 1024) -> Path:
    """Write tokenizer and processor to `folder`, with a manifest.

    Args:
        min_pixels: the processor's size.shortest_edge; the real Qwen3-VL has 65,536.
    """
    from scripts.lib import tiny_qwen
    from scripts.lib.files import write_manifest

    processor = tiny_qwen.make_processor(tiny_qwen.make_tokenizer(TEXT, 420), min_pixels)
    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    tiny_qwen.demo_config(processor.tokenizer).save_pretrained(folder)
    write_manifest(folder, {"name": "tiny", "source": "demo"})
    return folder / "manifest.json"

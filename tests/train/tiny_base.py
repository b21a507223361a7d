"""A base model folder without weights: a byte-level BPE of a few hundred words and Qwen3-VL's processor."""

from __future__ import annotations

from pathlib import Path

TEXT = [
    "Which colour is the chair beside the table? The sofa is red. How many lamps are there? Two. Is the door open?",
    "These pictures were taken one after another while walking through one place. Answer with a few words. Question:",
    "user assistant system what where kitchen bedroom bathroom living room white black green blue wooden window shelf",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]


def make_tiny_base(folder: Path, min_pixels: int = 1024) -> Path:
    """Write tokenizer and processor to `folder` the way `save_pretrained` does, with a manifest.

    Args:
        min_pixels: the processor's size.shortest_edge; the real Qwen3-VL has 65,536.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    from scripts.lib.files import write_manifest

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[]
    )
    raw.train_from_iterator(TEXT, trainer)
    vocab = raw.get_vocab()
    merges = __import__("json").loads(raw.to_str())["model"]["merges"]
    tokenizer = Qwen2TokenizerFast(vocab=vocab, merges=[tuple(m) for m in merges])
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    size = {"shortest_edge": min_pixels, "longest_edge": 16777216}
    images = Qwen2VLImageProcessor(size=size, patch_size=16, merge_size=2, temporal_patch_size=2)
    videos = Qwen3VLVideoProcessor()
    processor = Qwen3VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template="")
    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"]}')
    write_manifest(folder, {"name": "tiny", "source": "demo"})
    return folder / "manifest.json"

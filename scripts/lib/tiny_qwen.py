"""Small (and full-size) Qwen3-VL models with random weights: configuration, tokenizer, processor, folder.

    tokenizer = make_tokenizer(texts, vocab_size=896)
    model = make_model(demo_config(tokenizer), seed=7)
    save_base(folder, model, make_processor(tokenizer, min_pixels=1024))

The folder holds what a Hugging Face folder of Qwen3-VL holds, so that every tool takes it for one. The tokenizer is a
byte-level BPE with Qwen2's own normalizer and pre-tokenizer and Qwen3-VL's special tokens in their order.
Nothing is downloaded. torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.lib.errors import EqaError
from scripts.lib.files import write_json, write_text
from scripts.lib.tokens import PROCESSOR_MAX_PIXELS, PROCESSOR_MIN_PIXELS

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

# the added tokens of Qwen3-VL in the order of their ids (151643 ... 151668 in the real vocabulary)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (  # added, but not special: they survive skip_special_tokens
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
REAL_VOCAB_SIZE = 151936  # rows of the real embedding, unused ones at the end included
REAL_FIRST_ADDED_ID = 151643
REAL_2B_PARAMETERS = 2_127_532_032  # Qwen3-VL-2B, the tied output layer counted once

# ChatML as LLaMA-Factory's template qwen3_vl_nothink renders it, pictures and videos where the message has them
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


# ------------------------------------------------------------------------------------------------ tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE learnt from `texts` with Qwen2's splitting.

    Args:
        texts: training text; words are counted, so the order does not matter.
        vocab_size: 256 bytes plus merges, >= 256; fewer come back where the texts have no more pairs.
    Returns:
        token -> id (bytes first), and the merges in order.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    backend = Tokenizer(BPE())
    like = Qwen2Tokenizer().backend_tokenizer  # its regular expression, whatever this version has
    backend.normalizer, backend.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(texts), trainer)
    import json

    learnt = json.loads(backend.to_str())["model"]
    return learnt["vocab"], [tuple(merge) for merge in learnt["merges"]]


def make_tokenizer(texts: Iterable[str], vocab_size: int, first_added_id: int | None = None) -> Qwen2Tokenizer:
    """A tokenizer of Qwen2's class with Qwen3-VL's added tokens.

    Args:
        texts: training text of the BPE.
        vocab_size: bytes plus merges plus the 26 added tokens at most.
        first_added_id: id of <|endoftext|>; None puts the added tokens right after the merges. A larger id leaves
            the ids between to tokens that no text gives (`<|unused_N|>`), as the real vocabulary's order wants.
    Raises:
        EqaError: vocab_size leaves no room for the bytes.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    added = len(SPECIAL_TOKENS) + len(PLAIN_ADDED_TOKENS)
    if vocab_size < 256 + added:
        least = 256 + added
        raise EqaError(
            f"a vocabulary of {vocab_size} tokens cannot hold 256 bytes and {added} added tokens; ask for {least}"
        )
    vocab, merges = train_bpe(texts, vocab_size - added)
    if first_added_id is not None:
        vocab |= {f"<|unused_{i}|>": i for i in range(len(vocab), first_added_id)}
    first = len(vocab)
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    plain = [AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS]
    # in the vocabulary too: the class adds its own special tokens first and would change their order
    vocab |= {token: first + i for i, token in enumerate((*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|endoftext|>", "<|im_end|>")],
        model_max_length=262144,
        clean_up_tokenization_spaces=False,
        errors="replace",
        split_special_tokens=False,
    )
    tokenizer.add_tokens(specials)
    tokenizer.add_tokens(plain)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_processor(tokenizer: Qwen2Tokenizer, min_pixels: int = PROCESSOR_MIN_PIXELS["demo"]) -> Qwen3VLProcessor:
    """The Qwen3-VL processor: patches of 16 px, 2x2 merged, mean and deviation 0.5.

    Args:
        min_pixels: least area that a picture is scaled up to; the real one's is 65,536 px.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    half = [0.5, 0.5, 0.5]
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": half, "image_std": half}
    size = {"shortest_edge": min_pixels, "longest_edge": PROCESSOR_MAX_PIXELS}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), **patches),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, **patches),
        chat_template=CHAT_TEMPLATE,
    )


# ------------------------------------------------------------------------------------------------ model


def _token_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)}


def _config(
    text: dict[str, Any], vision: dict[str, Any], sections: Sequence[int], tokenizer: Qwen2Tokenizer
) -> Qwen3VLConfig:
    from transformers import Qwen3VLConfig

    if sum(sections) * 2 != text["head_dim"]:
        raise ValueError(f"mrope sections {list(sections)} must sum to half of head_dim {text['head_dim']}")
    rope = {"rope_type": "default", "rope_theta": 5_000_000, "mrope_interleaved": True, "mrope_section": list(sections)}
    common = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": 1e-6}
    eos, pad = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")
    patches = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3}
    return Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        text_config={
            **common,
            **text,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
            "bos_token_id": pad,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "initializer_range": 0.02,
        },
        vision_config={**patches, **vision, "out_hidden_size": text["hidden_size"], "hidden_act": "gelu_pytorch_tanh"},
        tie_word_embeddings=True,
        **_token_ids(tokenizer),
    )


def padded(size: int, step: int = 64) -> int:
    """`size` rounded up to a multiple of `step`."""
    return -(-size // step) * step


def demo_config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    """The demo's shape. Rows of linear layers are multiples of 256 in the language model, of 64 in the vision tower.

    256: the block of llama.cpp's K-quants; 64: the block of bitsandbytes' 4-bit types.
    """
    text = {
        "vocab_size": padded(len(tokenizer)),
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 32768,
    }
    vision = {
        "depth": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "num_position_embeddings": 256,  # a 16x16 grid, interpolated to each picture's own
        "deepstack_visual_indexes": [0],
    }
    return _config(text, vision, (12, 10, 10), tokenizer)


def real_2b_config(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    """The exact shape of Qwen3-VL-2B: 2,127,532,032 parameters.

    Source: config.json of Qwen/Qwen3-VL-2B-Instruct.
    """
    text = {
        "vocab_size": REAL_VOCAB_SIZE,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
    }
    vision = {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    return _config(text, vision, (24, 20, 20), tokenizer)


def make_model(
    config: Qwen3VLConfig, seed: int, dtype: torch.dtype | None = None, device: str = "cpu"
) -> Qwen3VLForConditionalGeneration:
    """Random weights, equal for equal seeds on one device type, whatever the number of threads.

    Args:
        dtype: of the weights; None is float32.
        device: "cpu" or "cuda"; the two draw different numbers.
    """
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    with torch.random.fork_rng(devices=[device] if device != "cpu" else []), torch.device(device):
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or torch.float32)
        try:
            model = Qwen3VLForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(before)
    return model.eval()


def count_parameters(model: torch.nn.Module) -> int:
    """Weights of a model, a tied one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------ folder


def save_base(
    folder: Path, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, max_shard: str = "5GB"
) -> None:
    """Write a Hugging Face folder: weights, configuration, tokenizer, processor, chat template.

    Besides what transformers 5 writes, preprocessor_config.json and video_preprocessor_config.json, which the real
    repository has and transformers 4, llama.cpp and Ollama read.

    Raises:
        OSError: the disk is full, for one; safetensors has an exception of its own for that.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder, max_shard_size=max_shard)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from None
    for file in sorted(folder.glob("*.safetensors")):  # written for the owner alone; servers run as others
        file.chmod((folder / "config.json").stat().st_mode)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    video = processor.video_processor.to_dict()
    write_json(folder / "video_preprocessor_config.json", video, indent=2)
    tokenizer = processor.tokenizer
    write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    stops = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    generation = {"bos_token_id": stops[1], "eos_token_id": stops, "pad_token_id": stops[1], "do_sample": False}
    write_json(folder / "generation_config.json", generation, indent=2)

"""What Ollama's converter reads in a model folder, and how to make a transformers 5 folder readable for it.

Source: ollama v0.33.0-rc2 (fb307609) convert/: convert_qwen3vl.go, convert_qwen3.go, tokenizer.go, reader_*.go.
transformers 5 writes processor_config.json and text_config.rope_parameters; Ollama reads preprocessor_config.json,
text_config.rope_theta and text_config.rope_scaling. LMDeploy 0.18 reads torch_dtype, transformers 5 writes dtype.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.files import read_json, write_json
from scripts.lib.safetensors_heads import CutShort, read_head

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
# 0.12.7 is the first Ollama that imports Qwen3-VL, 0.17.1 the first that gives several pictures of one question their
# places (PostTokenize, deepstack in model/models/qwen3vl/model.go): before that all but the first overlap
MIN_VERSION = (0, 17, 1)
MIN_VERSION_GGUF = (0, 30, 0)  # first Ollama that takes a language model and a projector as two GGUF files
# since MIN_VERSION_GGUF Ollama tells llama.cpp to enlarge smaller pictures of Qwen-VL to so many tokens
LEAST_IMAGE_TOKENS = 1024
# and that is the most that become of such a picture which is at most four times as long as it is high, or the reverse:
# llama.cpp scales it to sides of a and b tokens with a * b = 1024 and rounds both up (mtmd-image.cpp,
# calc_size_preserved_ratio); (a + 1) * (b + 1) is largest at 16 and 64. Measured: 27 * 40 = 1080 of 192x128 px
MOST_ENLARGED_TOKENS = 17 * 65
# what Ollama's own engine, before MIN_VERSION_GGUF, does not read from the model
ENGINE_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "num_position_embeddings": 2304,
}
# first Ollama without a converter: it imports safetensors for MLX only, and Qwen3-VL is none of its models there
NO_CONVERTER = (0, 34, 1)
# sha256 of the Split regex that Ollama knows as Qwen2's pre-tokenizer (convert/tokenizer.go)
QWEN2_SPLIT_SHA256 = "1ff7f41064896984db5d1bb6ff64fa4bc29007d08c1b439e505b7392777a319e"


@contextlib.contextmanager
def _known_types(folder: Path) -> Iterator[None]:
    """Tell of a JSON value whose type no Qwen3-VL has: these files may come from anywhere."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise EqaError(
            f"{folder}: a value in its JSON files has another type than a Qwen3-VL's ({str(error)[:80]}); save the model "
            f"again with transformers, or merge again"
        ) from None


def mend_for_ollama(folder: Path) -> list[str]:
    """Write back the names that Ollama and LMDeploy read; transformers and llama.cpp read the folder as before.

    Args:
        folder: a Qwen3-VL folder as transformers 5 saves it. A folder that needs nothing stays as it is.
    Returns:
        What was added, such as ["config.json: text_config.rope_theta"].
    Raises:
        EqaError: a value that has to be copied is nowhere in the folder, or has a wrong type.
    """
    with _known_types(folder):
        return _mended(folder)


def _mended(folder: Path) -> list[str]:
    added: list[str] = []
    path = folder / "config.json"
    config = _object(path, "model config")
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise EqaError(f"{path}: no text_config, so no Qwen3-VL; merge a {ARCHITECTURE}")
    rope = text.get("rope_parameters") or {}
    if not text.get("rope_theta"):
        if not rope.get("rope_theta"):
            raise EqaError(
                f"{path}: neither text_config.rope_theta nor rope_parameters.rope_theta; Ollama would answer with NaN"
            )
        text["rope_theta"] = rope["rope_theta"]
        added.append("config.json: text_config.rope_theta")
    if not text.get("rope_scaling"):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if "mrope_section" not in scaling:
            raise EqaError(f"{path}: no mrope_section in text_config; positions of pictures would be lost")
        text["rope_scaling"] = scaling
        added.append("config.json: text_config.rope_scaling")
    for section, where in ((config, "torch_dtype"), (text, "text_config.torch_dtype")):
        if "torch_dtype" not in section and isinstance(section.get("dtype"), str):
            section["torch_dtype"] = section["dtype"]
            added.append(f"config.json: {where}")
    if added:
        write_json(path, config, indent=2)
    if not (folder / "preprocessor_config.json").is_file():
        processor = _object(folder / "processor_config.json", "processor config")
        image = processor.get("image_processor")
        if not isinstance(image, dict):
            raise EqaError(f"{folder / 'processor_config.json'}: no image_processor; save the processor with the model")
        wanted = {**image, "processor_class": processor.get("processor_class", "Qwen3VLProcessor")}
        write_json(folder / "preprocessor_config.json", wanted, indent=2)
        added.append("preprocessor_config.json")
    return added


def check_engine(folder: Path) -> None:
    """Whether Ollama's own engine, which ran Qwen3-VL before 0.30, can run the model.

    Raises:
        EqaError: another token id or grid of positions than it has built in; its runner would end at the first picture.
    Source: ollama v0.12.7 and v0.24.0 model/models/qwen3vl (measured: GGML_ASSERT with the demo's model).
    """
    path = folder / "config.json"
    config = _object(path, "model config")
    for key, built_in in ENGINE_IDS.items():
        have = (config.get("vision_config") or {}).get(key) if key == "num_position_embeddings" else config.get(key)
        if have != built_in:
            least = ".".join(map(str, MIN_VERSION_GGUF))
            raise EqaError(
                f"{path}: {key}={have}; Ollama before {least} has Qwen3-VL's own {built_in} built in and its runner would "
                f"end at the first picture: use Ollama {least} or newer"
            )


def ollama_files(folder: Path) -> list[str]:
    """Names of the files that `ollama create` uploads from a folder with `FROM .`, sorted.

    Source: ollama v0.33.0-rc2 parser/parser.go filesForModel. Our own manifest.json and verify.json are left out:
    its converter does not read them.
    """
    names = [path.name for path in sorted(folder.glob("model*.safetensors"))]
    names += [p.name for p in sorted(folder.glob("*.json")) if p.name not in ("manifest.json", "verify.json")]
    names += [p.name for p in (folder / "chat_template.jinja", folder / "tokenizer.model") if p.is_file()]
    return sorted(names)


def ollama_view(folder: Path) -> dict:
    """The metadata that Ollama's converter would put into its GGUF, by its names and with its defaults.

    Raises:
        EqaError: where the converter gives an error, and where it would silently make a model that answers nonsense
            (rope base 0, unknown pre-tokenizer, a missing shard, no size limits for pictures, a value of a wrong type).
    """
    with _known_types(folder):
        return _view(folder)


def _view(folder: Path) -> dict:
    config = _object(folder / "config.json", "model config")
    architectures = config.get("architectures") or [""]
    if architectures[0] != ARCHITECTURE:
        raise EqaError(f"{folder / 'config.json'}: architecture {architectures[0]!r}; {ARCHITECTURE} is wanted")
    text, vision = config.get("text_config") or {}, dict(config.get("vision_config") or {})
    vision |= _object(folder / "preprocessor_config.json", "file that Ollama reads for Qwen3-VL")
    rope = text.get("rope_scaling") or {}
    if rope.get("type", "") not in ("", "mrope", "default", "yarn"):
        raise EqaError(
            f"{folder / 'config.json'}: rope_scaling.type={rope['type']!r} stops Ollama's converter; remove the key"
        )
    view = {
        "general.architecture": "qwen3vl",
        "block_count": text.get("num_hidden_layers", 0),
        "context_length": text.get("max_position_embeddings", 0),
        "embedding_length": text.get("hidden_size", 0),
        "feed_forward_length": text.get("intermediate_size", 0),
        "attention.head_count": text.get("num_attention_heads", 0),
        "attention.head_count_kv": text.get("num_key_value_heads", 0),
        "attention.key_length": text.get("head_dim", 0),
        "attention.layer_norm_rms_epsilon": text.get("rms_norm_eps", 0),
        "rope.freq_base": text.get("rope_theta", 0),
        "rope.dimension_sections": [*rope.get("mrope_section", []), 0][:4],
        "vision.block_count": vision.get("depth") or 32,
        "vision.embedding_length": vision.get("hidden_size", 0),
        "vision.attention.head_count": vision.get("num_heads") or 16,
        "vision.num_channels": vision.get("in_channels", 0),
        "vision.patch_size": vision.get("patch_size") or 14,
        "vision.spatial_merge_size": vision.get("spatial_merge_size") or 2,
        "vision.temporal_patch_size": vision.get("temporal_patch_size") or 2,
        "vision.deepstack_visual_indexes": vision.get("deepstack_visual_indexes") or [],
        "vision.shortest_edge": (vision.get("size") or {}).get("shortest_edge", 0),
        "vision.longest_edge": (vision.get("size") or {}).get("longest_edge", 0),
        "vision.image_mean": vision.get("image_mean") or [],
        "vision.image_std": vision.get("image_std") or [],
    }
    zero = sorted(key for key, value in view.items() if value in (0, []) and key != "vision.deepstack_visual_indexes")
    if zero:
        raise EqaError(
            f"{folder}: Ollama would read {zero[0]}={view[zero[0]]}; merge again, or mend the folder (mend_for_ollama)"
        )
    view |= _tokenizer_view(folder)
    view["tensors"] = len(check_shards(folder))
    return view


def _tokenizer_view(folder: Path) -> dict:
    tokenizer = _object(folder / "tokenizer.json", "tokenizer")
    settings = _object(folder / "tokenizer_config.json", "tokenizer config")
    digest = split_regex_sha256(tokenizer)
    if digest != QWEN2_SPLIT_SHA256:
        raise EqaError(
            f"{folder / 'tokenizer.json'}: Split regex {digest[:12]} is not Qwen2's ({QWEN2_SPLIT_SHA256[:12]}); "
            f"Ollama would cut words by its default rule; use a base model with Qwen's tokenizer"
        )
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    eos = settings.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if eos not in added:
        raise EqaError(
            f"{folder / 'tokenizer_config.json'}: eos_token={eos!r} is no added token; Ollama would never stop"
        )
    return {
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": len({*tokenizer["model"]["vocab"].values(), *added.values()}),
        "tokenizer.ggml.eos_token_id": added[eos],
    }


def split_regex_sha256(tokenizer: dict) -> str:
    """Hex sha256 over the Split regexes of a parsed tokenizer.json: how Ollama tells pre-tokenizers apart."""
    pre = tokenizer.get("pre_tokenizer") or {}
    digest = hashlib.sha256()
    for part in pre.get("pretokenizers", [pre]):
        if part.get("type") == "Split":
            digest.update((part.get("pattern") or {}).get("Regex", "").encode())
    return digest.hexdigest()


def check_shards(folder: Path) -> dict[str, str]:
    """Tensor name -> safetensors file, with every shard of the index present and complete.

    Raises:
        EqaError: no weights, a shard missing or cut short, a tensor that the index promises and no shard has.
    """
    shards = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    promised: dict[str, str] = {}
    if index.is_file():
        promised = _object(index, "index of the shards").get("weight_map") or {}
        for name in sorted(set(promised.values())):
            if not (folder / Path(name).name).is_file():
                raise EqaError(
                    f"{folder / Path(name).name}: this shard of {index.name} is missing; `dvc checkout` or merge again"
                )
    if not shards:
        raise EqaError(f"{folder}: no model*.safetensors; merge again: snakemake --force results/merged/manifest.json")
    found = {tensor: shard.name for shard in shards for tensor in safetensors_names(shard)}
    lost = sorted(set(promised) - set(found))
    if lost:
        raise EqaError(
            f"{folder / promised[lost[0]]}: tensor {lost[0]} is not in it although {index.name} says so; merge again"
        )
    return found


def safetensors_names(path: Path) -> list[str]:
    """Names of the tensors in one safetensors file, its length checked against its header.

    Raises:
        EqaError: no safetensors file, or cut short.
    """
    try:
        return sorted(read_head(path))
    except CutShort as error:
        raise EqaError(f"{path}: {error}; it is cut short: `dvc checkout` or merge again") from None
    except ValueError as error:
        raise EqaError(f"{path}: no safetensors file ({error}); `dvc checkout` or merge again") from None


def _object(path: Path, what: str) -> dict:
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise EqaError(f"{path}: this {what} is no JSON object; merge again")
    return value

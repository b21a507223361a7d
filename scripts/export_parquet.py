"""The LLaMA-Factory data as Parquet with the pictures inside, for `datasets.load_dataset`.   By hand:

    python -m scripts.export_parquet --dataset-dir results/sft --frames results/frames/manifest.json \
        --output-dir results/sft/parquet

Then: datasets.load_dataset("parquet", data_dir="results/sft/parquet") has the splits train, validation, test.
Open-EQA's real frames may not be redistributed, neither may Parquet files that hold them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.cli import entry, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, read_json, read_manifest, safe_join, sha256_file, write_manifest

if TYPE_CHECKING:
    import datasets

PARTS = ("train", "val", "test")
ROWS_A_GROUP = 64  # 64 rows of 8 pictures of 30 kB are 15 MB: what is in memory at once


def features(pictures: bool, question_id: bool = True) -> datasets.Features:
    """Columns of a part; `load_dataset("json", data_files={...}, features=features(False))` reads all parts at once.

    messages: turns, user and assistant by turns; content of the first user turn starts with one `<image>` a picture.
    images: paths relative to results/frames in the JSON files, pictures in Parquet.
    question_ids: the questions of the turns, in order.
    question_id: the same where a row has one question by design, else null (conversations of an episode).
    episode_history: Open-EQA's id of the episode that the pictures are of.

    Args:
        pictures: whether images are pictures (Parquet) or paths (JSON).
        question_id: whether rows have the key: in JSON val and test do, and train with `data.conversation: question`.
    """
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = {
        "messages": List({"role": text, "content": text}),
        "images": List(Image() if pictures else text),
        "question_ids": List(text),
        "episode_history": text,
    }
    return Features(columns | ({"question_id": text} if question_id else {}))


def with_pictures(rows: Sequence[Mapping], frames: Path, listed: Mapping[str, Mapping]) -> Iterator[dict]:
    """Rows whose images are {"bytes", "path"}; each file is checked against the frames' manifest once.

    Raises:
        EqaError: a picture is missing or differs from the manifest.
    """
    good: set[str] = set()
    for row in rows:
        images = []
        for name in row["images"]:
            file = safe_join(frames, name)
            if name not in good:
                if name not in listed or not file.is_file():
                    raise EqaError(f"{file}: no such picture in {frames / 'manifest.json'}; run build_sft again")
                if sha256_file(file) != listed[name]["sha256"]:
                    raise EqaError(f"{file}: differs from {frames / 'manifest.json'}; `dvc checkout` makes it right")
                good.add(name)
            images.append({"bytes": file.read_bytes(), "path": name})
        yield {**row, "images": images}


def run(dataset_dir: Path, frames: Path, output: Path) -> dict:
    """Write PART.parquet and a manifest; `output` is replaced as a whole.

    Raises:
        EqaError: a part or a picture is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = read_manifest(frames).get("files", {})
    counts = {}
    with atomic_folder(output) as part_folder:
        for part in PARTS:
            file = dataset_dir / f"{part}.json"
            rows = read_json(file, "LLaMA-Factory file")
            if not isinstance(rows, list) or not rows:
                raise EqaError(f"{file}: no rows; run build_sft again")
            schema = features(True).arrow_schema  # the same for all parts, else they do not load together
            with pq.ParquetWriter(part_folder / f"{part}.parquet", schema, compression="zstd") as writer:
                group = []
                for row in with_pictures(rows, frames.parent, listed):
                    group.append(row)
                    if len(group) == ROWS_A_GROUP:
                        writer.write_table(pa.Table.from_pylist(group, schema))
                        group = []
                if group:
                    writer.write_table(pa.Table.from_pylist(group, schema))
            counts[part] = len(rows)
        write_manifest(part_folder)
    return {"rows": counts}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export_parquet", description="Write Parquet files with the pictures inside.")
    parser.add_argument("--dataset-dir", type=path_argument, required=True, help="results/sft")
    parser.add_argument("--frames", type=path_argument, required=True, help="results/frames/manifest.json")
    parser.add_argument("--output-dir", type=path_argument, required=True, help="results/sft/parquet")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return entry("export_parquet", build_parser, lambda a: run(a.dataset_dir, a.frames, a.output_dir), argv)


if __name__ == "__main__":
    sys.exit(main())

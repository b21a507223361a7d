"""Write the report: one self-contained page with scores, pictures, curves, checks and times.   By hand:

    python -m scripts.write_report --results-dir results --base models/base/manifest.json --benchmarks-dir benchmarks \
        --logs-dir logs --config '{"report":{"frames":"embed"}}' --output results/report/index.html

Every part may be missing: the page then says so. It works from disk, without a network.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.lib.cli import entry, json_argument, path_argument
from scripts.lib.errors import EqaError
from scripts.lib.files import atomic_folder, remove, safe_join, write_text
from scripts.lib.progress import clock
from scripts.lib.report_data import clean, gather, reason, signed
from scripts.lineage import jobs_behind, jobs_so_far

TEMPLATES = Path(__file__).parent / "templates/report"
FRAMES = ("embed", "link", "none")
ORIGINS = {"demo": "drawn", "source": "real"}


# ------------------------------------------------------------------------------------------------ pure


def embed_json(value: object) -> str:
    """JSON that may stand inside <script>: no '<', '>' or '&', so that no text can end the element or open a comment.

    U+2028 and U+2029 are escaped too: older scripts take them for line ends.
    """
    packed = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        packed = packed.replace(sign, f"\\u{ord(sign):04x}")
    return packed


def duration(seconds: float) -> str:
    """'under 0.1 s', '0.4 s', '12 s', '3 min 05 s' or '2 h 07 min'."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return clock(seconds)


def place(value: float) -> str:
    """A score as a place on an axis of 0..100."""
    return f"{min(100.0, max(0.0, value)):.2f}".rstrip("0").rstrip(".")


def gallery_data(gallery: Mapping, episodes: Sequence[Mapping], frames_mode: str) -> dict:
    """What the script of the page reads: questions with small numbers instead of repeated names."""
    categories = {name: i for i, (name, _) in enumerate(gallery["categories"])}
    sources = {name: i for i, (name, _) in enumerate(gallery["sources"])}
    numbers = {one["id"]: i for i, one in enumerate(episodes)}
    return {
        "metrics": [{key: one[key] for key in ("key", "label")} for one in gallery["metrics"]],
        "models": [{"label": one["label"]} for one in gallery["models"]],
        "left": gallery["left"],
        "right": gallery["right"],
        "categories": list(categories),
        "sources": list(sources),
        "episodes": list(episodes),
        "pictures": frames_mode,
        "questions": [
            {
                "id": record["id"],
                "q": record["q"],
                "c": categories[record["c"]],
                "s": sources[record["s"]],
                "e": numbers[record["e"]],
                "a": record["a"],
                "p": record["p"],
                "m": record["m"],
            }
            for record in gallery["questions"]
        ],
    }


def script_hash(script: str) -> str:
    """Content-Security-Policy source of an inline script: only the page's own two scripts may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def render(context: Mapping, episodes: Sequence[Mapping], pictures: Sequence[Sequence], frames_mode: str) -> str:
    """The page.

    Args:
        context: of `report_data.gather` or of `compare_revisions`.
        episodes: of `episode_records`.
        pictures: base64 JPEGs of each episode, or [] where they are not embedded.
        frames_mode: config `report.frames`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": duration, "place": place}
    theme_script, page_script, css = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("theme.js", "page.js", "style.css")
    )
    page = environment.get_template("index.html.j2").render(
        **context,
        css=Markup(css),
        theme_script=Markup(theme_script),
        page_script=Markup(page_script),
        script_hashes=[Markup(script_hash(script)) for script in (theme_script, page_script)],
        page_title=page_title(context),
        data_json=Markup(embed_json(gallery_data(context["gallery"], episodes, frames_mode))),
        pictures=[Markup(embed_json(part)) for part in pictures],
    )
    return page.lstrip() + "\n"


def page_title(context: Mapping) -> str:
    """What the browser's tab says."""
    if context["kind"] == "comparison":
        return f"{context['right']['label']} against {context['left']['label']}"
    return f"{context['headline']['title']} · {context['preset'] or 'report'}"


# ------------------------------------------------------------------------------------------------ files


def episode_records(context: Mapping) -> list[dict]:
    """The test part's episodes in the order of their ids, with the frames that the manifest names."""
    spaces: dict[str, str] = {}
    for record in context["gallery"]["questions"]:
        spaces.setdefault(record["e"], record["space"])
    records = []
    for name in sorted(spaces):
        frames = context["frames"].get(name, {"frames": [], "indices": [], "total": None})
        total = frames["total"]
        records.append(
            {
                "id": name,
                "space": spaces[name],
                "origin": ORIGINS.get(context["origins"].get(name, ""), ""),
                "frames": frames["frames"],
                "indices": frames["indices"],
                "total": int(total) if total is not None else None,
            }
        )
    return records


def read_picture(folder: Path, relative: str) -> bytes | None:
    """A JPEG of results/frames, or None where it is gone, unreadable, outside the folder or no JPEG."""
    try:
        data = safe_join(folder, relative).read_bytes()
    except (EqaError, OSError, ValueError):
        return None
    return data if data.startswith(b"\xff\xd8") else None


def place_pictures(episodes: Sequence[dict], frames: Path, output: Path, mode: str) -> tuple[list[list], list[str]]:
    """Embed, copy or leave out the pictures; sets each episode's `frames` to what the page loads.

    Args:
        episodes: of `episode_records`; changed in place.
        frames: results/frames.
        output: the page; pictures to link go into a folder beside it: frames/ for index.html, else NAME_frames/.
        mode: embed, link or none.
    Returns:
        Base64 pictures of each episode (embed only), and the frames that are missing.
    """
    beside = output.with_name("frames" if output.stem == "index" else f"{output.stem}_frames")
    gone: list[str] = []
    embedded: list[list] = []
    if mode == "none":
        for one in episodes:
            one["frames"], one["indices"] = [], []
        remove(beside)
        return [], gone
    if mode == "embed":
        for one in episodes:
            held = [read_picture(frames, name) for name in one["frames"]]
            gone += [name for name, data in zip(one["frames"], held, strict=True) if data is None]
            embedded.append([None if data is None else base64.b64encode(data).decode("ascii") for data in held])
            one["frames"] = []
        remove(beside)
        return embedded, gone
    with atomic_folder(beside) as part:
        for one in episodes:
            links: list[str | None] = []
            for name in one["frames"]:
                if read_picture(frames, name) is None:
                    gone.append(name)
                    links.append(None)
                    continue
                target = safe_join(part, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(safe_join(frames, name), target)
                links.append(f"{url_path(beside.name)}/{url_path(name)}")
            one["frames"] = links
    return [], gone


def url_path(relative: str) -> str:
    """A relative path as part of a URL."""
    from urllib.parse import quote

    return quote(relative, errors="surrogatepass")


def check_mode(config: Mapping) -> str:
    """config `report.frames`.

    Raises:
        EqaError: none of embed, link, none.
    """
    part = config.get("report")
    mode = part.get("frames") if isinstance(part, Mapping) else None
    if mode not in FRAMES:
        raise EqaError(f"config: report.frames={mode!r}; embed, link or none is wanted")
    return mode


def write_page(context: dict, frames: Path, output: Path, mode: str) -> dict:
    """Pictures and page; returns facts for stdout."""
    context = {**context, "missing": list(context["missing"])}
    episodes = episode_records(context)
    without = sum(not one["frames"] for one in episodes)
    pictures, gone = place_pictures(episodes, frames, output, mode)
    if mode != "none" and without and context["frames"]:
        context["missing"].append(
            {
                "path": "results/frames/manifest.json",
                "why": f"names no pictures of {without} of {len(episodes)} test episodes",
            }
        )
    if gone:
        more = f" and {len(gone) - 1} more pictures" if len(gone) > 1 else ""
        context["missing"].append({"path": f"results/frames/{clean(gone[0])}{more}", "why": "missing or no JPEG"})
    page = render(context, episodes, pictures, mode)
    write_text(output, page)
    return {
        "questions": len(context["gallery"]["questions"]),
        "missing": len(context["missing"]),
        "kilobytes": len(page.encode()) // 1024,
    }


def known_jobs(lock: Path | None) -> tuple[dict, list[str], list[dict]]:
    """Jobs and outputs of `lineage.jobs_so_far`, and what to tell where the lock cannot be read; nothing without a lock."""
    if lock is None:
        return {}, [], []
    try:
        return *jobs_so_far(lock), []
    except EqaError as error:
        return {}, [], [{"path": lock.name, "why": reason(error, lock)}]


def run(args: argparse.Namespace) -> dict:
    """Gather, render, write."""
    mode = check_mode(args.config)
    if not args.results_dir.is_dir():
        raise EqaError(
            f"{args.results_dir}: no such folder; `snakemake --cores 8` makes the results that the report shows"
        )
    jobs, unknown, fault = known_jobs(args.lock)
    context = gather(
        args.results_dir,
        args.base,
        args.benchmarks_dir,
        args.logs_dir,
        lambda files: jobs_behind(jobs, files),
    )
    context["lineage_unknown"] = [name for name in unknown if name != args.output.as_posix()]
    context["missing"] += fault
    return write_page(context, args.results_dir / "frames", args.output, mode)


def build_parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(prog="write_report", description=__doc__.splitlines()[0])
    parser.add_argument("--results-dir", type=path_argument, required=True, help="folder results/ of a run")
    parser.add_argument(
        "--base", type=path_argument, default=Path("models/base/manifest.json"), help="manifest of the base model"
    )
    parser.add_argument(
        "--benchmarks-dir", type=path_argument, default=Path("benchmarks"), help="Snakemake's times and memory"
    )
    parser.add_argument(
        "--logs-dir", type=path_argument, default=Path("logs"), help="logs, whose last line holds facts"
    )
    parser.add_argument(
        "--lock",
        type=path_argument,
        help="provenance.lock.json: with it the page says what made each artifact, by it and by Snakemake's records here",
    )
    parser.add_argument(
        "--config", type=json_argument, required=True, help='{"report": {"frames": "embed|link|none"}} as JSON'
    )
    parser.add_argument("--output", type=path_argument, required=True, help="the page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Terminal and Snakemake."""
    return entry("write_report", build_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())

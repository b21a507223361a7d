"""Open-EQA question files: read, checked, stripped."""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath

from scripts.lib.errors import EqaError
from scripts.lib.files import read_json

REQUIRED = ("question_id", "question", "answer", "category", "episode_history")
# a text with one of these would be read as a picture or as a turn of the conversation
_CONTROL_MARKS = re.compile(r"<image>|<video>|<audio>|<\|[^|<>\s]{1,40}\|>")
# names that the frames' folder uses itself
_TAKEN = frozenset({"shards", "manifest.json", "archive.json"})
_MAX_NAME_BYTES = 240  # file systems allow 255; .part and a suffix need room


def check_episode_history(episode: str) -> None:
    """Whether an id of an episode can be a folder under any root.

    Raises:
        EqaError: says what is wrong with it; without the file's name.
    """
    if not episode:
        raise EqaError("episode_history is empty; name the episode")
    if "\0" in episode:
        raise EqaError(f"episode_history {episode!r} has a NUL; remove it")
    if any(not c.isprintable() for c in episode):
        raise EqaError(f"episode_history {episode!r} has a control character; remove it")
    if "\\" in episode:
        raise EqaError(f"episode_history {episode!r} has a backslash; separate folders by /")
    if episode.startswith("/"):
        raise EqaError(f"episode_history {episode!r} is an absolute path; make it relative to its root")
    parts = episode.split("/")
    if ".." in parts:
        raise EqaError(f"episode_history {episode!r} leaves its root by '..'; remove that part")
    if "" in parts or "." in parts:
        raise EqaError(f"episode_history {episode!r} has an empty part or '.'; write it as {PurePosixPath(episode)}")
    for part in parts:
        if len(part.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise EqaError(f"episode_history {part[:40]!r}... is longer than {_MAX_NAME_BYTES} bytes; shorten it")
        if part.startswith(".") or part.endswith((".part", ".old")):
            raise EqaError(f"episode_history {episode!r} has a hidden, .part or .old folder; rename it")
    if parts[0] in _TAKEN:
        raise EqaError(
            f"episode_history {episode!r} starts with {parts[0]!r}, which results/frames uses itself; rename it"
        )


def check_question(row: object) -> dict:
    """One question of the file, its texts stripped.

    Returns:
        question_id, question, answer, category, episode_history, extra_answers (a list, maybe empty).
    Raises:
        EqaError: a missing key, a wrong type, an empty text; without the file's name.
    """
    if not isinstance(row, dict):
        raise EqaError(f"is {_kind(row)}; an object with {', '.join(REQUIRED)} is wanted")
    for key in REQUIRED:
        if key not in row:
            raise EqaError(f"lacks {key}; each question needs {', '.join(REQUIRED)}")
    clean = {key: _text(key, row[key]) for key in REQUIRED}
    for key in ("category", "episode_history", "question"):  # said again and again: one copy of each in memory
        clean[key] = sys.intern(clean[key])
    extra = row.get("extra_answers")
    if extra is not None and not isinstance(extra, list):
        raise EqaError(f"extra_answers is {_kind(extra)}; a list of texts is wanted")
    # Open-EQA itself has an empty one: no accepted answer, and no fault of the user's
    clean["extra_answers"] = [
        _text("extra_answers", answer) for answer in extra or [] if not (isinstance(answer, str) and not answer.strip())
    ]
    check_episode_history(clean["episode_history"])
    return clean


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise EqaError(f"{key} is {_kind(value)}; a text is wanted")
    if key == "episode_history":
        text = value.strip(" \t\r\n")  # a NUL or another control character is refused later, not dropped
    else:
        text = value.strip()
    if not text:
        raise EqaError(f"{key} is empty; write it or remove the question")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EqaError(f"{key} has half a character (a lone surrogate); mend the text") from None
    if key in ("question", "answer", "extra_answers") and (mark := _CONTROL_MARKS.search(text)):
        raise EqaError(f"{key} has the control mark {mark.group()}, which the model would obey; remove it")
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def read_questions(path: Path) -> list[dict]:
    """Read and check a question file.

    Args:
        path: a JSON list in the schema of open-eqa-v0.json; may be empty.
    Returns:
        One dict a question (see `check_question`), in the file's order.
    Raises:
        EqaError: the first fault, in one line: the file, the question's position and id, what is wrong, the way out.
    """
    rows = read_json(path, "question file")
    if not isinstance(rows, list):
        raise EqaError(f"{path}: this question file is {_kind(rows)}; a list of questions is wanted")
    clean: list[dict] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        try:
            question = check_question(row)
        except EqaError as error:
            name = row.get("question_id") if isinstance(row, dict) else None
            label = f" ({name[:60]})" if isinstance(name, str) and name else ""
            raise EqaError(f"{path}: question {number}{label}: {error}") from None
        first = seen.setdefault(question["question_id"], number)
        if first != number:
            raise EqaError(
                f"{path}: question {number} repeats question_id {question['question_id']!r} of question {first}; "
                f"give each its own"
            )
        clean.append(question)
    check_nesting(path, {question["episode_history"] for question in clean})
    return clean


def check_nesting(path: Path, episodes: set[str]) -> None:
    """Refuse an episode whose folder would hold another episode's.

    Raises:
        EqaError: names both.
    """
    for episode in sorted(episodes):
        parent = episode
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in episodes:
                raise EqaError(
                    f"{path}: episode {episode} lies inside the folder of episode {parent}; rename one of them"
                )

"""Ask the served model about pictures, in one line:
python -m scripts.ask --server llamacpp --question "What color is the sofa?" frame0.jpg frame1.jpg

Without --question it is a conversation: one question a line, an empty line or Ctrl-D ends it. Servers: ollama
(OLLAMA_HOST), lmdeploy and llamacpp (serve.host, serve.port in config/config.yaml; key in EQA_SERVE_API_KEY).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.build_sft import prompt_file
from scripts.import_ollama import parse_version
from scripts.lib import sharegpt
from scripts.lib.chat_client import SERVERS, ChatClient, Decoding, Message, default_url, read_image
from scripts.lib.cli import EXIT_USER_ERROR, one_line, path_argument
from scripts.lib.config import check_shape, load_yaml
from scripts.lib.errors import EqaError
from scripts.lib.ollama_folder import MIN_VERSION_GGUF, MOST_ENLARGED_TOKENS
from scripts.lib.readers import PNG_MAGIC, check_whole, image_size
from scripts.lib.tokens import MARKS_PER_IMAGE, TEXT_ALLOWANCE, TOKEN_SIDE_PX, fitted_size

if TYPE_CHECKING:
    import numpy as np

SCHEMA = Path(__file__).resolve().parents[1] / "config/schema.yaml"
LONGEST_ANSWER = 65536  # tokens
# config predict.prompt -> what rules/data.smk gives to build_sft
PROMPTS = {
    "short_answer": Path("config/prompts/short_answer.txt"),
    "official": Path("data/raw/openeqa/prompts/manifest.json"),
}


def prepare_picture(path: Path, max_pixels: int) -> tuple[bytes, int]:
    """A picture as the model saw its training pictures: within vision.image_max_pixels, sides multiples of 32 px.

    Args:
        path: any picture file that OpenCV reads.
        max_pixels: config vision.image_max_pixels; 0 leaves the file as it is.
    Returns:
        (file bytes, tokens of the picture with its marks).
    Raises:
        EqaError: no picture.
    """
    import cv2
    import numpy as np

    data = path.read_bytes() if path.is_file() else read_image(path)
    if data[:8] == PNG_MAGIC or data[:2] == b"\xff\xd8":
        image_size(data, str(path))
        check_whole(data, str(path))
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:  # more pixels than OpenCV takes
        pixels = None
    if pixels is None:
        raise EqaError(f"{path}: no picture that can be read (PNG, JPEG, WebP or BMP is wanted)")
    height, width = pixels.shape[:2]
    if not max_pixels:
        return read_image(path), round(height / TOKEN_SIDE_PX) * round(width / TOKEN_SIDE_PX) + MARKS_PER_IMAGE
    try:
        wanted = fitted_size(width, height, max_pixels)
    except EqaError as error:  # too long for its width
        raise EqaError(f"{path}: {error}") from None
    tokens = (wanted[0] // TOKEN_SIDE_PX) * (wanted[1] // TOKEN_SIDE_PX) + MARKS_PER_IMAGE
    if wanted == (width, height) and data.startswith(b"\xff\xd8\xff") and _stored_upright(data, pixels):
        return data, tokens  # a stored frame: not encoded a second time
    pixels = cv2.resize(pixels, wanted, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), tokens


def _stored_upright(data: bytes, shown: np.ndarray) -> bool:
    """Whether a JPEG's pixels lie as they are to be seen: servers differ in whether they heed an Exif orientation."""
    import cv2
    import numpy as np

    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.array_equal(stored, shown)


def check_room(tokens: Sequence[int], context: int | None, answer: int) -> None:
    """Whether the pictures fit the server's context.

    Args:
        tokens: of each picture.
        context: of the server; None where it does not say, then it has the last word itself.
        answer: longest answer. Unit: tokens.
    Raises:
        EqaError: they do not fit; says how many would.
    """
    if context is None or sum(tokens) + TEXT_ALLOWANCE + answer <= context:
        return
    room, fit = context - TEXT_ALLOWANCE - answer, 0
    while fit < len(tokens) and sum(tokens[: fit + 1]) <= room:
        fit += 1
    raise EqaError(
        f"{len(tokens)} pictures are {sum(tokens)} tokens, with {TEXT_ALLOWANCE} for the question and {answer} for the "
        f"answer more than the server's context of {context}; send {fit} or fewer, or serve a longer context"
    )


def check_next_turn(used: int | None, context: int | None, answer: int) -> None:
    """Whether one more question and answer fit behind the conversation so far.

    Args:
        used: tokens of all turns so far, as the server counted them; None where it does not.
        context: of the server; None where it does not say.
        answer: longest answer. Unit: tokens.
    Raises:
        EqaError: they do not fit.
    """
    if used is None or context is None or used + TEXT_ALLOWANCE + answer <= context:
        return
    raise EqaError(
        f"the conversation holds {used} tokens, with {TEXT_ALLOWANCE} for the next question and {answer} for its answer "
        f"more than the server's context of {context}; start a new one, or serve a longer context"
    )


def picture_costs(client: ChatClient, pictures: Sequence[tuple[bytes, int]]) -> list[int]:
    """Tokens of each picture in the server's context: Ollama from 0.30 on enlarges small ones."""
    costs = [tokens for _, tokens in pictures]
    if client.server == "ollama" and costs and parse_version(client.version()) >= MIN_VERSION_GGUF:
        return [max(tokens, MOST_ENLARGED_TOKENS + MARKS_PER_IMAGE) for tokens in costs]
    return costs


def read_pictures(paths: Sequence[Path], max_pixels: int) -> list[tuple[bytes, int]]:
    """`prepare_picture` of each.

    Raises:
        EqaError: a path that cannot be read, or no picture.
    """
    prepared = []
    for path in paths:
        try:
            prepared.append(prepare_picture(path, max_pixels))
        except OSError as error:
            raise EqaError(f"{path}: {error.strerror}; name a picture that can be read") from None
    return prepared


def fill_prompt(name: str, question: str) -> str:
    """The question inside the prompt that the model was trained with; the bare question for name "".

    Marks of pictures and turns in the question lose their meaning, as in the training data.
    """
    question = sharegpt.neutralize(question)
    if not name:
        return question
    path = prompt_file(PROMPTS[name])
    return sharegpt.prompt_text(sharegpt.read_prompt(path), question)


def as_text(line: str, where: str) -> str:
    """`line` without white space around it.

    Raises:
        EqaError: bytes that are no UTF-8, which Python carries as surrogates and no request can.
    """
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EqaError(
            f"{where}: character {error.start + 1} of the question is no UTF-8 text; type it again, or set a UTF-8 locale"
        ) from None
    return line.strip()


def questions(one: str | None) -> Iterator[str]:
    """The one question, or lines from the terminal (or a pipe) until an empty one.

    Raises:
        EqaError: an empty --question; a question that is no UTF-8 text.
    """
    if one is not None:
        if not one.strip():
            raise EqaError('--question "": a question is wanted')
        yield as_text(one, "--question")
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise EqaError("standard input: a line of it is no UTF-8 text; convert it first (iconv)") from None
        if not line.strip():
            return
        yield as_text(line, "standard input")


def run(args: argparse.Namespace) -> None:
    """Ask and print the answer as it comes.

    Raises:
        EqaError: no picture, too many of them, a conversation longer than the server's context, server down.
    """
    config = load_yaml(args.config)
    try:
        check_shape(config, load_yaml(SCHEMA))
    except EqaError as error:
        raise EqaError(f"{args.config}: {error}") from None
    serve, predict = config["serve"], config["predict"]
    max_pixels = 0 if args.full_size else config["vision"]["image_max_pixels"]
    pictures = read_pictures(args.pictures, max_pixels)
    decoding = Decoding(args.max_new_tokens or predict["max_new_tokens"], args.temperature, predict["seed"])
    url = args.url or default_url(args.server, serve["host"], serve["port"])
    prompt = "" if args.raw else predict["prompt"]
    with ChatClient(args.server, url, args.model or serve["model_name"]) as client:
        client.check()
        context = client.context_length()
        check_room(picture_costs(client, pictures), context, decoding.max_new_tokens)
        turns: list[Message] = []
        used: int | None = None
        for question in questions(args.question):
            check_next_turn(used, context, decoding.max_new_tokens)
            # the pictures go with the first turn; later turns see them through the conversation
            images = [data for data, _ in pictures] if not turns else []
            turns.append(Message("user", fill_prompt(prompt, question), images))
            answer = ""
            for piece in client.stream(turns, decoding):
                print(piece, end="", flush=True)
                answer += piece
            print(flush=True)
            turns.append(Message("assistant", answer))
            if client.prompt_tokens is not None:
                used = client.prompt_tokens + (client.answer_tokens or 0)


def token_count(text: str) -> int:
    """argparse type: 1 or more."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= LONGEST_ANSWER:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to {LONGEST_ANSWER} is wanted")
    return int(text)


def temperature(text: str) -> float:
    """argparse type: 0 to 2, as servers take it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 (greedy) to 2 is wanted")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ask", description="Ask the served model about pictures.")
    parser.add_argument("pictures", nargs="*", type=path_argument, metavar="PICTURE", help="pictures, in order")
    parser.add_argument("--server", choices=SERVERS, default="lmdeploy", help="what kind of server")
    parser.add_argument("--question", help="ask once; without it, a conversation")
    parser.add_argument("--url", default="", help="address of the server, in place of the config's")
    parser.add_argument("--model", default="", help="name of the model, in place of serve.model_name")
    parser.add_argument("--config", type=path_argument, default=Path("config/config.yaml"), help="the recipe")
    parser.add_argument("--max-new-tokens", type=token_count, help="longest answer, in place of predict.max_new_tokens")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy")
    parser.add_argument("--raw", action="store_true", help="send the question without the recipe's prompt around it")
    parser.add_argument("--full-size", action="store_true", help="send pictures as they are, whatever their size")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with contextlib.suppress(AttributeError):  # half a surrogate pair in an answer, or a terminal that is not UTF-8
        sys.stdout.reconfigure(errors="replace")
    try:
        run(args)
    except EqaError as error:
        print(f"ask: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `ask ... | head`: nobody reads on
        _write_no_more()
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"ask: {where}{error.strerror}; free space or mend permissions, then ask again", file=sys.stderr)
        _write_no_more()
        return EXIT_USER_ERROR
    return 0


def _write_no_more() -> None:
    """Let what still waits for standard output go nowhere, instead of into a second error at the end."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file, in a program that imports this one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

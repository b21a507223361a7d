"""Any OpenAI-compatible server (LMDeploy, llama.cpp, Ollama), asked over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from scripts.lib import openai_client
from scripts.lib.addresses import hidden, public, read_key
from scripts.lib.chat_client import Message, openai_content, read_image, split_prompt
from scripts.lib.engines.base import TUTORIAL, Question, Setup
from scripts.lib.errors import EqaError

KEY_VARIABLE = "EQA_PREDICT_API_KEY"
MODEL_VARIABLE = "EQA_PREDICT_MODEL"
THREADS = 16  # requests under way; the server queues more than it decodes at once


def user_messages(question: Question) -> list[dict]:
    """The question as OpenAI chat messages: pictures as data URLs, then the prompt."""
    _, text = split_prompt(question.content)
    pictures = [read_image(path) for path in question.images]
    return [{"role": "user", "content": openai_content(Message("user", text, pictures)) if pictures else text}]


def sampling(predict: dict) -> dict:
    """Request fields of config `predict.decoding`."""
    if predict["decoding"] == "tutorial":
        return {"temperature": TUTORIAL["temperature"], "top_p": TUTORIAL["top_p"], "seed": predict["seed"]}
    return {"temperature": 0.0, "seed": predict["seed"]}


def served_model(predict: dict) -> str:
    """The model to ask for: EQA_PREDICT_MODEL, else the server's, where it serves one.

    Raises:
        EqaError: it serves none or several, or cannot be reached.
    """
    if named := os.environ.get(MODEL_VARIABLE, ""):
        return named
    key = read_key(KEY_VARIABLE)
    names = openai_client.models(predict["url"], key, "predict.url")
    if len(names) != 1:
        listed = hidden(", ".join(names[:5]), key)[: openai_client.SHOWN_BODY] or "none"
        raise EqaError(
            f"predict.url={public(predict['url'])} serves {len(names)} models ({listed}); name one in {MODEL_VARIABLE}"
        )
    return names[0]


class OpenaiEngine:
    """Asks the server of config `predict.url`, several questions at a time. The server decides model and precision."""

    def __init__(self, setup: Setup) -> None:
        self.predict = setup.config["predict"]
        self.key = read_key(KEY_VARIABLE)
        self.model = ""
        self.asked = 0

    def facts(self) -> dict:
        """Requests and the model's name at the server."""
        return {"requests": self.asked, "server_model": hidden(self.model, self.key)}

    def answer(self, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        """See `Engine.answer`."""
        self.model = served_model(self.predict)
        with ThreadPoolExecutor(max_workers=min(THREADS, self.predict["batch_size"])) as pool:
            for batch in batches:
                yield list(pool.map(self.one, batch))

    def one(self, question: Question) -> str:
        """One answer.

        Raises:
            EqaError: the server refuses or keeps failing.
        """
        self.asked += 1
        return openai_client.chat(
            self.predict["url"],
            self.model,
            user_messages(question),
            key=self.key,
            what="predict.url",
            max_tokens=self.predict["max_new_tokens"],
            **sampling(self.predict),
        ).text

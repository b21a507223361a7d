"""LMDeploy's PyTorch engine, in this process: CUDA only, the base or the merged model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scripts.lib.engines.base import TUTORIAL, Question, Setup
from scripts.lib.engines.openai_engine import user_messages
from scripts.lib.errors import EqaError
from scripts.lib.openai_client import GIVEN_UP
from scripts.lib.prefix_decoding import uniform

BLOCK = 64  # LMDeploy's cache block. Unit: tokens
CACHE_SHARE = 0.8  # of the free GPU memory: nothing else runs beside a prediction


class LmdeployEngine:
    """Batches of predict.batch_size with CUDA graphs. Qwen3-VL runs on the PyTorch engine only, in 16 bits only."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.predict = setup.config["predict"]
        self.tokens = 0

    def facts(self) -> dict:
        """Tokens generated."""
        return {"device": "cuda", "new_tokens": self.tokens}

    def answer(self, batches: Sequence[Sequence[Question]]) -> Iterator[list[str]]:
        """See `Engine.answer`.

        Raises:
            EqaError: no CUDA device, float32, or a request that LMDeploy gives up.
        """
        import torch

        dtype = self.predict["dtype"]
        if dtype not in ("bfloat16", "float16"):
            raise EqaError(
                f"config: predict.dtype={dtype}: LMDeploy runs bfloat16 and float16 only; set predict.dtype=bfloat16"
            )
        if not torch.cuda.is_available():
            raise EqaError(
                "config: predict.engine=lmdeploy needs a CUDA device and there is none; set predict.engine=transformers"
            )
        import lmdeploy

        length = self.setup.config["train"]["cutoff_len"] + self.predict["max_new_tokens"]
        engine = lmdeploy.PytorchEngineConfig(
            dtype=dtype,  # a folder saved by transformers 5 says "dtype", which LMDeploy would read as float16
            session_len=-(-length // BLOCK) * BLOCK,
            max_batch_size=self.predict["batch_size"],
            cache_max_entry_count=CACHE_SHARE,
        )
        greedy = self.predict["decoding"] != "tutorial"
        sampling = {"do_sample": False} if greedy else {"do_sample": True, **TUTORIAL}
        with lmdeploy.pipeline(str(self.setup.weights), backend_config=engine) as pipe:
            for batch in batches:
                settings = [
                    lmdeploy.GenerationConfig(
                        max_new_tokens=self.predict["max_new_tokens"],
                        random_seed=int(uniform(self.predict["seed"], question.question_id, 0) * 2**31),
                        **sampling,
                    )
                    for question in batch
                ]
                found = pipe([user_messages(question) for question in batch], gen_config=settings, use_tqdm=False)
                for question, reply in zip(batch, found, strict=True):
                    if reply.finish_reason in GIVEN_UP:
                        raise EqaError(
                            f"LMDeploy gave up on question_id {question.question_id}; lower predict.batch_size"
                        )
                    self.tokens += reply.generate_token_len
                yield [reply.text for reply in found]

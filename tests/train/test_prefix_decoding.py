"""Shared-prefix decoding against whole prompts through transformers' own generate, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs envs/train")

from scripts import predict
from scripts.lib.engines.base import Setup
from scripts.lib.engines.transformers_engine import TransformersEngine
from scripts.lib.prefix_decoding import Prompt, decode, prefill, sampler, shared_length, uniform
from tests.train import prediction_data


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prediction_data.make_tiny(tmp_path_factory.mktemp("tiny"))


def engine_for(tiny: dict, **changes: object) -> TransformersEngine:
    settings = prediction_data.config(**changes)
    engine = TransformersEngine(Setup(tiny["base"].parent, None, settings, tiny["folder"]))
    engine.load()
    return engine


def whole_prompts(engine: TransformersEngine, questions: list) -> dict[str, list[int]]:
    """Greedy answers by model.generate, one whole prompt at a time, pictures encoded anew each time."""
    import torch

    found = {}
    for question in questions:
        episode = engine.prepare([question])
        (suffix,) = episode.suffixes.values()
        ids = torch.tensor([episode.prefix_ids + suffix])
        types = (ids == engine.image_id).long()
        pictures = {}
        if question.images:
            pictures = {"pixel_values": episode.pixel_values, "image_grid_thw": episode.image_grid_thw}
        engine.model.model.rope_deltas = None
        out = engine.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=engine.stop_ids,
            pad_token_id=engine.tokenizer.pad_token_id,
            **pictures,
        )
        found[question.question_id] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("blind", [False, True], ids=["pictures", "blind"])
def test_answers_equal_whole_prompts_token_by_token(tiny: dict, blind: bool) -> None:
    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=blind)
    wanted = whole_prompts(engine, questions)
    assert len({tuple(ids) for ids in wanted.values()}) > len(wanted) // 2, "the model does not tell questions apart"
    groups: dict[str, list] = {}
    for question in questions:
        groups.setdefault(question.episode if question.images else "", []).append(question)
    episodes = {name: engine.prepare(members) for name, members in groups.items()}
    places = {name: place for place, name in enumerate(episodes)}
    # all episodes in one batch: prefixes of different lengths, questions of different lengths
    prompts = [
        Prompt(places[q.episode if q.images else ""], episodes[q.episode if q.images else ""].suffixes[q.question_id])
        for q in questions
    ]
    prefixes = [engine.prefill(episode) for episode in episodes.values()]
    assert blind or len({prefix.length for prefix in prefixes}) > 1
    found = decode(engine.model, prefixes, prompts, 8, engine.stop_ids, engine.tokenizer.pad_token_id)
    for question, ids in zip(questions, found, strict=True):
        assert ids == [i for i in wanted[question.question_id] if i not in engine.stop_ids], question.question_id


def test_prefixes_can_be_used_twice(tiny: dict) -> None:
    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=False)[:4]
    episode = engine.prepare(questions)
    prefix = engine.prefill(episode)
    prompts = [Prompt(0, episode.suffixes[q.question_id]) for q in questions]
    runs = [decode(engine.model, [prefix], prompts, 5, engine.stop_ids, 0) for _ in range(2)]
    assert runs[0] == runs[1]
    alone = [decode(engine.model, [prefix], [prompt], 5, engine.stop_ids, 0)[0] for prompt in prompts]
    assert alone == runs[0]


def test_a_stop_token_ends_one_answer_and_not_the_others(tiny: dict) -> None:
    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=False)[:11]
    episode = engine.prepare(questions)
    prefix = engine.prefill(episode)
    prompts = [Prompt(0, episode.suffixes[q.question_id]) for q in questions]
    free = decode(engine.model, [prefix], prompts, 8, [-1], 0)
    # a token that comes late in some answers and never in others
    stop = next(t for ids in free for t in ids[2:] if t not in ids[:2] and any(t not in other for other in free))
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in free]
    assert 0 < sum(len(ids) < 8 for ids in expected) < len(expected), "some answers end early, not all"
    assert decode(engine.model, [prefix], prompts, 8, [stop], 0) == expected


def test_wrong_positions_would_be_noticed(tiny: dict) -> None:
    """The model must be one whose answers depend on positions, or the tests above prove nothing."""
    import dataclasses

    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=False)[:11]
    episode = engine.prepare(questions)
    prefix = engine.prefill(episode)
    prompts = [Prompt(0, episode.suffixes[q.question_id]) for q in questions]
    right = decode(engine.model, [prefix], prompts, 8, engine.stop_ids, 0)
    stale = dataclasses.replace(prefix, next_position=prefix.length)
    wrong = decode(engine.model, [stale], prompts, 8, engine.stop_ids, 0)
    assert sum(a != b for a, b in zip(right, wrong, strict=True)) > len(right) // 2


def test_sampling_depends_on_the_question_and_not_on_the_batch(tiny: dict) -> None:
    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=False)[:6]
    episode = engine.prepare(questions)
    prefix = engine.prefill(episode)
    options = {"temperature": 1.5, "top_p": 1.0, "top_k": 50}

    def sampled(members: list, seed: int) -> dict:
        prompts = [Prompt(0, episode.suffixes[q.question_id]) for q in members]
        choose = sampler([q.question_id for q in members], seed, **options)
        found = decode(engine.model, [prefix], prompts, 6, engine.stop_ids, 0, choose)
        return dict(zip([q.question_id for q in members], found, strict=True))

    together = sampled(questions, 7)
    assert sampled(questions[::-1], 7) == together
    assert sampled(questions[2:4], 7) == {q.question_id: together[q.question_id] for q in questions[2:4]}
    assert sampled(questions, 8) != together
    prompts = [Prompt(0, episode.suffixes[q.question_id]) for q in questions]
    greedy = decode(engine.model, [prefix], prompts, 6, [-1], 0)
    cold = sampler([q.question_id for q in questions], 7, 1e-6, 1.0, 50)
    cold_found = decode(
        engine.model, [prefix], [Prompt(0, episode.suffixes[q.question_id]) for q in questions], 6, [-1], 0, cold
    )
    assert cold_found == greedy


def test_sampler_follows_the_probabilities_and_top_k() -> None:
    import torch

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    names = [f"q{i}" for i in range(4000)]
    picks = sampler(names, 7, 1.0, 1.0, 3)(logits, range(4000), 0)
    share = torch.bincount(picks, minlength=4) / 4000
    assert share[3] == 0
    assert torch.allclose(share[:3], torch.tensor([0.5, 0.3, 0.15]) / 0.95, atol=0.03)
    nucleus = sampler(names, 7, 1.0, 0.7, 0)(logits, range(4000), 0)
    assert set(nucleus.tolist()) == {0, 1}


def test_uniform_is_a_function_of_its_arguments() -> None:
    assert uniform(7, "q", 0) == uniform(7, "q", 0)
    assert len({uniform(s, q, t) for s in range(3) for q in "ab" for t in range(3)}) == 18
    assert all(0 < uniform(1, str(i), 0) < 1 for i in range(1000))


def test_prompts_with_different_pictures_are_refused() -> None:
    assert shared_length([[1, 2, 3, 4], [1, 2, 3, 5]], 2) == 3
    assert shared_length([[1, 2, 3], [1, 2, 3, 4]], 2) == 2
    assert shared_length([[1, 2, 3]], 2) == 2
    with pytest.raises(ValueError, match="share 1 tokens"):
        shared_length([[1, 2, 3, 4], [1, 9, 3, 4]], 2)


def test_prefill_leaves_no_state_behind_in_the_model(tiny: dict) -> None:
    engine = engine_for(tiny)
    questions = predict.read_test(tiny["test"], tiny["test"].parent.parent / "frames", blind=False)
    first = engine.prefill(engine.prepare(questions[:2]))
    engine.model.model.rope_deltas = __import__("torch").tensor([[-999]])
    second = prefill(
        engine.model,
        (episode := engine.prepare(questions[:2])).prefix_ids,
        episode.token_types,
        episode.pixel_values,
        episode.image_grid_thw,
    )
    assert first.next_position == second.next_position < first.length

"""The bench that compares conversations with single questions: what it counts, chooses and means."""

from __future__ import annotations

import pytest

from bench import conversation_modes as bench

TRAIN = {"batch_size": 2, "gradient_accumulation": 1, "learning_rate": 1.0, "epochs": 12.0, "max_steps": -1, "seed": 7}


def test_steps_of_an_epoch_are_llamafactorys() -> None:
    assert bench.steps_an_epoch(30, TRAIN) == 15
    assert bench.steps_an_epoch(31, TRAIN) == 16
    assert bench.steps_an_epoch(31, TRAIN | {"gradient_accumulation": 4}) == 4


def test_every_training_looks_equally_often() -> None:
    for steps in (45, 450):
        recipe = bench.training_recipe(TRAIN, 1e-3, 8, 3.0, steps, fixed_steps=steps == 450)
        assert recipe["eval_steps"] == recipe["save_steps"]
        assert -(-steps // recipe["eval_steps"]) == bench.LOOKS
        assert recipe["load_best"]
        assert recipe["max_steps"] == (450 if steps == 450 else -1)
    assert TRAIN["epochs"] == 12.0, "the given recipe is left alone"


def test_rate_with_the_least_loss_is_chosen_whatever_the_score() -> None:
    runs = [
        {"rate": 3e-3, "val_loss": 0.7, "exact_match": 30.0},
        {"rate": 1e-3, "val_loss": 0.6, "exact_match": 20.0},
        {"rate": 6e-3, "val_loss": 0.6, "exact_match": 90.0},
    ]
    assert bench.best_rate(runs) == 1e-3


def test_a_best_rate_at_the_edge_is_looked_beyond() -> None:
    def runs(*losses: float) -> list[dict]:
        return [{"rate": rate, "val_loss": loss} for rate, loss in zip((1e-3, 3e-3, 6e-3), losses, strict=True)]

    assert bench.beyond(runs(0.7, 0.6, 0.8)) is None
    assert bench.beyond(runs(0.8, 0.7, 0.6)) == 12e-3
    assert bench.beyond(runs(0.6, 0.7, 0.8)) == 5e-4


def test_mean_and_spread_are_over_seeds() -> None:
    assert bench.spread_of([1.0, 2.0, 3.0], 2) == {"mean": 2.0, "sd": 1.0, "values": [1.0, 2.0, 3.0]}
    assert bench.spread_of([1.0], 2)["sd"] == 0.0


def test_difference_is_paired_by_question_and_its_interval_by_space() -> None:
    names = [f"q{i}" for i in range(12)]
    spaces = {name: f"room{i // 2}" for i, name in enumerate(names)}
    theirs = dict.fromkeys(names, 40.0)
    found = bench.paired({name: value - 10.0 for name, value in theirs.items()}, theirs, spaces)
    assert found == {"value": -10.0, "low": -10.0, "high": -10.0}
    ours = bench.question_means([{"exact": dict.fromkeys(names, v)} for v in (0.0, 100.0, 100.0)])
    assert bench.paired(ours, theirs, spaces)["value"] == pytest.approx(26.67)

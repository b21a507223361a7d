"""What every script's messages have in common."""

from __future__ import annotations

from scripts.lib.cli import LONGEST_LINE, one_line


def test_control_characters_cannot_forge_a_second_line() -> None:
    assert one_line("a\nERROR\x1b[31m b\u2028c") == "a ERROR [31m b c"


def test_a_value_of_thousands_of_characters_keeps_fault_and_way_out() -> None:
    text = one_line("config: model.path=" + "a" * 100_000 + " does not exist; name a folder")
    assert len(text) == LONGEST_LINE
    assert text.startswith("config: model.path=a")
    assert text.endswith("a does not exist; name a folder")


def test_an_ordinary_message_stays_as_it_is() -> None:
    assert one_line("x" * LONGEST_LINE) == "x" * LONGEST_LINE

"""Which addresses and keys are taken, and that messages repeat no secret."""

from __future__ import annotations

import pytest
import yaml

from scripts.lib.addresses import hidden, is_local, public, read_key
from scripts.lib.config import check_sense
from scripts.lib.errors import EqaError
from tests.lib.project import ROOT


def test_loopback_is_told_from_other_machines() -> None:
    found = {host: is_local(f"http://{host}/v1") for host in ("127.0.0.1:9", "localhost", "[::1]:8", "example.org")}
    assert found == {"127.0.0.1:9": True, "localhost": True, "[::1]:8": True, "example.org": False}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://bob:pw@h:1/v1?key=T#x", "https://h:1/v1"),
        ("http://[::1]:8/v1", "http://[::1]:8/v1"),
        ("http://[bad", "http://[bad"),
        ("http://bob:pw@h:99999/v1", "..."),
    ],
)
def test_what_a_message_shows_of_an_address(address: str, shown: str) -> None:
    assert public(address) == shown


@pytest.mark.parametrize("section", ["judge", "predict"])
def test_a_recipe_with_a_password_is_refused_and_not_repeated(section: str) -> None:
    recipe = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    recipe[section]["url"] = "https://bob:hunter2@example.org/v1"
    with pytest.raises(EqaError, match=rf"config: {section}\.url holds a user name, a password") as caught:
        check_sense(recipe)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("around", ["{}\r", "{}\n", " {}\t", "{}"])
def test_white_space_around_a_key_is_no_part_of_it(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQA_JUDGE_API_KEY", around.format("sk-secret"))
    assert read_key("EQA_JUDGE_API_KEY") == "sk-secret"


@pytest.mark.parametrize("key", ["sk secret", "sk\rsecret", "sk-schlüssel"])
def test_a_key_that_no_header_may_hold_is_named_by_its_variable(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQA_JUDGE_API_KEY", key)
    with pytest.raises(EqaError, match="EQA_JUDGE_API_KEY: holds white space") as caught:
        read_key("EQA_JUDGE_API_KEY")
    assert key not in str(caught.value)


def test_a_key_that_a_server_repeats_is_masked() -> None:
    assert hidden("bad header\nBearer sk-1", "sk-1") == "bad header Bearer ***"
    assert hidden("no key", "") == "no key"

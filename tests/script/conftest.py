"""Fixtures that several tests of scripts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lib import ollama_standin


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama_standin.StandIn]:
    """A stand-in for Ollama, at OLLAMA_HOST."""
    with ollama_standin.serve() as state:
        monkeypatch.setenv("OLLAMA_HOST", state.url)
        yield state

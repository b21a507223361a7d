"""A short soak of the llama.cpp server with the demo's model; `python -m tests.lib.soak` is the long one."""

from __future__ import annotations

import pytest

from tests.lib import soak

REQUESTS = 60
GROWTH_MB = 32  # after the warm-up; measured 2


@pytest.mark.demo
def test_server_outlives_malformed_and_cancelled_requests_and_answers_as_before(demo_copy):
    facts = soak.run(demo_copy, REQUESTS)
    assert facts["wrong"] == []
    assert facts["requests"] == REQUESTS
    assert set(facts["statuses"]) == set(soak.KINDS)
    assert facts["same_answers"] == facts["questions"] == soak.QUESTIONS
    assert facts["rss_mb"][-1] - facts["rss_mb"][0] < GROWTH_MB
    assert facts["files"][-1] <= facts["files"][0] + 2

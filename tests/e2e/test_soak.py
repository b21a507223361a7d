"""A short soak of the llama.cpp server with the demo's model.

The long one, in docs/reliability.md: python -m tests.lib.soak --folder . --requests 200
"""

from __future__ import annotations

import pytest

from tests.lib import soak

REQUESTS = 60
GROWTH_MB = 48  # after the warm-up; measured 21 with 200 requests, 0.2 with 1,000


@pytest.mark.demo
def test_server_outlives_malformed_and_cancelled_requests_and_answers_as_before(demo_copy):
    facts = soak.run(demo_copy, REQUESTS)
    assert facts["wrong"] == []
    assert facts["requests"] == REQUESTS
    assert set(facts["statuses"]) == set(soak.KINDS)
    assert facts["same_answers"] == facts["questions"] == soak.QUESTIONS
    assert facts["rss_mb"][-1] - facts["rss_mb"][0] < GROWTH_MB
    assert facts["files"][-1] <= facts["files"][0] + 2

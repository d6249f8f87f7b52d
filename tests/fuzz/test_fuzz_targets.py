"""Whatever strangers send: our own errors and nothing else, within 50 ms and 10 MB (docs/security.md).

Inputs begin valid and are changed by their structure; `make fuzz` goes on from here for as long as it is given.
"""

import fuzz_guard as guard
import pytest
from fuzz_seeds import seeds
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The library warns of what it reads in certificates; `gateway.logs` silences the same two.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
    pytest.mark.filterwarnings("ignore:Parsed a serial number"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_was_ever_found_cost_little(name: str) -> None:
    target = TARGETS[name]
    guard.run(target, seeds(name)[0])  # the warm-up: imports, tables, the first connection
    for data in seeds(name):
        guard.check(target, data)
        guard.check_memory(target, data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_input_is_read_or_refused_with_our_own_error(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(seeds(name)))
    chosen = data.draw(st.randoms(use_true_random=False))
    guard.check(target, target.mutate(seed, chosen.randrange))


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    """The first seed of each target goes all the way: a fuzzer that starts from refusals finds nothing."""
    TARGETS[name].run(seeds(name)[0])

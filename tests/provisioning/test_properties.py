"""Properties of the small pure functions: the split, the window of `seq`, the challenge."""

from hypothesis import given
from hypothesis import strategies as st

from provisioning.cohorts import choose_part, place_of
from provisioning.freshness import make_challenge, parse_challenge, place_in_time
from provisioning.ids import ProductId, TopicName
from provisioning.sessions import take_seq

KEY = b"k" * 32
weights = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1000), min_size=1).filter(
    lambda split: sum(split.values()) > 0
)


@given(weights, st.floats(0, 1, exclude_max=True))
def test_a_split_never_chooses_a_part_of_weight_zero(split: dict[str, int], place: float) -> None:
    assert split[choose_part(split, place)] > 0


@given(st.integers(1, 99), st.integers(1, 99), st.text(min_size=1, max_size=20))
def test_raising_the_first_weight_only_moves_devices_into_it(low: int, more: int, identifier: str) -> None:
    place = place_of(ProductId(1), identifier)
    if choose_part({"canary": low, "main": 100 - low}, place) == "canary":
        higher = min(99, low + more)
        assert choose_part({"canary": higher, "main": 100 - higher}, place) == "canary"


def test_a_split_is_even() -> None:
    places = [place_of(ProductId(7), f"dev-{number}") for number in range(20_000)]
    share = sum(choose_part({"canary": 10, "main": 90}, place) == "canary" for place in places) / len(places)
    assert 0.09 < share < 0.11


@given(st.lists(st.integers(1, 300), max_size=200))
def test_each_seq_counts_at_most_once_in_any_order(numbers: list[int]) -> None:
    high, window, counted = 0, 0, []
    for seq in numbers:
        taken = take_seq(seq, high, window)
        if taken is not None:
            high, window = taken
            counted.append(seq)
            assert 0 <= window < 1 << 63
    assert len(counted) == len(set(counted))
    assert high == max(numbers, default=0)


@given(st.permutations(range(1, 40)))
def test_within_the_window_every_seq_counts_whatever_the_order(order: list[int]) -> None:
    high, window = 0, 0
    for seq in order:
        taken = take_seq(seq, high, window)
        assert taken is not None
        high, window = taken


@given(st.integers(0, 2**45), st.integers(-1000, 1000))
def test_a_challenge_is_good_for_its_topic_and_its_300_seconds(now_ms: int, offset: int) -> None:
    challenge = make_challenge(KEY, TopicName("dev-1"), now_ms)
    assert parse_challenge(KEY, TopicName("dev-1"), challenge) == now_ms
    assert parse_challenge(KEY, TopicName("dev-2"), challenge) is None
    assert parse_challenge(b"x" * 32, TopicName("dev-1"), challenge) is None
    later = place_in_time(KEY, TopicName("dev-1"), None, challenge, now_ms + offset * 1000)
    assert (later.at_ms is not None) == (-5 <= offset <= 300)


@given(st.text(max_size=64))
def test_what_was_never_issued_is_no_challenge(text: str) -> None:
    assert parse_challenge(KEY, TopicName("dev-1"), text) is None

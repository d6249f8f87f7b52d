"""Version schemes and requirements: what may be written, what is ordered, and what is not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.errors import InvalidError
from provisioning.versions import MAX_COMPARISONS, VersionScheme, check_version, parse_requirement

NUMBERS = st.integers(0, 50)
TRIPLES = st.tuples(NUMBERS, NUMBERS, NUMBERS)
# The example of Semantic Versioning 2.0.0 §11, in its order.
ORDERED = [
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
]


def dotted(triple: tuple[int, int, int]) -> str:
    return ".".join(map(str, triple))


@pytest.mark.parametrize("text", ["1.2.3", "0.0.0", "1.2.3-rc.1", "1.2.3+build.7", "10.20.30-a.b+c"])
def test_a_semantic_version_suits_both_schemes(text: str) -> None:
    check_version(text, VersionScheme.SEMVER)
    check_version(text, VersionScheme.SEQUENCE)


@pytest.mark.parametrize(
    "text", ["1", "1.2", "v1.2.3", "01.2.3", "1.2.3.4", "2026-11-blue", "1.2.3_4", "1.2.3-01"]
)
def test_free_text_suits_the_sequence_scheme_only(text: str) -> None:
    check_version(text, VersionScheme.SEQUENCE)
    with pytest.raises(InvalidError, match=r"MAJOR\.MINOR\.PATCH") as caught:
        check_version(text, VersionScheme.SEMVER)
    assert caught.value.field == "version"
    assert repr(text) in caught.value.detail


@pytest.mark.parametrize("scheme", VersionScheme)
@pytest.mark.parametrize(
    "text",
    ["", " 1.2.3", "1.2.3\n", "-1", ".hidden", "a/b", "a b", "１.2.3", "\x00", "1" * 65, "1.2.3-" + "a" * 60],
)
def test_what_no_scheme_allows(text: str, scheme: VersionScheme) -> None:
    with pytest.raises(InvalidError, match="1–64 of"):
        check_version(text, scheme)


@pytest.mark.parametrize(
    ("requirement", "yes", "no"),
    [
        (">=1.2,<2.0", ["1.2.0", "1.99.0", "2.0.0-rc.1"], ["1.1.9", "1.2.0-rc.1", "2.0.0", "2.0.1"]),
        (">1.2.3", ["1.2.4", "2.0.0"], ["1.2.3", "1.2.3+later", "1.2.2"]),
        ("<=1", ["1.0.0", "0.9.9"], ["1.0.1"]),
        ("==1.2.3", ["1.2.3", "1.2.3+any.build"], ["1.2.4", "1.2.3-rc.1"]),
        (" >= 1.0 , != 1.5.0 ", ["1.4.0", "1.5.1"], ["1.5.0", "0.9.0"]),
        (">=1.0.0-rc.1", ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0"], ["1.0.0-beta"]),
        (">=0", ["0.0.0"], ["blue", "", "1.2", "v1.2.3", "1.2.3\n", "1" * 70]),
    ],
)
def test_requirement(requirement: str, yes: list[str], no: list[str]) -> None:
    wanted = parse_requirement(requirement)
    assert [version for version in yes if not wanted.matches(version)] == []
    assert [version for version in no if wanted.matches(version)] == []
    assert wanted.text == requirement


@pytest.mark.parametrize(
    "text",
    ["", ",", ">=1.2,", "1.2.3", "=1.2", "~=1.2", "^1.2", ">=", ">=x", ">=01.0", ">=1.2 <2", ">=1.2.3.4"],
)
def test_what_is_no_requirement(text: str) -> None:
    with pytest.raises(InvalidError, match="is no comparison") as caught:
        parse_requirement(text)
    assert caught.value.field == "version_requirement"


def test_a_requirement_has_few_comparisons() -> None:
    parse_requirement(",".join([">=1.0"] * MAX_COMPARISONS))
    with pytest.raises(
        InvalidError, match=f"at most {MAX_COMPARISONS} comparisons, got {MAX_COMPARISONS + 1}"
    ):
        parse_requirement(",".join([">=1.0"] * (MAX_COMPARISONS + 1)))


def test_a_scheme_without_order_has_no_requirements() -> None:
    with pytest.raises(InvalidError, match="scheme sequence have no order"):
        parse_requirement(">=1.2", VersionScheme.SEQUENCE)


def test_versions_are_ordered_as_the_standard_says() -> None:
    for lower, higher in itertools.combinations(ORDERED, 2):
        assert parse_requirement(f"<{higher}").matches(lower), f"{lower} < {higher}"
        assert not parse_requirement(f">={higher}").matches(lower), f"{lower} < {higher}"


@given(TRIPLES, TRIPLES, st.sampled_from(["", "+a", "+b.1"]))
def test_comparisons_agree_with_the_order_of_numbers(
    version: tuple[int, int, int], wanted: tuple[int, int, int], build: str
) -> None:
    text = dotted(version) + build
    assert parse_requirement(f">={dotted(wanted)}").matches(text) == (version >= wanted)
    assert parse_requirement(f"<{dotted(wanted)}").matches(text) == (version < wanted)
    assert parse_requirement(f"=={dotted(wanted)}").matches(text) == (version == wanted)


@given(st.text(max_size=80), st.sampled_from(VersionScheme))
def test_any_text_is_allowed_or_refused_with_our_own_error(text: str, scheme: VersionScheme) -> None:
    try:
        check_version(text, scheme)
    except InvalidError:
        return
    assert len(text) <= 64
    assert text.isascii()


@given(st.text(alphabet="<>=!~, .+-0123456789ab", max_size=40))
def test_any_text_is_a_requirement_or_refused_with_our_own_error(text: str) -> None:
    try:
        wanted = parse_requirement(text)
    except InvalidError:
        return
    wanted.matches("1.2.3")
    assert wanted.comparisons

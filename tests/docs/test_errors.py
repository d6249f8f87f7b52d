"""docs/errors.md and `RejectReason` are one list: no word without a section, no section without a word."""

import re
from pathlib import Path

import pytest

from provisioning.errors import RejectReason

ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## (\S+)\n(.*?)(?=^#|\Z)", ERRORS, flags=re.MULTILINE | re.DOTALL),
)


def test_sections_are_the_words_in_the_order_of_the_code() -> None:
    assert re.findall(r"^## (.+)$", ERRORS, flags=re.MULTILINE) == [str(reason) for reason in RejectReason]


@pytest.mark.parametrize("reason", RejectReason)
@pytest.mark.parametrize("part", ["Means", "Device", "Operator"])
def test_every_section_says_what_it_means_and_who_does_what(reason: RejectReason, part: str) -> None:
    text = re.findall(rf"^\*\*{part}:\*\* (.+)$", SECTIONS[reason], flags=re.MULTILINE)
    assert len(text) == 1, f"docs/errors.md, {reason}: expected one line that starts with **{part}:**"
    assert len(text[0]) > 5


def test_the_words_of_problem_documents_are_those_of_the_api_page() -> None:
    root = Path(__file__).parents[2]
    rows = re.findall(
        r"^\| `(\w+)` \|", (root / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    sources = [path.read_text(encoding="utf-8") for path in (root / "gateway" / "http").rglob("*.py")]
    said = {
        word
        for text in sources
        for word in re.findall(r'problem\(\s*\d+,\s*"(\w+)"', text)
        + re.findall(r'^    \(\w+Error, \d+, "(\w+)"', text, flags=re.MULTILINE)
    }
    assert said | {"method_not_allowed", "http"} == set(rows)

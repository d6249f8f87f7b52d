"""Values as people read them."""

import pytest

from gateway.cli.output import text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        ([], "–"),
        ({}, "–"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (["a", "b"], "a, b"),
        ({"succeeded": 2, "failed": 1}, "succeeded=2, failed=1"),
        ([{"name": "a.bin", "size": 3}], "name=a.bin, size=3"),
        ("\x1b[31mred", "\\x1b[31mred"),
    ],
)
def test_a_value_for_people(value: object, text: str) -> None:
    assert text_of(value) == text

"""`configurations.json`: settings of a device, merged from three documents by RFC 7396."""

from typing import Any

RFC_7396_APPENDIX_A: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]
"""Original, patch, result."""


def make() -> dict[str, Any]:
    """The file."""
    cases: list[dict[str, Any]] = []

    def add(name: str, about: str, product: Any, cohort: Any, device: Any, merged: Any) -> None:
        cases.append(
            {
                "id": name,
                "about": about,
                "product": product,
                "cohort": cohort,
                "device": device,
                "expected": {"merged": merged},
            }
        )

    add("nothing", "Nobody has set anything.", {}, {}, {}, {})
    add("product-alone", "What the product says holds.", {"rate": 5}, {}, {}, {"rate": 5})
    add(
        "cohort-over-product",
        "The cohort is nearer than the product.",
        {"rate": 5},
        {"rate": 10},
        {},
        {"rate": 10},
    )
    add("device-over-all", "The device is nearest.", {"rate": 5}, {"rate": 10}, {"rate": 1}, {"rate": 1})
    add(
        "device-over-product",
        "The cohort says nothing of it.",
        {"rate": 5},
        {"x": 1},
        {"rate": 1},
        {"rate": 1, "x": 1},
    )
    add(
        "objects-merge", "Objects are merged member by member.",
        {"mqtt": {"keepalive": 60, "qos": 1}}, {"mqtt": {"keepalive": 120}}, {"mqtt": {"clean": True}},
        {"mqtt": {"keepalive": 120, "qos": 1, "clean": True}},
    )  # fmt: skip
    add(
        "lists-replace",
        "Lists are replaced as a whole.",
        {"pins": [1, 2, 3]},
        {},
        {"pins": [4]},
        {"pins": [4]},
    )
    add("null-removes", "null takes a member away.", {"rate": 5, "led": 1}, {"led": None}, {}, {"rate": 5})
    add("null-and-back", "Taken away by the cohort, set again by the device.", {"led": 1}, {"led": None}, {"led": 2},
        {"led": 2})  # fmt: skip
    add(
        "null-of-nothing",
        "null of what is not there changes nothing.",
        {"rate": 5},
        {"led": None},
        {},
        {"rate": 5},
    )
    add(
        "null-in-product", "null in the first document takes away nothing, and stays nowhere.",
        {"rate": 5, "led": None, "a": {"b": None}}, {}, {}, {"rate": 5, "a": {}},
    )  # fmt: skip
    add("null-in-list", "null within a list is a value.", {"pins": [1, None]}, {}, {}, {"pins": [1, None]})
    add("object-over-text", "An object takes the place of a text.", {"led": "on"}, {"led": {"level": 3}}, {},
        {"led": {"level": 3}})  # fmt: skip
    add("text-over-object", "A text takes the place of an object.", {"led": {"level": 3}}, {"led": "on"}, {},
        {"led": "on"})  # fmt: skip
    add("nested-null", "null deep inside.", {"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": None}}}, {},
        {"a": {"b": {"d": 2}}})  # fmt: skip
    add("emptied-object", "An object whose last member goes stays, empty.", {"a": {"b": 1}}, {"a": {"b": None}}, {},
        {"a": {}})  # fmt: skip
    add("false-is-a-value", "false, 0, an empty text and an empty list are values.",
        {"a": 1, "b": 1, "c": 1, "d": 1}, {"a": False, "b": 0, "c": "", "d": []}, {},
        {"a": False, "b": 0, "c": "", "d": []})  # fmt: skip
    add("names-by-case", "Names that differ in case are different.", {"rate": 5}, {"Rate": 6}, {},
        {"rate": 5, "Rate": 6})  # fmt: skip
    return {
        "patches": [
            {"id": f"rfc-7396-{number}", "target": target, "patch": patch, "result": result}
            for number, (target, patch, result) in enumerate(RFC_7396_APPENDIX_A, start=1)
        ],
        "cases": cases,
    }

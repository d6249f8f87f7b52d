"""The benchmark's arithmetic and its output, on numbers that are given: timing itself is never a test."""

import json
from pathlib import Path

import pytest

from benchmarks import results, sizing
from benchmarks.results import Figure, Results, percentile
from benchmarks.safeguards import SAFEGUARDS
from benchmarks.stages import STAGES, list_wrapped
from benchmarks.wire import packet, publish_packet
from store.database import Database


def measured() -> Results:
    """Two rounds, the second on a machine that is half as fast."""
    found = Results()
    for half in (1.0, 0.5):
        for name, value in (
            ("B1", 900), ("B2", 7000), ("B3", 40_000), ("B5", 20_000),
            ("first sqlite 1", 4200), ("known sqlite 1", 5000),
            ("first postgresql 1", 3000), ("first postgresql 2", 4800), ("fanout sqlite 1", 10_000),
            ("arrivals sqlite 1", 810),
        ):  # fmt: skip
            found.add(name, value * half)
    for name, value in (
        ("p50_ms", 1.5),
        ("p99_ms", 12.0),
        ("bytes_per_device", 100),
        ("stats_ms", 0.5),
        ("page_ms", 40),
    ):
        found.add(name, value)
    found.add("stats_speedup", 999.9)
    found.points = {
        1000: {"first_us": 200.4, "stats_ms": 0.301},
        1_000_000: {"first_us": 1230.6, "stats_ms": 0.5},
    }
    found.stages = {"first": {"parse": 10.0, "verify": 140.4}, "known": {"parse": 9.0, "verify": 60.0}}
    return found


def test_a_figure_is_the_median_with_its_spread() -> None:
    assert Figure.of([3, 1, 10]) == Figure(median=3, least=1, most=10)
    assert Figure.of([3, 1, 10_000]).show() == "3 (1 to 10,000)"
    assert Figure.of([0.25]).show(2) == "0.25"


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_ratio_is_taken_round_by_round() -> None:
    # So that a minute in which the machine was slow divides both sides.
    found = measured()
    assert found.ratio("first_over_b2") == Figure.of([0.6, 0.6])
    assert found.ratio("two_over_one") == Figure.of([1.6, 1.6])
    assert Results().ratio("first_over_b2") is None


def test_the_table_says_what_is_reached_and_what_was_not_measured() -> None:
    rows = {row[0]: row[1:] for row in results.targets_table(measured())}
    assert rows["first hellos, one worker, SQLite ÷ B2"] == ("≥ 0.55", "0.60", "reached")
    assert rows["known devices' hellos, one worker, SQLite ÷ B5"] == ("≥ 0.34", "0.25", "not reached")
    assert rows["hello → welcome at half load, p99"] == ("≤ 10 ms", "12.00 ms", "not reached")
    assert rows["statistics, scan ÷ counters, at 1,000,000 devices"] == ("≥ 1,000", "1,000", "not reached")
    assert len(rows) == len(results.TARGETS)
    assert {row[3] for row in results.targets_table(Results())} == {"not measured"}


def test_a_small_fleet_says_nothing_about_a_million() -> None:
    found = measured()
    del found.points[1_000_000]
    rows = {row[0]: row[1:] for row in results.targets_table(found)}
    assert rows["memory per known device, at 1,000,000 devices"][2] == "only 1,000 devices"
    assert results.to_document(found, {})["targets"]["stats_ms"]["reached"] is None


def test_the_document_has_what_its_readers_expect() -> None:
    document = json.loads(results.to_json(measured(), {"rounds": 2}))
    assert document["baselines"] == {"B1": 675, "B2": 5250, "B3": 30_000, "B5": 15_000}
    assert document["rates"]["first sqlite 1"] == 3150
    assert document["ratios"] == {
        "first_over_b2": 0.6,
        "first_over_b1": 4.6667,
        "known_over_b5": 0.25,
        "fanout_over_b3": 0.25,
        "two_over_one": 1.6,
        "tls_over_b1": 0.9,
    }
    assert document["latency_ms"] == {"p50": 1.5, "p99": 12.0}
    assert (document["bytes_per_device"], document["stats_ms"]) == (100, 0.5)
    assert document["rounds"]["B2"] == [7000, 3500]
    assert document["targets"]["p99_ms"] == {"bound": 10.0, "at_most": True, "reached": False}
    assert document["run"] == {"rounds": 2}


def test_a_run_without_postgresql_has_a_document_too() -> None:
    found = measured()
    del found.series["first postgresql 1"], found.series["first postgresql 2"]
    assert json.loads(results.to_json(found, {}))["ratios"]["two_over_one"] is None


def test_stages_are_summed_and_sizes_stand_in_a_row() -> None:
    assert results.stages_table(measured()) == [
        ("stage", "first", "known"),
        ("parse", "10", "9"),
        ("verify", "140", "60"),
        ("together", "150", "69"),
    ]
    assert results.growth_table(measured()) == [
        ("", "1,000", "1,000,000"),
        ("first us", "200", "1,231"),
        ("stats ms", "0.30", "0.50"),
    ]


def test_a_block_of_the_document_is_replaced_and_nothing_else() -> None:
    text = "a\n<!-- bench:x -->\nold\n<!-- bench:end -->\nb\n<!-- bench:y -->\nkept\n<!-- bench:end -->\n"
    table = results.to_markdown(("h", "i"), [("1", "2")])
    assert table == "| h | i |\n| --- | --- |\n| 1 | 2 |\n"
    assert results.put_block(text, "x", table) == text.replace("old\n", table)
    with pytest.raises(ValueError, match="no block <!-- bench:z -->"):
        results.put_block(text, "z", table)


def test_a_packet_has_its_length_in_one_digit_or_two() -> None:
    # MQTT 3.1.1 §2.2.3: 127 is the last length of one digit; 321 is the standard's own example.
    assert packet(0x30, b"x" * 127)[:2] == b"\x30\x7f"
    assert packet(0x30, b"x" * 321)[:3] == b"\x30\xc1\x02"
    assert publish_packet("a/b", b"{}", 0) == b"\x32\x09\x00\x03a/b\x00\x01{}"
    # A packet identifier is never 0.
    assert publish_packet("a/b", b"", 60_000)[7:9] == b"\x00\x01"


def test_the_sizing_table_is_reckoned_from_the_growth_curves() -> None:
    found = measured()
    assert sizing.sizing_table(Results()) == [("what", "arithmetic")]
    small = {"resident_mb": 100.0, "database_mb": 1.0, "first_us": 250.0, "known_us": 100.0}
    large = {"resident_mb": 199.9, "database_mb": 2000.0, "first_us": 300.0, "known_us": 150.0}
    found.points = {1000: small, 1_000_000: large}
    header, *rows = sizing.sizing_table(found)
    assert header[2:] == ("1,000 devices", "10,000 devices", "100,000 devices", "1,000,000 devices")
    cells = {row[0]: row[2:] for row in rows}
    assert cells["heartbeats a second"] == ("17", "167", "500", "500")
    assert cells["gateway for them, share of a core"] == ("0%", "2%", "8%", "8%")
    assert cells["everybody comes back at once: broker"] == ("1 s", "15 s", "2 min", "25 min")
    assert cells["the same: gateway, one worker"] == ("below 1 s", "2 s", "15 s", "2 min")
    assert cells["a rollout to all at the default pace"] == ("100 s", "17 min", "3 h", "28 h")
    assert cells["database (SQLite)"] == ("2 MB", "20 MB", "200 MB", "2.0 GB")
    assert cells["gateway's memory"] == ("100 MB", "101 MB", "110 MB", "200 MB")
    assert "B1 = 675 connections/s, F = 300 µs, K = 150 µs, D = 2,001 B" in sizing.sizing_figures(found)


def test_what_the_stages_watch_is_there() -> None:
    watched = list_wrapped()
    assert {stage for _, _, stage in watched} < set(STAGES)
    assert all(callable(getattr(place, name)) for place, name, _ in watched)


def test_what_the_safeguards_take_away_is_there(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'safeguards.db'}")
    for patches in SAFEGUARDS.values():
        with patches(database):
            pass
    database.close()
    found = Results(safeguards={"everything": {"CPU, µs": 500.4}, "one": {"CPU, µs": 20.6}})
    assert results.safeguards_table(found) == [("safeguard", "CPU, µs"), ("everything", "500"), ("one", "21")]

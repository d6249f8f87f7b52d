"""Figures over time: what they say, and that they cost only the range that is asked for."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from provisioning.ids import CohortId, DeviceId, OrganizationId, ProductId
from provisioning.products import Product
from provisioning.statistics import MINUTE_MS, Event, EventKind, Per
from store import counters, organizations, products, reports
from store.database import Database
from store.schema import counters as table
from store.times import to_ms

NOW = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)
ORGANIZATION = OrganizationId(1)


def product(tx: object, number: int, organization: OrganizationId = ORGANIZATION) -> None:
    products.create(
        tx,  # type: ignore[arg-type]
        Product(
            id=ProductId(number),
            organization_id=organization,
            name=f"p{number}",
            description="",
            created_at=NOW,
        ),
    )


@pytest.fixture
def fleet(database: Database) -> Database:
    """Two organizations; products 1 and 2 are the first's, 3 is the other's."""
    with database.write() as tx:
        for number in (1, 2):
            organizations.create(tx, id=OrganizationId(number), name=f"o{number}", at=NOW)
        product(tx, 1)
        product(tx, 2)
        product(tx, 3, OrganizationId(2))
    return database


def happened(kind: EventKind, minutes_ago: float, word: str, number: int = 1, cohort: int = 0) -> Event:
    return Event(
        at=NOW - timedelta(minutes=minutes_ago),
        kind=kind,
        product_id=ProductId(number),
        cohort_id=CohortId(cohort) if cohort else None,
        device_id=DeviceId(1),
        word=word,
    )


def load(database: Database, per: Per, last: int, name: str | None = None) -> reports.Flows:
    with database.read() as tx:
        return reports.load_flows(tx, ORGANIZATION, product=name, per=per, last=last, now=NOW)


def test_each_bucket_has_what_happened_in_it(fleet: Database) -> None:
    with fleet.write() as tx:
        for worker in ("a", "b"):
            counters.record(
                tx,
                worker,
                [
                    happened(EventKind.CONNECTED, 0, "hello"),
                    happened(EventKind.CONNECTED, 2, "hello", cohort=7),
                    happened(EventKind.CONNECTED, 2, "hello", number=2),
                    happened(EventKind.DISCONNECTED, 1, "will"),
                    happened(EventKind.DISCONNECTED, 1, "timeout"),
                    happened(EventKind.ENROLLED, 0.2, "jitp"),
                    happened(EventKind.REFUSED, 3, "jitp_disabled"),
                    happened(EventKind.CONNECTED, 0, "hello", number=3),
                    happened(EventKind.DEVICE_STATE, 0, "active"),
                ],
            )
    found = load(fleet, Per.MINUTE, 3)
    assert found.starts == tuple(datetime(2026, 3, 1, 12, minute, tzinfo=UTC) for minute in (28, 29, 30))
    assert found.words == {
        "connects": {"hello": [4, 0, 2]},
        "disconnects": {"timeout": [0, 2, 0], "will": [0, 2, 0]},
        "enrollments": {"jitp": [0, 0, 2]},
        "refusals": {},
        "outcomes": {},
        "failures": {},
    }
    assert load(fleet, Per.MINUTE, 3, "p2").words["connects"] == {"hello": [2, 0, 0]}
    hours = load(fleet, Per.HOUR, 2)
    assert hours.starts == (datetime(2026, 3, 1, 11, tzinfo=UTC), datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert hours.words["connects"] == {"hello": [0, 6]}
    assert hours.words["refusals"] == {"jitp_disabled": [0, 2]}


def test_hours_are_the_sums_of_their_minutes(fleet: Database) -> None:
    with fleet.write() as tx:
        counters.record(
            tx, "a", [happened(EventKind.CONNECTED, ago / 4, "hello") for ago in range(0, 4 * 60 * 5, 7)]
        )
    minutes, hours = load(fleet, Per.MINUTE, 331), load(fleet, Per.HOUR, 6)
    assert minutes.starts[0] == hours.starts[0] + timedelta(0)
    sums = [0] * 6
    for start, value in zip(minutes.starts, minutes.words["connects"]["hello"], strict=True):
        sums[start.hour - hours.starts[0].hour] += value
    assert hours.words["connects"]["hello"] == sums


def fill_minutes(fleet: Database) -> None:
    """100,000 counters of two products, by the minute, and ten connected devices."""
    minute = to_ms(NOW) // MINUTE_MS * MINUTE_MS
    rows = [
        {
            "product_id": 1 + back % 2,
            "cohort_id": 0,
            "name": "connects",
            "word": word,
            "bucket": minute - MINUTE_MS * back,
            "worker": "a",
            "value": 1,
        }
        for back in range(25_000)
        for word in ("hello", "takeover", "resume", "return")
    ]
    gauges = [
        {**rows[0], "product_id": number, "name": "connected", "word": "", "bucket": 0, "value": 5}
        for number in (1, 2)
    ]
    with fleet.write() as tx:
        tx.connection.execute(sa.insert(table), [*rows, *gauges])
    with fleet.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def check_plan(fleet: Database, action: Callable[[], object], sqlite_search: str, most_rows: int) -> None:
    """Does `action`, and checks that its sum over counters was read along the index of product and bucket."""
    statements: list[tuple[str, object]] = []

    def note(
        _c: object, _cursor: object, statement: str, parameters: object, _x: object, _many: object
    ) -> None:
        statements.append((statement, parameters))

    sa.event.listen(fleet.engine, "before_cursor_execute", note)
    action()
    sa.event.remove(fleet.engine, "before_cursor_execute", note)
    statement, parameters = next(one for one in statements if "sum(" in one[0])
    explain = "EXPLAIN QUERY PLAN " if fleet.is_sqlite else "EXPLAIN (ANALYZE, FORMAT JSON) "
    with fleet.read() as tx:
        plan = tx.connection.exec_driver_sql(explain + statement, parameters).all()  # type: ignore[arg-type]
    if fleet.is_sqlite:
        (search,) = (row.detail for row in plan if "counters" in row.detail)
        assert search == f"SEARCH counters USING INDEX ix_counters_product_id_bucket ({sqlite_search})"
        return
    nodes = list(walk(plan[0][0][0]["Plan"]))
    assert {node.get("Index Name") for node in nodes} & {"ix_counters_product_id_bucket"}, nodes
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in nodes) <= most_rows, nodes
    assert not any(node["Node Type"] == "Seq Scan" for node in nodes), nodes


def test_a_range_is_read_along_the_index_among_100000_counters(fleet: Database) -> None:
    fill_minutes(fleet)
    assert sum(load(fleet, Per.MINUTE, 60).words["connects"]["hello"]) == 60
    check_plan(
        fleet, lambda: load(fleet, Per.MINUTE, 60), "product_id=? AND bucket>? AND bucket<?", 2 * 60 * 4
    )


def test_the_connected_are_counted_along_the_index_among_100000_counters(fleet: Database) -> None:
    def count() -> int:
        with fleet.read() as tx:
            return reports.count_connected(tx)

    before = count()
    fill_minutes(fleet)
    assert count() == before + 10
    check_plan(fleet, count, "product_id=? AND bucket=?", 20)


def walk(node: dict[str, object]) -> Iterator[dict[str, object]]:
    yield node
    for below in node.get("Plans", ()):  # type: ignore[attr-defined]
        yield from walk(below)

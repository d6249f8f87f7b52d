"""Figures for people, from counters alone: they cost the same at a hundred devices and at a million."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from provisioning.ids import CohortId, OrganizationId, RolloutId
from provisioning.rollouts import Rollout
from provisioning.statistics import ALL_TIME, FLOWS, EventKind, Per, success_rate
from store.database import Transaction
from store.firmware_schema import bundles
from store.prepared import Query
from store.schema import cohorts, counters, credentials, events, inbox, products
from store.times import from_ms, to_ms


def load_figures(
    tx: Transaction, organization_id: OrganizationId, product: str | None = None
) -> dict[str, Any]:
    """The organization's figures, or only one product's.

    Returns:
        `totals`, and `products` by name, each with `devices` by state, `connected`, `firmware` by version,
        `connects` and `disconnects` by word, `enrollments`, `refusals` by reason, `rollouts` and `attempts` by
        state, `outcomes` of attempts, `failures` by reason, and the same by `cohorts`. A product also has
        `updates`: the success rate by `bundles` (version), `rollouts` (id) and `hardware` (model).
    """
    queries = _ALL_PRODUCTS if product is None else _ONE_PRODUCT
    scope: dict[str, object] = {"organization": organization_id}
    if product is not None:
        scope["product"] = product
    total = _empty()
    names = sorted(name for (name,) in queries.names.rows(tx, **scope))
    by_product: dict[str, dict[str, Any]] = {name: {**_empty(), "cohorts": {}} for name in names}
    ends: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    for product_name, cohort_name, name, word, value in queries.counted.rows(tx, **scope):
        if name in _KEYED:
            key, _, state = word.rpartition("/")
            of_key = ends.setdefault((product_name, name), {}).setdefault(key, {})
            of_key[state] = of_key.get(state, 0) + int(value)
            continue
        figures_of = by_product[product_name]
        cohort = figures_of["cohorts"].setdefault(cohort_name or "none", _empty())
        for figures in (total, figures_of, cohort):
            _add(figures, name, word, int(value))
    versions = {str(number): version for number, version in queries.versions.rows(tx, **scope)}
    for name, figures_of in by_product.items():
        figures_of["updates"] = {
            plural: {
                versions.get(key, key) if kind == "bundle" else key: asdict(success_rate(states))
                for key, states in sorted(ends.get((name, kind), {}).items())
            }
            for kind, plural in _KEYED.items()
        }
    return {"totals": total, "products": by_product}


class _Queries:
    """What `load_figures` asks, of all products of an organization or of one: compiled once, read by position."""

    def __init__(self, *more: sa.ColumnElement[bool]) -> None:
        scope = sa.and_(products.c.organization_id == sa.bindparam("organization"), *more)
        by = (products.c.name, cohorts.c.name, counters.c.name, counters.c.word)
        self.names: Final = Query(sa.select(products.c.name).where(scope))
        self.counted: Final = Query(
            sa.select(*by, sa.func.sum(counters.c.value))
            .select_from(
                counters.join(products, products.c.id == counters.c.product_id).outerjoin(
                    cohorts, cohorts.c.id == counters.c.cohort_id
                )
            )
            .where(scope, counters.c.bucket == ALL_TIME)
            .group_by(*by)
            .order_by(*by),
        )
        self.versions: Final = Query(
            sa.select(bundles.c.id, bundles.c.version)
            .join(products, products.c.id == bundles.c.product_id)
            .where(scope),
        )


_ALL_PRODUCTS: Final = _Queries()
_ONE_PRODUCT: Final = _Queries(products.c.name == sa.bindparam("product"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """What flowed, bucket by bucket.

    Attributes:
        starts: of each bucket; the last is the running one.
        words: by the flow's name and the word, one count for each bucket.
    """

    per: Per
    starts: tuple[datetime, ...]
    words: dict[str, dict[str, list[int]]]


def load_flows(
    tx: Transaction,
    organization_id: OrganizationId,
    *,
    product: str | None = None,
    per: Per,
    last: int,
    now: datetime,
) -> Flows:
    """The flows over the `last` buckets up to `now`.

    Costs what these buckets hold, whatever was counted before: each product's counters are read along
    `ix_counters_product_id_bucket`, from the first bucket on.

    Args:
        last: how many buckets, at least 1.
        now: aware UTC.
    """
    width = per.width_ms
    end = to_ms(now) // width * width
    starts = [end - width * back for back in reversed(range(last))]
    scope = products.c.organization_id == organization_id
    if product is not None:
        scope = sa.and_(scope, products.c.name == product)
    rows = tx.connection.execute(
        sa.select(counters.c.name, counters.c.word, counters.c.bucket, sa.func.sum(counters.c.value))
        .where(
            counters.c.product_id.in_(tx.connection.execute(sa.select(products.c.id).where(scope)).scalars()),
            counters.c.bucket >= starts[0],
            counters.c.bucket < end + width,
            counters.c.name.in_(FLOWS),
        )
        .group_by(counters.c.name, counters.c.word, counters.c.bucket)
        .order_by(counters.c.name, counters.c.word)
    )
    words: dict[str, dict[str, list[int]]] = {name: {} for name in FLOWS}
    for name, word, bucket, value in rows:
        counts = words[name].setdefault(word, [0] * last)
        counts[(bucket - starts[0]) // width] += int(value)
    return Flows(per=per, starts=tuple(from_ms(start) for start in starts), words=words)


_KEYED: Final = {"bundle": "bundles", "rollout": "rollouts", "hardware": "hardware"}
"""Counters whose word is `key/state`, and what people call them."""


def _empty() -> dict[str, Any]:
    flows = (
        "devices", "firmware", "connects", "disconnects", "enrollments", "refusals", "rollouts", "attempts",
        "outcomes", "failures",
    )  # fmt: skip
    return {"connected": 0, **{name: {} for name in flows}}


def _add(figures: dict[str, Any], name: str, word: str, value: int) -> None:
    if name == "connected":
        figures["connected"] += value
    elif value:
        figures[name][word] = figures[name].get(word, 0) + value


def count_connected(tx: Transaction) -> int:
    """Connected devices of all products, from counters.

    Read every few seconds: along `ix_counters_product_id_bucket`, and never past the minutes that were counted.
    """
    query = sa.select(sa.func.coalesce(sa.func.sum(counters.c.value), 0)).where(
        counters.c.product_id.in_(tx.connection.execute(sa.select(products.c.id)).scalars()),
        counters.c.bucket == ALL_TIME,
        counters.c.name == "connected",
    )
    return int(tx.connection.execute(query).scalar_one())


def count_devices(tx: Transaction) -> dict[str, int]:
    """Devices that have a key, by product, counted from the rows themselves."""
    rows = tx.connection.execute(
        sa.select(products.c.name, sa.func.count(sa.distinct(credentials.c.device_id)).label("value"))
        .join(credentials, credentials.c.product_id == products.c.id)
        .group_by(products.c.name)
    )
    return {row.name: int(row.value) for row in rows}


def count_refused_keys(tx: Transaction) -> dict[str, int]:
    """Keys that were refused after proof, by reason, counted from the inbox."""
    rows = tx.connection.execute(
        sa.select(inbox.c.reason, sa.func.count(sa.distinct(inbox.c.key_id)).label("value")).group_by(
            inbox.c.reason
        )
    )
    return {row.reason: int(row.value) for row in rows}


def count_rollouts(tx: Transaction, rollouts: Sequence[Rollout]) -> dict[int, dict[str, int]]:
    """Attempts by state of rollouts, from counters."""
    if not rollouts:
        return {}
    words = sa.and_(  # along the primary key
        counters.c.product_id.in_({rollout.product_id for rollout in rollouts}),
        counters.c.cohort_id.in_({rollout.cohort_id for rollout in rollouts}),
    )
    rows = tx.connection.execute(
        sa.select(counters.c.word, sa.func.sum(counters.c.value).label("value"))
        .where(counters.c.name == "rollout", counters.c.bucket == ALL_TIME, words)
        .group_by(counters.c.word)
        .order_by(counters.c.word)
    )
    found: dict[int, dict[str, int]] = {}
    for row in rows:
        number, _, state = row.word.partition("/")
        if row.value:
            found.setdefault(int(number), {})[state] = int(row.value)
    return found


def list_cohort_names(tx: Transaction) -> dict[CohortId, tuple[str, str]]:
    """Product and name of every cohort."""
    rows = tx.connection.execute(
        sa.select(cohorts.c.id, products.c.name.label("product"), cohorts.c.name).join(
            products, products.c.id == cohorts.c.product_id
        )
    )
    return {CohortId(row.id): (row.product, row.name) for row in rows}


def count_rollout_events(tx: Transaction, rollout: RolloutId, word: str) -> int:
    """How often a rollout has come to a state, from those of its events that were not pruned."""
    query = sa.select(sa.func.count()).where(
        events.c.kind == EventKind.ROLLOUT.value, events.c.source_id == rollout, events.c.word == word
    )
    return int(tx.connection.execute(query).scalar_one())

"""What the devices saw, held against SQL and the invariants: the headless demo's answer."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from gateway.demo.cast import UNPROVEN, count_well_behaved
from gateway.demo.stage import Stage
from gateway.device.fleet import FleetReport
from provisioning.attempts import ENDS
from store import attempts, reports, rollouts
from store.database import Database
from store.verify import verify


@dataclass(slots=True, kw_only=True)
class Verdict:
    """The answer as JSON, and what did not agree."""

    answer: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return not self.differences


def judge(stage: Stage, report: FleetReport, devices: int) -> Verdict:
    """Compares; every difference is named.

    Args:
        devices: well-behaved ones, each of which must have been welcomed, offered, and come to an end.
    """
    database = Database(stage.settings.database.url)
    try:
        with database.read() as tx:
            by_product, refused = reports.count_devices(tx), reports.count_refused_keys(tx)
            by_state = attempts.count_by_state(tx)
            found = [rollouts.load_any(tx, number) for number in rollouts.list_numbers(tx)]
            counted = reports.count_rollouts(tx, [one for one in found if one is not None])
            names = reports.list_cohort_names(tx)
        checked = verify(database)
    finally:
        database.close()
    outcomes = {state: count for state, count in by_state.items() if state in ENDS}
    seen = report.updates
    seen.pop("deferred", None)
    proven = Counter({reason: count for reason, count in report.refused.items() if _is_proven(reason)})
    verdict = Verdict()
    for what, devices_saw, sql_says in (
        ("provisioned by product", dict(report.by_product), by_product),
        ("refused after proof", dict(proven), refused),
        ("updates by outcome", dict(seen), outcomes),
        ("well-behaved devices welcomed", count_well_behaved([one.name for one in report.welcomed]), devices),
        ("devices that came to an end of an update", sum(seen.values()), devices),
        ("attempts still open", 0, sum(by_state.values()) - sum(outcomes.values())),
    ):
        if devices_saw != sql_says:
            verdict.differences.append(f"{what}: the devices saw {devices_saw}, SQL says {sql_says}")
    breaches = [breach for finding in checked.findings for breach in finding.breaches]
    verdict.differences += breaches
    verdict.answer = {
        "devices": {
            "simulated": len(report.outcomes),
            "provisioned": sum(by_product.values()),
            "refused": {**_door(report), **refused},
            "by_product": by_product,
        },
        "attempts": outcomes,
        "rollouts": [
            {
                "product": names[one.cohort_id][0],
                "cohort": names[one.cohort_id][1],
                "version": one.bundle.version,
                "state": one.state.value,
                "attempts": counted.get(one.id, {}),
            }
            for one in found
            if one is not None
        ],
        "latency_ms": {"p50": report.latency_ms(0.5), "p99": report.latency_ms(0.99)},
        "invariants": {
            "ok": checked.ok,
            "checked": sorted({finding.invariant for finding in checked.findings}),
            "breaches": breaches,
        },
        "differences": verdict.differences,
        "ok": verdict.ok,
    }
    return verdict


def _is_proven(reason: str) -> bool:
    return reason not in UNPROVEN and not reason.startswith("broker")


def _door(report: FleetReport) -> dict[str, int]:
    """Refusals that proved nothing: no row holds them, the devices alone know."""
    return {
        reason.partition(":")[0]: count for reason, count in report.refused.items() if not _is_proven(reason)
    }

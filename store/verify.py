"""Whether the invariants hold: checked with SQL of its own, in one snapshot, against what the code keeps.

Nothing here is shared with the code that writes: counters are folded again from the events by hand-written
SQL, so that a mistake in `provisioning.statistics` or `store.counters` shows.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from store import verify_firmware
from store.database import Database, Transaction
from store.verify_firmware import Check

_MOST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One invariant: what was checked, how many rows that covered, and what broke it."""

    invariant: str
    what: str
    checked: int
    breaches: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was checked."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not any(finding.breaches for finding in self.findings)


_ENDED: Final = (
    "('succeeded', 'failed', 'rolled_back', 'rejected', 'timed_out', 'cancelled', 'superseded', "
    "'already_installed')"
)
_KEPT: Final = (
    "(bucket = 0 OR bucket >= "
    "COALESCE((SELECT value FROM revisions WHERE name = 'minutes_pruned_before'), 0))"
)
"""Totals, and minutes that were not pruned: pruned ones are deleted piece by piece, and events may outlive them."""
_FOLD: Final = f"""
    SELECT product_id, cohort_id, name, word, bucket, SUM(change) AS value FROM (
        SELECT product_id, cohort_id, 'devices' AS name, word, 0 AS bucket, 1 AS change
            FROM events WHERE kind = 'device_state' AND word <> ''
        UNION ALL SELECT product_id, cohort_id, 'devices', before, 0, -1
            FROM events WHERE kind = 'device_state' AND before <> ''
        UNION ALL SELECT product_id, cohort_id, 'firmware', word, 0, 1
            FROM events WHERE kind = 'firmware' AND word <> ''
        UNION ALL SELECT product_id, cohort_id, 'firmware', before, 0, -1
            FROM events WHERE kind = 'firmware' AND before <> ''
        UNION ALL SELECT product_id, cohort_id, 'connected', '', 0, 1 FROM events WHERE kind = 'connected'
        UNION ALL SELECT product_id, cohort_id, 'connected', '', 0, -1 FROM events WHERE kind = 'disconnected'
        UNION ALL SELECT product_id, cohort_id, 'connects', word, 0, 1 FROM events WHERE kind = 'connected'
        UNION ALL SELECT product_id, cohort_id, 'disconnects', word, 0, 1
            FROM events WHERE kind = 'disconnected'
        UNION ALL SELECT product_id, cohort_id, 'enrollments', word, 0, 1 FROM events WHERE kind = 'enrolled'
        UNION ALL SELECT product_id, cohort_id, 'refusals', word, 0, 1 FROM events WHERE kind = 'refused'
        UNION ALL SELECT product_id, cohort_id, 'connects', word, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'connected'
        UNION ALL SELECT product_id, cohort_id, 'disconnects', word, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'disconnected'
        UNION ALL SELECT product_id, cohort_id, 'enrollments', word, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'enrolled'
        UNION ALL SELECT product_id, cohort_id, 'refusals', word, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'refused'
        UNION ALL SELECT product_id, cohort_id, 'rollouts', word, 0, 1 FROM events WHERE kind = 'rollout'
        UNION ALL SELECT product_id, cohort_id, 'rollouts', before, 0, -1
            FROM events WHERE kind = 'rollout' AND before <> ''
        UNION ALL SELECT product_id, cohort_id, 'attempts', word, 0, 1 FROM events WHERE kind = 'attempt'
        UNION ALL SELECT product_id, cohort_id, 'attempts', before, 0, -1
            FROM events WHERE kind = 'attempt' AND before <> ''
        UNION ALL SELECT product_id, cohort_id, 'rollout', source_id || '/' || word, 0, 1
            FROM events WHERE kind = 'attempt'
        UNION ALL SELECT product_id, cohort_id, 'rollout', source_id || '/' || before, 0, -1
            FROM events WHERE kind = 'attempt' AND before <> ''
        UNION ALL SELECT product_id, cohort_id, 'bundle', bundle_id || '/' || word, 0, 1
            FROM events WHERE kind = 'attempt' AND word IN {_ENDED}
        UNION ALL SELECT product_id, cohort_id, 'hardware', hardware || '/' || word, 0, 1
            FROM events WHERE kind = 'attempt' AND word IN {_ENDED}
        UNION ALL SELECT product_id, cohort_id, 'outcomes', word, 0, 1
            FROM events WHERE kind = 'attempt' AND word IN {_ENDED}
        UNION ALL SELECT product_id, cohort_id, 'outcomes', word, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'attempt' AND word IN {_ENDED}
        UNION ALL SELECT product_id, cohort_id, 'failures', reason, 0, 1
            FROM events WHERE kind = 'attempt' AND reason <> ''
        UNION ALL SELECT product_id, cohort_id, 'failures', reason, at / 1000 / 60 * 60000, 1
            FROM events WHERE kind = 'attempt' AND reason <> ''
        UNION ALL SELECT product_id, cohort_id, name, word, bucket, value FROM checkpoints
    ) AS changes WHERE {_KEPT} GROUP BY product_id, cohort_id, name, word, bucket
"""  # noqa: S608  (constants of this module)
_COUNTED: Final = f"""
    SELECT product_id, cohort_id, name, word, bucket, SUM(value) AS value
    FROM counters WHERE {_KEPT} GROUP BY product_id, cohort_id, name, word, bucket
"""  # noqa: S608  (constants of this module)

_CHECKS: Final = (
    Check(
        "I1",
        "every key belongs to one device, and every credential's device is there",
        "SELECT COUNT(*) FROM credentials",
        """SELECT 'key ' || c.key_id || ' has ' || COUNT(*) || ' credentials' FROM credentials c
           GROUP BY c.key_id HAVING COUNT(*) > 1
           UNION ALL SELECT 'credential ' || c.id || ' has no device' FROM credentials c
           LEFT JOIN devices d ON d.id = c.device_id WHERE d.id IS NULL""",
    ),
    Check(
        "I1",
        "every device that was ever welcomed has a key",
        "SELECT COUNT(*) FROM last_seen",
        """SELECT 'device ' || s.device_id || ' was welcomed and has no credential' FROM last_seen s
           LEFT JOIN credentials c ON c.device_id = s.device_id WHERE c.id IS NULL""",
    ),
    Check(
        "I2",
        "a device's product is that of the CA of each of its keys",
        "SELECT COUNT(*) FROM credentials",
        """SELECT 'device ' || d.identifier || ' is of product ' || d.product_id || ', its CA of '
               || a.product_id
           FROM credentials c JOIN devices d ON d.id = c.device_id JOIN authorities a ON a.id = c.authority_id
           WHERE a.product_id <> d.product_id""",
    ),
    Check(
        "I2",
        "a device's cohort is one of its product's",
        "SELECT COUNT(*) FROM devices",
        """SELECT 'device ' || d.identifier || ' stands in a cohort of another product'
           FROM devices d JOIN cohorts c ON c.id = d.cohort_id WHERE c.product_id <> d.product_id""",
    ),
    Check(
        "I5",
        "counters are the checkpoint and the events since",
        f"SELECT COUNT(*) FROM ({_COUNTED}) AS counted",  # noqa: S608  (constants of this module)
        f"""SELECT COALESCE(f.name, c.name) || '/' || COALESCE(f.word, c.word) || ' of product '
                || COALESCE(f.product_id, c.product_id) || ': events say ' || COALESCE(f.value, 0)
                || ', the counter ' || COALESCE(c.value, 0)
            FROM ({_FOLD}) AS f LEFT JOIN ({_COUNTED}) AS c
            ON f.product_id = c.product_id AND f.cohort_id = c.cohort_id AND f.name = c.name
                AND f.word = c.word AND f.bucket = c.bucket
            WHERE COALESCE(f.value, 0) <> COALESCE(c.value, 0)
            UNION ALL
            SELECT c.name || '/' || c.word || ' of product ' || c.product_id || ': no events, the counter '
                || c.value
            FROM ({_COUNTED}) AS c LEFT JOIN ({_FOLD}) AS f
            ON f.product_id = c.product_id AND f.cohort_id = c.cohort_id AND f.name = c.name
                AND f.word = c.word AND f.bucket = c.bucket
            WHERE f.name IS NULL AND c.value <> 0""",  # noqa: S608
    ),
    Check(
        "I5",
        "devices by state are what the counters say",
        "SELECT COUNT(*) FROM devices",
        """SELECT 'product ' || product_id || ' has ' || SUM(present) || ' devices ' || word
                || ', the counter says ' || SUM(counted)
           FROM (SELECT product_id, COALESCE(cohort_id, 0) AS cohort_id, state AS word, 1 AS present, 0 AS counted
                     FROM devices
                 UNION ALL SELECT product_id, cohort_id, word, 0, value FROM counters WHERE name = 'devices'
                ) AS sides
           GROUP BY product_id, cohort_id, word HAVING SUM(present) <> SUM(counted)""",
    ),
    Check(
        "I5",
        "connected devices are what the counters say",
        "SELECT COUNT(*) FROM connections",
        """SELECT 'product ' || product_id || ': ' || SUM(present) || ' connected, the counter says ' || SUM(counted)
           FROM (SELECT d.product_id, COALESCE(d.cohort_id, 0) AS cohort_id, 1 AS present, 0 AS counted
                     FROM connections n JOIN devices d ON d.id = n.device_id WHERE n.state = 'online'
                 UNION ALL SELECT product_id, cohort_id, 0, value FROM counters WHERE name = 'connected'
                ) AS sides
           GROUP BY product_id, cohort_id HAVING SUM(present) <> SUM(counted)""",
    ),
)


def verify(database: Database) -> Report:
    """Checks I1–I6 and I9 in one snapshot."""
    with database.read() as tx:
        findings = [_run(tx, check) for check in (*_CHECKS, *verify_firmware.CHECKS)]
        findings.append(_audit_chain(tx))
    return Report(findings=tuple(findings))


def _run(tx: Transaction, check: Check) -> Finding:
    count = int(tx.connection.execute(sa.text(check.count)).scalar_one())
    breaches = check.breaches.replace("%(allowed)s", verify_firmware.ALLOWED[tx.is_sqlite])
    rows = tx.connection.execute(sa.text(f"{breaches} LIMIT {_MOST_SHOWN}")).scalars()
    return Finding(
        invariant=check.invariant, what=check.what, checked=count, breaches=tuple(str(row) for row in rows)
    )


def _audit_chain(tx: Transaction) -> Finding:
    """Hashes the sealed rows again, from the first."""
    rows = tx.connection.execute(
        sa.text(
            "SELECT id, at, organization_id, actor, action, object_type, object_id, before, after, position, "
            "chain_sha256 FROM audit WHERE position IS NOT NULL ORDER BY position"
        )
    )
    breaches: list[str] = []
    previous, expected, checked = "", 1, 0
    for row in rows:
        checked += 1
        if row.position != expected:
            breaches.append(f"audit position {expected} is missing")
            expected = row.position
        body = [row.at, row.organization_id, row.actor, row.action, row.object_type, row.object_id,
                _json(row.before), _json(row.after)]  # fmt: skip
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        previous = hashlib.sha256(f"{previous}{text}".encode()).hexdigest()
        if previous != row.chain_sha256:
            breaches.append(f"audit row {row.id} does not continue the chain")
            break
        expected += 1
    return Finding(
        invariant="I9",
        what="the audit chain is whole",
        checked=checked,
        breaches=tuple(breaches[:_MOST_SHOWN]),
    )


def _json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value

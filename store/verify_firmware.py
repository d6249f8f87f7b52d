"""The invariants of firmware, as SQL of its own: I3 nobody's offer leaks, I4 the pace, I6 no way back."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: a query that counts what is covered, and one whose rows are breaches, as sentences."""

    invariant: str
    what: str
    count: str
    breaches: str


_FLYING: Final = (
    "('offered', 'accepted', 'downloading', 'downloaded', 'verified', 'waiting', 'installing', 'rebooting', "
    "'confirming')"
)
_FLYING_WORDS: Final = _FLYING.strip("()").replace("'", "o.id || '/", 1).replace(", '", ", o.id || '/")
"""The words under which the attempts of rollout `o` in these states are counted."""
_PRUNED: Final = "SELECT value FROM revisions WHERE name = 'events_pruned_until'"
"""The time of the latest event that was folded into the checkpoint; no row where none was."""
_STOPPED: Final = "('draft', 'scheduled', 'paused', 'halted', 'cancelled')"

CHECKS: Final = (
    Check(
        "I3",
        "every offer is of a bundle of its device's product",
        "SELECT COUNT(*) FROM attempts",
        """SELECT 'attempt ' || a.id || ' of a device of product ' || d.product_id || ' is at a bundle of product '
               || b.product_id
           FROM attempts a JOIN devices d ON d.id = a.device_id JOIN bundles b ON b.id = a.bundle_id
           WHERE b.product_id <> a.product_id OR d.product_id <> b.product_id""",
    ),
    Check(
        "I3",
        "every offer of a rollout went to a device of its cohort",
        "SELECT COUNT(*) FROM attempts WHERE rollout_id IS NOT NULL",
        """SELECT 'attempt ' || a.id || ' of rollout ' || r.id || ' went to cohort ' || COALESCE(a.cohort_id, 0)
           FROM attempts a JOIN rollouts r ON r.id = a.rollout_id
           WHERE r.cohort_id <> COALESCE(a.cohort_id, 0) OR r.product_id <> a.product_id
              OR r.bundle_id <> a.bundle_id""",
    ),
    Check(
        "I3",
        "every offer of an override went to a device that it names",
        "SELECT COUNT(*) FROM attempts WHERE override_id IS NOT NULL",
        """SELECT 'attempt ' || a.id || ' of override ' || a.override_id || ' went to a device it does not name'
           FROM attempts a LEFT JOIN override_devices o
               ON o.override_id = a.override_id AND o.device_id = a.device_id
           WHERE a.override_id IS NOT NULL AND o.device_id IS NULL""",
    ),
    Check(
        "I4",
        "at no time had a rollout more in flight than its plan allows",
        "SELECT COUNT(*) FROM rollouts",
        # Under a rollout's lock offers are counted and written, so the order of the events is that of the truth.
        # What the checkpoint has of a rollout is where its attempts stood when the first of these events came.
        f"""SELECT 'rollout ' || source_id || ' had ' || most || ' in flight, its plan allows ' || allowed FROM (
               SELECT f.source_id, MAX(f.flying) AS most, MAX(%(allowed)s) AS allowed
               FROM (SELECT source_id, SUM(change) OVER (PARTITION BY source_id ORDER BY id) AS flying
                     FROM (SELECT source_id, id,
                               CASE WHEN word IN {_FLYING} AND before NOT IN {_FLYING} THEN 1
                                    WHEN word NOT IN {_FLYING} AND before IN {_FLYING} THEN -1 ELSE 0 END AS change
                           FROM events WHERE kind = 'attempt'
                           UNION ALL
                           SELECT o.id, 0, SUM(k.value) FROM rollouts o JOIN checkpoints k
                               ON k.product_id = o.product_id AND k.name = 'rollout' AND k.bucket = 0
                                   AND k.word IN ({_FLYING_WORDS})
                           GROUP BY o.id) AS changes) AS f
               JOIN rollouts r ON r.id = f.source_id
               GROUP BY f.source_id) AS flights
           WHERE most > allowed""",  # noqa: S608  (constants of this module)
    ),
    Check(
        "I4",
        "nothing was offered while a rollout was not offering",
        "SELECT COUNT(*) FROM events WHERE kind = 'attempt' AND before = ''",
        # Where its earlier events were pruned, a rollout was in the state that its next one left, or is in still.
        f"""SELECT 'attempt ' || o.attempt_id || ' was opened while rollout ' || o.source_id || ' was '
               || COALESCE(NULLIF(o.state, ''), 'not there')
           FROM (SELECT e.attempt_id, e.source_id, COALESCE(
                     (SELECT s.word FROM events s WHERE s.kind = 'rollout' AND s.source_id = e.source_id
                          AND s.id < e.id ORDER BY s.id DESC LIMIT 1),
                     (SELECT s.before FROM events s WHERE s.kind = 'rollout' AND s.source_id = e.source_id
                          AND s.id > e.id ORDER BY s.id LIMIT 1),
                     CASE WHEN EXISTS ({_PRUNED}) THEN r.state ELSE '' END) AS state
                 FROM events e JOIN rollouts r ON r.id = e.source_id
                 WHERE e.kind = 'attempt' AND e.before = '') AS o
           WHERE o.state = '' OR o.state IN {_STOPPED}""",  # noqa: S608
    ),
    Check(
        "I4",
        "a device has one open attempt, and attempts stand where their events say",
        "SELECT COUNT(*) FROM attempts",
        # No event of an attempt may be left where all of them were pruned: the last is as old as its end. How many
        # there are of those is the next check's.
        f"""SELECT 'device ' || device_id || ' has ' || COUNT(*) || ' open attempts' FROM attempts
           WHERE finished_at IS NULL GROUP BY device_id HAVING COUNT(*) > 1
           UNION ALL
           SELECT 'attempt ' || a.id || ' is ' || a.state || ', its last event says ' || COALESCE(e.word, 'nothing')
           FROM attempts a LEFT JOIN events e ON e.id =
               (SELECT MAX(id) FROM events WHERE kind = 'attempt' AND attempt_id = a.id)
           WHERE a.state <> COALESCE(e.word, '')
               AND (e.id IS NOT NULL OR COALESCE(a.finished_at, a.offered_at) > COALESCE(({_PRUNED}), 0))
           UNION ALL
           SELECT 'attempt ' || e.attempt_id || ' was opened and is gone'
           FROM events e LEFT JOIN attempts a ON a.id = e.attempt_id
           WHERE e.kind = 'attempt' AND e.before = '' AND a.id IS NULL""",  # noqa: S608
    ),
    Check(
        "I4",
        "attempts of a rollout or override are as many in each state as its counters say",
        "SELECT COUNT(*) FROM attempts",
        """SELECT 'rollout or override ' || word || ' has ' || SUM(present) || ' attempts, the counter says '
               || SUM(counted)
           FROM (SELECT COALESCE(rollout_id, override_id) || '/' || state AS word, 1 AS present, 0 AS counted
                     FROM attempts
                 UNION ALL SELECT word, 0, value FROM counters WHERE name = 'rollout' AND bucket = 0
                ) AS sides
           GROUP BY word HAVING SUM(present) <> SUM(counted)""",
    ),
    Check(
        "I6",
        "no device was offered or proved less than what it had proved before",
        "SELECT COUNT(*) FROM attempts",
        """SELECT 'device ' || late.device_id || ' was offered bundle ' || late.bundle_seq || ' after it had proved '
               || early.bundle_seq
           FROM attempts late JOIN attempts early
               ON early.device_id = late.device_id AND early.revision < late.revision
           WHERE early.state = 'succeeded' AND late.bundle_seq < early.bundle_seq
           UNION ALL
           SELECT 'device ' || d.id || ' proved bundle ' || a.bundle_seq || ', its highest is '
               || d.highest_bundle_seq
           FROM attempts a JOIN devices d ON d.id = a.device_id
           WHERE a.state = 'succeeded' AND d.highest_bundle_seq < a.bundle_seq""",
    ),
)
ALLOWED: Final = {
    True: "CAST(json_extract(r.plan, '$.most_in_flight') AS INTEGER)",
    False: "CAST(r.plan ->> 'most_in_flight' AS BIGINT)",
}
"""How each database reads a number out of a plan: on SQLite, or not."""

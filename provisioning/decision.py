"""What a decision is made of: rules that explain it, changes to write, and messages to send.

A decision is a value. `store.writer` applies its changes, the gateway publishes its outgoing; nothing here
does either. The explanation an operator reads is the very list of rules the decision was made from.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from provisioning.errors import RejectReason


class Rule(NamedTuple):
    """One check of a decision, in the order in which it was made; a tuple, because every hello makes half a dozen.

    `passed` is None where an earlier rule ended the decision before this one was reached. `changes_at` is
    the next time at which the outcome would differ by itself (a validity that ends), in UTC.
    """

    name: str
    passed: bool | None
    detail: str
    changes_at: datetime | None = None
    reason: RejectReason | None = None


def first_failed(rules: Iterable[Rule]) -> Rule | None:
    """The rule that ended the decision, or None where all that were reached passed."""
    return next((rule for rule in rules if rule.passed is False), None)

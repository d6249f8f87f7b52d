"""Where operators' commands happen: database, clock, numbers, capath; and the audit row of each change."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.mqtt.capath import CaPath
from provisioning.access import Principal, Role, check_role
from store import audit
from store.blobs import Blobs
from store.database import Transaction, Transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What commands need.

    Attributes:
        worker: whose counters they change.
        blobs: where artifacts go; None where none are pushed.
        wake: called when devices may have become due.
        expect: called with the object that an edit is about to change, in its transaction and under its lock;
            raises where the caller has seen another state of it.
        later: where the transactions are one that is not over yet, what waits for its end.
    """

    database: Transactions
    clock: Callable[[], datetime]
    new_id: Callable[[], int]
    capath: CaPath | None
    broker: str
    worker: str
    audience: str
    blobs: Blobs | None = None
    wake: Callable[[], None] = lambda: None
    expect: Callable[[object], None] = lambda _: None
    later: "list[Callable[[Desk], None]] | None" = None

    def after_commit(self, action: "Callable[[Desk], None]") -> None:
        """Does what others can see, such as waking them, once the change is there for them: now, or later."""
        if self.later is None:
            action(self)
        else:
            self.later.append(action)

    def note(
        self,
        tx: Transaction,
        principal: Principal,
        action: str,
        object_id: int | str,
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
    ) -> None:
        """Appends the audit row of a change, in its transaction; `action` is `noun.verb`.

        Raises:
            AccessError: the principal is no operator.
        """
        check_role(principal, Role.OPERATOR)
        audit.append(
            tx,
            at=self.clock(),
            organization_id=principal.organization_id,
            actor=principal.name,
            action=action,
            object_type=action.partition(".")[0],
            object_id=object_id,
            before=before,
            after=after,
        )

"""Where operators' commands happen: database, clock, numbers, capath; and the audit row of each change."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.mqtt.capath import CaPath
from provisioning.access import Principal, Role, check_role
from store import audit
from store.blobs import Blobs
from store.database import Database, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What commands need.

    Attributes:
        worker: whose counters they change.
        blobs: where artifacts go; None where none are pushed.
        wake: called when devices may have become due.
    """

    database: Database
    clock: Callable[[], datetime]
    new_id: Callable[[], int]
    capath: CaPath | None
    broker: str
    worker: str
    audience: str
    blobs: Blobs | None = None
    wake: Callable[[], None] = lambda: None

    def note(
        self,
        tx: Transaction,
        principal: Principal,
        action: str,
        object_id: int,
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

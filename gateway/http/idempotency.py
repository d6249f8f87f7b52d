"""`Idempotency-Key`: a POST that is sent again, because its answer was lost, is answered again and not done again.

The work, its audit row and its answer are one transaction. Only what has changed something is kept: a refusal
has rolled back, and the same request may succeed later. What others can see (a woken offerer, the broker's
capath) follows the commit.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel

from gateway.http.auth import AtDesk, Operator
from gateway.http.etags import parse_if_match
from gateway.http.problems import ReusedKeyError
from gateway.operations.desk import Desk
from provisioning.access import Principal
from provisioning.errors import InvalidError
from store import answers
from store.answers import Asker

_Answer = TypeVar("_Answer", bound=BaseModel | Sequence[BaseModel])
MOST_CHARACTERS: Final = 255
REPLAYED: Final = "Idempotency-Replayed"


class Replayed(Exception):  # noqa: N818 - it is an answer on its way, not an error
    """The first answer, for the request that comes again."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status)
        self.response = Response(
            body, status_code=status, media_type="application/json", headers={REPLAYED: "true"}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One POST: who asks for it, at which desk, under which key."""

    desk: Desk
    principal: Principal
    key: str | None
    request_sha256: str
    status: int

    def answer(
        self,
        work: Callable[[Desk], _Answer],
        *,
        keep: Callable[[_Answer], _Answer] | None = None,
        again: Callable[[Desk], None] = lambda _: None,
    ) -> _Answer:
        """Does the work once, and gives its answer.

        Args:
            work: at the desk that it is given; gives what is answered.
            keep: what of the answer is kept and given again, where a part of it must not be.
            again: what to make sure of before the answer is given again, as a crash may have cut it off.

        Raises:
            Replayed: the work was done before.
            ReusedKeyError: the key was used for something else.
        """
        if self.key is None:
            return work(self.desk)
        asker = Asker(organization_id=self.principal.organization_id, actor=self.principal.name, key=self.key)
        later: list[Callable[[Desk], None]] = []
        database = self.desk.database
        with database.write() as tx:
            first = answers.claim(tx, asker, self.request_sha256, self.desk.clock())
            if first is None:
                answer = work(replace(self.desk, database=database.join(tx), later=later))
                kept = answer if keep is None else keep(answer)
                body = json.dumps(jsonable_encoder(kept))
                answers.save(tx, asker, self.status, body)
        if first is None:
            for action in later:
                action(self.desk)
            return answer
        if first.request_sha256 != self.request_sha256:
            raise ReusedKeyError(
                f"Idempotency-Key {self.key!r} was used in the last 24 hours for another method, path or body; "
                "take a new key for a new request"
            )
        again(self.desk)
        raise Replayed(first.status, first.body)


async def _digest(request: Request) -> str:
    target = f"{request.method} {request.url.path}?{request.url.query}\n".encode()
    return hashlib.sha256(target + await request.body()).hexdigest()


def take_order(
    request: Request,
    desk: AtDesk,
    principal: Operator,
    digest: Annotated[str, Depends(_digest)],
    idempotency_key: Annotated[
        str | None,
        Header(description="Made anew for each request; sending it again within 24 h gives the first answer"),
    ] = None,
) -> Order:
    """A POST of somebody who may change things.

    Raises:
        InvalidError: the key is empty, too long, or not printable ASCII.
    """
    key = idempotency_key
    if key is not None and not (0 < len(key) <= MOST_CHARACTERS and key.isascii() and key.isprintable()):
        raise InvalidError(
            f"Idempotency-Key must be 1–{MOST_CHARACTERS} printable characters of ASCII",
            field="Idempotency-Key",
        )
    status = request.scope["route"].status_code or 200
    return Order(desk=desk, principal=principal, key=key, request_sha256=digest, status=status)


Posted = Annotated[Order, Depends(take_order)]
IfMatch = Annotated[
    str | None,
    Header(
        description="ETag of the object as it was read; where it has changed since, nothing is done (412)",
    ),
]


def take_edit(order: Posted, if_match: IfMatch = None) -> Order:
    """A POST that changes the state of one object."""
    return replace(order, desk=_expecting(order.desk, if_match))


def take_desk_for_edit(desk: AtDesk, if_match: IfMatch = None) -> Desk:
    """The desk for a PUT or DELETE of one object."""
    return _expecting(desk, if_match)


def _expecting(desk: Desk, if_match: str | None) -> Desk:
    return desk if if_match is None else replace(desk, expect=parse_if_match(if_match))


Edited = Annotated[Order, Depends(take_edit)]
AtDeskForEdit = Annotated[Desk, Depends(take_desk_for_edit)]

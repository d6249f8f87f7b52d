"""Devices, and the inbox of those that were refused."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from gateway.http import views
from gateway.http.auth import AtDesk, Operator, Who
from gateway.http.cursors import make_cursor, parse_cursor
from gateway.http.etags import make_etag
from gateway.http.idempotency import AtDeskForEdit, Edited, Posted
from gateway.mqtt.listening import BrokerAwayError
from gateway.operations import devices
from gateway.watching import Watches
from provisioning.ids import DeviceId

router = APIRouter(prefix="/api/v1", tags=["devices"])
_LISTED: Final = "devices"
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.post("/products/{product}/devices", status_code=201)
def create_device(order: Posted, product: str, body: views.NewDevice) -> views.DeviceOut:
    """Makes a device before it comes; the first verified key with its identifier binds to it."""
    return order.answer(
        lambda desk: views.DeviceOut.of(
            devices.create(
                desk,
                order.principal,
                product=product,
                identifier=body.identifier,
                cohort=body.cohort,
                tags=body.tags,
            )
        )
    )


@router.get("/devices")
def list_devices(
    desk: AtDesk,
    principal: Who,
    product: str | None = None,
    cohort: str | None = None,
    state: str | None = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Limit = 100,
) -> views.DevicePage:
    """A page of devices, in the order of their arrival."""
    found = devices.list_all(
        desk,
        principal,
        product=product,
        cohort=cohort,
        state=state,
        after=None if cursor is None else DeviceId(parse_cursor(_LISTED, cursor)),
        limit=limit + 1,
    )
    page = found[:limit]
    following = make_cursor(_LISTED, page[-1].device.id) if len(found) > limit else None
    return views.DevicePage(items=[views.DeviceOut.of(view) for view in page], next_cursor=following)


@router.get("/devices/{device}")
def show_device(desk: AtDesk, principal: Who, device: str, response: Response) -> views.DeviceOut:
    """One device, with its ETag."""
    shown = views.DeviceOut.of(devices.find(desk, principal, device))
    response.headers["ETag"] = make_etag(shown)
    return shown


@router.post("/devices/{device}/block")
def block_device(order: Edited, device: str) -> views.DeviceOut:
    """Refuses the device from now on."""
    return order.answer(
        lambda desk: views.DeviceOut.of(devices.set_blocked(desk, order.principal, device, blocked=True))
    )


@router.post("/devices/{device}/unblock")
def unblock_device(order: Edited, device: str) -> views.DeviceOut:
    """Lets a blocked or quarantined device in again."""
    return order.answer(
        lambda desk: views.DeviceOut.of(devices.set_blocked(desk, order.principal, device, blocked=False))
    )


@router.post("/devices/{device}/grant")
def grant_new_key(order: Edited, device: str, body: views.Grant) -> views.DeviceOut:
    """Lets the device bring one new key without its old one's word, for so many hours."""
    life = timedelta(hours=body.hours)
    return order.answer(
        lambda desk: views.DeviceOut.of(devices.grant(desk, order.principal, device, life=life))
    )


@router.delete("/devices/{device}/grant")
def withdraw_grant(desk: AtDeskForEdit, principal: Operator, device: str) -> views.DeviceOut:
    """Takes a grant back."""
    return views.DeviceOut.of(devices.grant(desk, principal, device, life=None))


@router.get("/watch/{name}", response_class=StreamingResponse)
def watch_device(request: Request, desk: AtDesk, principal: Operator, name: str) -> StreamingResponse:
    """What a device says and is told, live: a JSON object a line, and an empty line where nothing passes.

    `name` is a device, or the topic name of one that is not known yet.
    """
    watches: Watches | None = request.app.state.watches
    if watches is None:
        raise BrokerAwayError("this process has no broker to look at")
    watch = watches.open(desk, principal, name)

    async def stream() -> AsyncIterator[str]:
        lines = watch.lines()
        yield json.dumps({"topic_name": watch.topic_name}) + "\n"
        while True:
            line = await run_in_threadpool(next, lines)
            yield ("" if line is None else json.dumps(line)) + "\n"

    return _Watched(stream(), media_type="application/x-ndjson", on_end=watch.close)


class _Watched(StreamingResponse):
    """A stream whose watch ends with it, also where its reader had left before the first line."""

    def __init__(self, content: AsyncIterator[str], *, media_type: str, on_end: Callable[[], None]) -> None:
        super().__init__(content, media_type=media_type)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


@router.get("/inbox")
def list_inbox(
    desk: AtDesk,
    principal: Who,
    product: str | None = None,
    reason: str | None = None,
    limit: Limit = 100,
) -> list[views.InboxOut]:
    """Who was proven genuine and refused all the same, the latest first."""
    found = devices.list_inbox(desk, principal, product=product, reason=reason, limit=limit)
    return [views.InboxOut.of(item) for item in found]

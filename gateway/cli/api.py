"""The command line's way to the gateway: HTTP, also on one machine, with the key from a file that is ours alone."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote
from uuid import uuid4

import httpx
import typer

from gateway.cli.output import TimedOutError
from gateway.settings import Settings
from provisioning.errors import (
    AccessError,
    ConflictError,
    FleetgateError,
    InvalidError,
    NotFoundError,
    SetupError,
)

KEY_VARIABLE: Final = "FLEETGATE_API_KEY"
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings file. [default: $FLEETGATE_CONFIG or ./fleetgate.toml]", show_default=False
    ),
]
_TIMEOUT_SECONDS: Final = 30.0
_PAGE: Final = 500
_PAUSES_SECONDS: Final = (0.2, 0.8)
"""Before a POST is sent again; a gateway that restarts is back about then."""


class ApiError(FleetgateError):
    """The gateway could not be asked, or failed at what it was asked."""


class UnreachableError(ApiError):
    """There is no connection to the gateway, or it broke; whether it did what was asked is not known."""


class Api:
    """A client of `/api/v1`; a context manager.

    Args:
        base_url: where the gateway's HTTP is, without a slash at its end.
        key: an API key.
        transport: another way to send requests than the network.
    """

    def __init__(self, base_url: str, key: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = base_url
        self._client = httpx.Client(
            base_url=f"{base_url}/api/v1/",
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT_SECONDS,
            transport=transport,
            trust_env=False,  # a proxy of the environment must not see the key
        )

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, *path: str, **query: str | int | None) -> Any:
        """The JSON that is at `path`; parts are quoted, query members of None left out.

        Raises:
            NotFoundError, AccessError, ConflictError, InvalidError: as the gateway said.
            TimedOutError: no answer in time.
            ApiError: it cannot be reached, or failed.
        """
        return self._ask("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, *path: str, body: object = None) -> Any:
        """Posts `body` as JSON; raises as `get`.

        Where the connection breaks, it is sent again under the same Idempotency-Key, so it is done once.
        """
        headers = {"Idempotency-Key": uuid4().hex}
        for pause_seconds in _PAUSES_SECONDS:
            try:
                return self._ask("POST", path, json=body, headers=headers)
            except UnreachableError:
                time.sleep(pause_seconds)
        return self._ask("POST", path, json=body, headers=headers)

    def put(self, *path: str, body: object) -> Any:
        """Puts `body` as JSON; raises as `get`."""
        return self._ask("PUT", path, json=body)

    def delete(self, *path: str) -> Any:
        """Deletes, and gives what was answered; raises as `get`."""
        return self._ask("DELETE", path)

    def upload(self, *path: str, chunks: Iterator[bytes]) -> None:
        """Puts bytes as they come, in constant memory; raises as `get`."""
        self._ask("PUT", path, content=chunks, headers={"Content-Type": "application/octet-stream"})

    def lines(self, *path: str) -> Iterator[Any]:
        """The JSON objects of a stream, as they come, until the gateway ends it; raises as `get`."""
        place = "/".join(quote(part, safe="") for part in path)
        try:
            with self._client.stream("GET", place) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    if line:
                        yield json.loads(line)
        except httpx.TimeoutException as error:
            raise TimedOutError(f"the gateway at {self._url} fell silent") from error
        except httpx.HTTPError as error:
            raise UnreachableError(f"the gateway at {self._url} ended the stream: {error}") from error

    def items(self, *path: str, **query: str | int | None) -> list[dict[str, Any]]:
        """The items of a list that comes whole; raises as `get`."""
        return list(self.get(*path, **query))

    def pages(self, *path: str, limit: int, **query: str | int | None) -> Iterator[dict[str, Any]]:
        """The first `limit` items of a list that comes in pages; raises as `get`."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(*path, limit=min(limit, _PAGE), cursor=cursor, **query)
            yield from page["items"]
            limit -= len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def _ask(self, method: str, path: tuple[str, ...], **arguments: Any) -> Any:
        try:
            response = self._client.request(
                method, "/".join(quote(part, safe="") for part in path), **arguments
            )
        except httpx.TimeoutException as error:
            raise TimedOutError(
                f"the gateway at {self._url} did not answer within {_TIMEOUT_SECONDS:.0f} s"
            ) from error
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"the gateway at {self._url} cannot be reached ({error}); is `fleetgate serve` running?"
            ) from error
        if response.is_success:
            return response.json() if response.content else None
        raise _error(response)


def open_api(config: Path | None) -> Api:
    """A client by the settings; the key from `FLEETGATE_API_KEY`, else from `http.key_file`.

    Raises:
        SetupError: settings or key file are missing or wrong.
    """
    settings = Settings.load(config)
    key = os.environ.get(KEY_VARIABLE) or _read_key(settings.http.key_file)
    return Api(settings.http.url, key)


def _read_key(file: Path) -> str:
    try:
        mode = file.stat().st_mode & 0o777
        key = file.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise SetupError(
            f"no API key: {file} is not there; `fleetgate init` makes it, or set {KEY_VARIABLE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"API key file {file} cannot be read: {error}; or set {KEY_VARIABLE}") from error
    if mode & 0o077:
        raise SetupError(f"API key file {file} is readable by others (mode {mode:04o}): chmod 600 {file}")
    if not key:
        raise SetupError(f"API key file {file} is empty")
    return key


def _error(response: httpx.Response) -> FleetgateError:
    """The problem document (RFC 9457) of a refusal, as our own error."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason_phrase
    detail = detail if isinstance(detail, str) else str(detail)
    errors = problem.get("errors")
    if isinstance(errors, list) and errors:
        detail += ": " + "; ".join(_place(error) for error in errors)
    match response.status_code:
        case 401 | 403:
            return AccessError(detail)
        case 404:
            return NotFoundError(detail)
        case 409 | 412 | 428:
            return ConflictError(detail)
        case 400 | 422:
            field = problem.get("field")
            return InvalidError(detail, field=field if isinstance(field, str) else None)
        case 408 | 504:
            return TimedOutError(detail)
        case status:
            return ApiError(f"the gateway answered {status}: {detail}")


def _place(error: object) -> str:
    if not isinstance(error, dict):
        return str(error)
    place = ".".join(str(part) for part in error.get("loc", ()) if part != "body")
    return f"{place} {error.get('msg', '')}".strip()

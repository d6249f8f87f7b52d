"""Roles of workers, and who may be retired."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from provisioning.errors import ConflictError, InvalidError
from provisioning.workers import (
    ALIVE,
    ALL_ROLES,
    Worker,
    WorkerRole,
    WorkerState,
    decide_retirement,
    parse_roles,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GONE = Worker(
    name="gone",
    broker="main",
    roles=ALL_ROLES,
    version="1",
    state=WorkerState.STOPPED,
    started_at=NOW - timedelta(hours=1),
    heard_at=NOW - timedelta(seconds=1),
    queued=0,
    has_session=True,
)
ALIVE_ONE = replace(GONE, name="here", state=WorkerState.RUNNING)


@pytest.mark.parametrize(
    ("words", "roles"),
    [
        (["api"], (WorkerRole.API,)),
        (["scheduler,ingest"], (WorkerRole.INGEST, WorkerRole.SCHEDULER)),
        (["api", "ingest, authorities", "api"], (WorkerRole.INGEST, WorkerRole.API, WorkerRole.AUTHORITIES)),
        (list(ALL_ROLES), ALL_ROLES),
    ],
)
def test_roles_come_as_words_or_lists(words: list[str], roles: tuple[WorkerRole, ...]) -> None:
    assert parse_roles(words) == roles


@pytest.mark.parametrize(("words", "got"), [(["api,ingst"], "ingst"), ([], "none"), ([""], "")])
def test_what_is_no_role_is_named(words: list[str], got: str) -> None:
    with pytest.raises(InvalidError, match=f"roles are ingest, api, scheduler, authorities, got {got}"):
        parse_roles(words)


def test_a_worker_lives_while_it_is_heard() -> None:
    assert ALIVE_ONE.is_alive(ALIVE_ONE.heard_at + ALIVE - timedelta(milliseconds=1))
    assert not ALIVE_ONE.is_alive(ALIVE_ONE.heard_at + ALIVE)
    assert not GONE.is_alive(NOW), "it has said that it ended"


@pytest.mark.parametrize(
    ("changes", "to"),
    [
        ({}, WorkerState.RETIRING),
        ({"state": WorkerState.RETIRING}, WorkerState.RETIRING),
        ({"state": WorkerState.RETIRED, "has_session": False}, WorkerState.RETIRED),
        ({"has_session": False}, WorkerState.RETIRED),
        ({"state": WorkerState.RUNNING, "heard_at": NOW - ALIVE}, WorkerState.RETIRING),
    ],
)
def test_who_is_gone_is_retired(changes: dict[str, object], to: WorkerState) -> None:
    worker = replace(GONE, **changes)  # type: ignore[arg-type]
    assert decide_retirement(worker, [worker, ALIVE_ONE], NOW) is to


def test_a_worker_that_was_just_heard_is_not_retired() -> None:
    with pytest.raises(ConflictError, match=r"worker 'here' runs: it was heard 1 s ago; stop it first"):
        decide_retirement(ALIVE_ONE, [replace(ALIVE_ONE, name="other")], NOW)


@pytest.mark.parametrize(
    "other",
    [
        replace(ALIVE_ONE, broker="west"),
        replace(ALIVE_ONE, roles=(WorkerRole.API, WorkerRole.SCHEDULER)),
        replace(ALIVE_ONE, heard_at=NOW - ALIVE),
        replace(ALIVE_ONE, state=WorkerState.STOPPED),
        replace(ALIVE_ONE, name="gone"),
    ],
)
def test_nobody_is_retired_whose_messages_nobody_would_take(other: Worker) -> None:
    with pytest.raises(ConflictError, match="nobody would take the messages of worker 'gone'"):
        decide_retirement(GONE, [GONE, other], NOW)

"""Who reads and writes: one at a time, the worker before the keeper, the keeper where no worker comes."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from broker_fixtures import DEADLINE_SECONDS, wait_until

from gateway.mqtt.turns import Turns


@pytest.fixture
def turns() -> Iterator[Turns]:
    turns = Turns()
    yield turns
    turns.close()


@pytest.fixture
def line() -> Iterator[socket.socket]:
    """A socket to which nobody writes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


class Keeper:
    """A thread that keeps, as the transport's does; what it found each time is in `had`."""

    def __init__(self, turns: Turns, line: socket.socket, *, alone: bool = False) -> None:
        self._turns, self._line, self.alone = turns, line, alone
        self.had: list[bool] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._turns.notice()
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            with self._turns.keep(alone=self.alone) as ours:
                self.had.append(ours)
                if ours:
                    self._turns.wait(self._line, reading=True, writing=False, timeout_seconds=10.0)


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_has_the_turn_at_once_however_often_the_keeper_takes_it(
    turns: Turns, line: socket.socket, alone: bool
) -> None:
    with Keeper(turns, line, alone=alone) as keeper:
        wait_until(lambda: True in keeper.had, "nobody works: the keeper has the turn")
        began = time.monotonic()
        for _ in range(50):
            with turns.work():
                pass
        assert time.monotonic() - began < 5.0, "a tick of waiting each would be 25 s"


def test_while_a_worker_comes_again_and_again_the_keeper_leaves_the_connection_alone(
    turns: Turns, line: socket.socket
) -> None:
    with turns.work():
        pass
    with Keeper(turns, line) as keeper:
        wait_until(lambda: len(keeper.had) >= 1, "it has looked")
        assert keeper.had[0] is False


def test_one_that_does_not_come_again_is_replaced(turns: Turns, line: socket.socket) -> None:
    with turns.work():
        pass
    with Keeper(turns, line) as keeper:
        wait_until(lambda: True in keeper.had, "the keeper's patience ends")


def test_two_never_have_it_together(turns: Turns, line: socket.socket) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(2000):
            with turns.work():
                inside += 1
                most = max(most, inside)
                turns.wait(line, reading=True, writing=False, timeout_seconds=0)  # others may run meanwhile
                inside -= 1

    workers = [threading.Thread(target=work) for _ in range(2)]
    with Keeper(turns, line, alone=True):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(DEADLINE_SECONDS)
    assert most == 1


def test_who_waits_at_the_socket_is_woken_for_writing(turns: Turns, line: socket.socket) -> None:
    has_it = threading.Semaphore(0)

    def work() -> None:
        for _ in range(50):
            with turns.work():
                has_it.release()
                turns.wait(line, reading=True, writing=False, timeout_seconds=10.0)

    worker = threading.Thread(target=work)
    began = time.monotonic()
    worker.start()
    for _ in range(50):
        assert has_it.acquire(timeout=DEADLINE_SECONDS)
        turns.wake()
    worker.join(DEADLINE_SECONDS)
    assert time.monotonic() - began < 5.0, "a tick of waiting each would be 25 s"

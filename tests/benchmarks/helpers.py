"""A process beside the benchmark's own: it makes itself ready, is told to go on, and has a result."""

import multiprocessing
from collections.abc import Callable
from typing import Any, Final

_CONTEXT: Final = multiprocessing.get_context("spawn")
_DEADLINE_SECONDS: Final = 300.0


class Helper:
    """Runs `work(side, *arguments)` in a process of its own, which ends with the block."""

    def __init__(self, work: Callable[..., Any], *arguments: object) -> None:
        self._line, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_run, args=(theirs, work, arguments), daemon=True)

    def __enter__(self) -> "Helper":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def wait_ready(self) -> None:
        """Waits until it has said that it is ready."""
        assert self._receive() == "ready"

    def go(self) -> None:
        """Lets it go on."""
        self._line.send("go")

    def ask(self, what: str) -> Any:
        """Its answer to `what`."""
        self._line.send(what)
        return self._receive()

    def result(self) -> Any:
        """What came of it."""
        return self._receive()

    def _receive(self) -> Any:
        if not self._line.poll(_DEADLINE_SECONDS):
            raise HelperError(f"a process of the benchmark said nothing for {_DEADLINE_SECONDS:.0f} s")
        try:
            answer = self._line.recv()
        except EOFError:
            raise HelperError("a process of the benchmark ended without a word") from None
        if isinstance(answer, HelperError):
            raise answer
        return answer


class HelperError(Exception):
    """What ended a process beside the benchmark's own."""


class Side:
    """The helper's side of it."""

    def __init__(self, line: Any) -> None:
        self._line = line

    def say_ready(self) -> None:
        """Says that it is ready."""
        self._line.send("ready")

    def wait_go(self) -> None:
        """Waits until it may go on."""
        self._line.recv()

    def asked(self) -> str:
        """Waits for the next question."""
        return str(self._line.recv())

    def answer(self, value: object) -> None:
        """Answers it."""
        self._line.send(value)


def _run(line: Any, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    try:
        line.send(work(Side(line), *arguments))
    except Exception as error:  # whatever it is: it is told where it can be seen
        line.send(HelperError(f"{type(error).__name__}: {error}"))

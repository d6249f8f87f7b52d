"""What a device keeps across reboots and power cuts: two image slots, the highest bundle it ran, its open offer.

One slot runs, the other takes the next image; a new image runs on trial until the gateway has welcomed it, and
the device goes back to the old one otherwise. State is one JSON file, replaced as a whole (write, sync, rename).
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from provisioning.errors import SetupError

SLOTS: Final = ("a", "b")


@dataclass(slots=True, kw_only=True)
class Image:
    """What a slot holds."""

    version: str
    bundle_seq: int | None = None


@dataclass(slots=True, kw_only=True)
class State:
    """Everything that survives.

    Attributes:
        active: the slot that boots when no trial is on.
        trial: the slot that is being tried, with the offer it came from.
        highest_seq: of the newest bundle that was ever confirmed here: older ones are refused.
        revision: of the newest offer seen: lower ones are ignored.
        offer: the open offer as it was sent, to go on with after a power cut.
        last_update: how the last one ended, until the gateway has answered it.
    """

    active: str = "a"
    images: dict[str, Image] = field(default_factory=dict)
    trial: str | None = None
    highest_seq: int = 0
    revision: int = 0
    offer: dict[str, Any] | None = None
    last_update: dict[str, str] | None = None


class Slots:
    """A device's state directory.

    Args:
        directory: made where it is not there.
        factory: the image that the device left the factory with.

    Raises:
        SetupError: the directory cannot be used, or its state cannot be read.
    """

    def __init__(self, directory: Path, factory: Image) -> None:
        self.directory = directory
        self._file = directory / "state.json"
        try:
            for slot in (*SLOTS, "downloads"):
                (directory / slot).mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                self.state = _read(json.loads(self._file.read_text(encoding="utf-8")))
            else:
                self.state = State(images={"a": factory}, highest_seq=factory.bundle_seq or 0)
                self.save()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"device state in {directory} cannot be used: {error}") from error

    @property
    def running(self) -> Image:
        """The image that runs: the one on trial, else the active one."""
        return self.state.images[self.state.trial or self.state.active]

    @property
    def spare(self) -> str:
        """The slot that takes the next image."""
        return SLOTS[1 - SLOTS.index(self.state.active)]

    @property
    def downloads(self) -> Path:
        """Where artifacts are while they come."""
        return self.directory / "downloads"

    def path(self, slot: str) -> Path:
        """The folder of a slot."""
        return self.directory / slot

    def save(self) -> None:
        """Makes the state last: it is whole at every moment, whatever happens to the power."""
        new = self._file.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)

    def take_offer(self, document: dict[str, Any] | None, revision: int) -> None:
        """Keeps the open offer, or forgets it."""
        self.state.offer, self.state.revision = document, max(self.state.revision, revision)
        self.save()

    def begin_trial(self, image: Image, offer_id: str) -> None:
        """The spare slot holds `image`, and boots next."""
        self.state.images[self.spare] = image
        self.state.trial = self.spare
        self.state.last_update = {"offer_id": offer_id, "result": "succeeded"}
        self.save()

    def roll_back(self, offer_id: str, reason: str) -> None:
        """The image on trial did not do: the old one boots again."""
        self.state.trial = None
        self.end_update(offer_id, "rolled_back", reason)

    def end_update(self, offer_id: str, result: str, reason: str) -> None:
        """Keeps how an update ended until the gateway has answered it."""
        self.state.offer = None
        self.state.last_update = {"offer_id": offer_id, "result": result, "reason": reason}
        self.save()

    def settle(self) -> None:
        """The gateway has welcomed what runs: a trial is over, and what was said is known."""
        state = self.state
        if state.trial is not None:
            state.active, state.trial, state.offer = state.trial, None, None
            state.highest_seq = max(state.highest_seq, self.running.bundle_seq or 0)
        state.last_update = None
        self.save()


def _read(document: dict[str, Any]) -> State:
    images = {slot: Image(**image) for slot, image in document.pop("images").items()}
    return State(images=images, **document)

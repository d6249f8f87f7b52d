"""What the reference device does with offers: takes one, installs it beside the connection, lets go of it when told.

The connection's thread calls everything here; the installer has a thread of its own and puts its steps into a queue.
"""

import queue
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from gateway.device.installer import AddressRefusedError, Halt, Installer, InstallError
from gateway.device.messages import Profile
from gateway.device.slots import Image, Slots
from gateway.device.updates import (
    Heard,
    Offer,
    RefusedOfferError,
    Trust,
    check_offer,
    parse_offer,
    place_offer,
)
from provisioning.bundles import BundleStatement
from provisioning.ids import KeyId

MOST_REFUSALS: Final = 3
"""Refused addresses in a row, each after a fresh offer, before an update has failed."""
Step = tuple[str, str, dict[str, Any]]
"""An offer's id, what its update has come to, and members of the progress message beside it."""


class Updating:
    """The updates of one device.

    Args:
        slots: what it runs, and what it keeps.
        profile: what it says of its hardware.
        keys: SPKI by id of the keys that may sign its firmware.
        cafile: the CA certificates that are trusted for the broker, and for downloads over HTTPS.
        tell: is told in words what happens.
    """

    def __init__(
        self,
        slots: Slots,
        profile: Profile,
        keys: Mapping[KeyId, bytes],
        cafile: Path,
        tell: Callable[[str], None],
    ) -> None:
        self.slots: Final = slots
        self._profile = profile
        self._keys = keys
        self._tls = ssl.create_default_context(cafile=str(cafile))
        self._tell = tell
        self._product = ""
        self._steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._halt = Halt()
        self._refusals = 0
        self._needs_hello = threading.Event()

    @property
    def profile(self) -> Profile:
        """What a hello says, of the image that runs."""
        image = self.slots.running
        return replace(self._profile, version=image.version, bundle_seq=image.bundle_seq)

    def welcome(self, product: str, document: object) -> None:
        """The gateway has welcomed this life, with an offer or without one (None)."""
        self._product = product
        self.slots.settle()
        if document is None and not self._refusals:  # after a refusal, old addresses are of no use
            document = self.slots.state.offer
        self.take(document)

    def take(self, document: object) -> None:
        """An offer, or a cancellation, came; or None, and then nothing happens."""
        slots, offer = self.slots, parse_offer(document)
        if offer is None:
            return
        state = slots.state
        heard, revision = place_offer(
            offer,
            welcomed=bool(self._product),
            highest_revision=state.revision,
            open_offer=None if state.offer is None else str(state.offer["offer_id"]),
            installing=self._is_busy() and not self._let_go(offer),
        )
        if heard is Heard.CANCEL:
            self._tell(f"the offer was taken back: {offer.offer_id}")
            slots.take_offer(None, revision)
        elif heard is Heard.TAKE or (heard is Heard.SAME and not self._is_busy()):
            self._begin(offer, document)
        elif revision > state.revision:
            slots.take_offer(state.offer, revision)

    def take_steps(self) -> list[Step]:
        """What the update under way has come to since the last call."""
        steps = []
        while not self._steps.empty():
            steps.append(self._steps.get())
        return steps

    def needs_hello(self) -> bool:
        """Whether a hello is wanted now, because addresses were refused; True once for each time."""
        if not self._needs_hello.is_set():
            return False
        self._wait()
        self._needs_hello.clear()
        return True

    def boot(self, *, unwell: bool) -> None:
        """A new life, on what the slots say.

        Args:
            unwell: whether an image on trial fails its health check.
        """
        self._wait()
        self._product = ""
        last = self.slots.state.last_update
        if unwell and self.slots.state.trial is not None and last is not None:
            self.slots.roll_back(last["offer_id"], "health_check_failed")

    def stop(self) -> None:
        """Ends what is under way; what has come stays for the next start."""
        self._halt.set()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _let_go(self, offer: Offer) -> bool:
        """Whether the update under way made room for `offer`: it is over, unless it is being written already.

        Only for one that changes something: the same offer again leaves it alone.
        """
        state = self.slots.state
        same = state.offer is not None and state.offer["offer_id"] == offer.offer_id
        if offer.revision < state.revision or (same and not offer.cancelled):
            return False
        if not self._halt.set():
            return False
        self._wait()
        return True

    def _begin(self, offer: Offer, document: object) -> None:
        profile = self.profile
        trust = Trust(
            keys=self._keys,
            product=self._product,
            hardware_model=profile.model,
            hardware_revision=profile.revision or "",
            running_seq=profile.bundle_seq or 0,
            highest_seq=self.slots.state.highest_seq,
        )
        try:
            statement = check_offer(offer, trust)
        except RefusedOfferError as error:
            self._tell(f"offer of {offer.version} refused: {error}")
            self._steps.put((offer.offer_id, "rejected", {"reason": error.reason}))
            self.slots.take_offer(None, offer.revision)
            self.slots.end_update(offer.offer_id, "rejected", error.reason)
            return
        assert isinstance(document, dict)
        self.slots.take_offer(document, offer.revision)
        self._tell(f"offered {statement.version} (bundle {statement.bundle_seq})")
        self._steps.put((offer.offer_id, "accepted", {}))
        self._halt = Halt()
        self._thread = threading.Thread(
            target=self._install, args=(offer, statement, self._halt), name="installer", daemon=True
        )
        self._thread.start()

    def _install(self, offer: Offer, statement: BundleStatement, halt: Halt) -> None:
        def tell(state: str, more: dict[str, Any]) -> None:
            self._steps.put((offer.offer_id, state, more))

        try:
            if not Installer(self.slots, offer, statement, tell, self._tls, halt).run():
                return
        except AddressRefusedError as error:
            self._refusals += 1
            self._tell(f"an address was refused ({error.word}); asking for fresh ones")
            if self._refusals < MOST_REFUSALS:
                self._needs_hello.set()
                return
            self._refusals = 0
            self.slots.end_update(offer.offer_id, "failed", "url_refused")
            tell("failed", {"reason": "url_refused", "detail": error.word})
            return
        except InstallError as error:
            self.slots.end_update(offer.offer_id, "failed", error.reason)
            tell("failed", {"reason": error.reason, "detail": error.detail})
            return
        self._refusals = 0
        image = Image(version=statement.version, bundle_seq=statement.bundle_seq)
        self.slots.begin_trial(image, offer.offer_id)
        tell("rebooting", {})

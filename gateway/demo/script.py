"""What an operator does in the demo, as the very commands that it prints: products, CAs, firmware, rollouts."""

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.demo.stage import Say, Stage
from gateway.device.factory import Authority, create_authority
from gateway.settings import CONFIG_VARIABLE
from provisioning.envelope import check_signing_key, key_id_of, spki_of
from provisioning.errors import NotFoundError
from provisioning.ids import KeyId
from store.times import now_utc

PRODUCTS: Final = ("thermostat", "gateway-v2", "e-meter")
VERSION: Final = "2.0.0"
ARTIFACT_BYTES: Final = 40_000
Run = Callable[[Sequence[str]], None]
"""Runs one command of `fleetgate`; raises what it raises."""


@dataclass(slots=True, kw_only=True)
class Script:
    """The operator of a demo.

    Args:
        run: the program itself.
        say: is told each step with its command.
    """

    stage: Stage
    run: Run
    say: Say
    authorities: dict[str, Authority] = field(default_factory=dict)
    keys: dict[KeyId, bytes] = field(default_factory=dict)

    @property
    def factory(self) -> Path:
        """Where the factory's and the operator's keys are: not the gateway's."""
        return self.stage.place.directory / "factory"

    def register(self) -> None:
        """Makes the products, their cohorts and JITP settings, and registers their CAs with proof."""
        self.factory.mkdir(mode=0o700, exist_ok=True)
        for number, product in enumerate(PRODUCTS):
            shown = number == 0
            self._do("Make a product" if shown else "", "product", "create", product, shown=shown)
            for text, cohort in (("Give it cohorts", "canary"), ("", "main")):
                self._do(text if shown else "", "cohort", "create", product, cohort, shown=shown)
            rules = self.factory / f"{product}-jitp.json"
            settings = {
                "enabled": True,
                "identifier_pattern": f"{product}-.+",
                "tags": ["demo"],
                "cohort_rules": [{"split": {"canary": 10, "main": 90}}],
            }
            rules.write_text(json.dumps(settings, indent=2))
            text = "Let its devices provision themselves, one in ten as canary"
            self._do(text if shown else "", "product", "jitp", product, "--settings", str(rules), shown=shown)
            self._register_authority(product, shown=shown)
        self.say(f"The same for {' and '.join(PRODUCTS[1:])}", "")

    def publish(self) -> None:
        """Makes a signing key, and signs and pushes a bundle for each product."""
        key = self.factory / "firmware.key"
        self._do("Make a key that signs firmware: it stays with the operator", "key", "create", str(key))
        public = check_signing_key(
            serialization.load_pem_public_key((self.factory / "firmware.key.pub").read_bytes())
        )
        self.keys = {key_id_of(public): spki_of(public)}
        for number, product in enumerate(PRODUCTS):
            shown = number == 0
            folder = self.factory / product
            folder.mkdir(exist_ok=True)
            image = folder / "image.bin"
            image.write_bytes(secrets.token_bytes(ARTIFACT_BYTES))
            stem = folder / f"{product}-{VERSION}"
            text = f"Bundle, sign and push firmware {VERSION}" if shown else ""
            self._do(text, "key", "add", product, f"{key}.pub", "--name", "firmware", shown=shown)
            self._do(
                "", "bundle", "create", str(image), "--product", product, "--version", VERSION,
                "--sequence", "2", "--hardware", product, "--output", f"{stem}.json", shown=shown,
            )  # fmt: skip
            self._do("", "bundle", "sign", f"{stem}.json", "--key", str(key), shown=shown)
            self._do("", "bundle", "push", f"{stem}.bundle", shown=shown)

    def schedule(self, seconds: float, most_in_flight: int) -> datetime:
        """Plans the rollouts, canary and main, to begin in `seconds`. Returns when."""
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=round(seconds) + 1)
        for number, product in enumerate(PRODUCTS):
            text = f"Roll it out at {at:%H:%M:%S} UTC, at most {most_in_flight} at once"
            self._do(
                text if number == 0 else "", "rollout", "create", product, "--bundle", VERSION,
                "--cohort", "canary", "--cohort", "main", "--at", at.isoformat(),
                "--most-in-flight", str(most_in_flight), shown=number == 0,
            )  # fmt: skip
        return at

    def _register_authority(self, product: str, *, shown: bool) -> None:
        name = product
        authority = create_authority(f"Demo {name} CA {secrets.token_hex(3)}", now=now_utc())
        pem, key = self.factory / f"{name}.pem", self.factory / f"{name}.key"
        pem.write_bytes(authority.pem)
        key.touch(mode=0o600)
        key.write_bytes(authority.key_pem)
        text = "Register its CA, and prove that we hold its key" if shown else ""
        made = self._ask(text, "ca", "register", product, str(pem), "--name", name, shown=shown)
        proof = self.factory / f"{name}-proof.pem"
        proof.write_bytes(authority.prove(made["code"], now_utc()))
        self._do("", "ca", "prove", name, str(proof), "--product", product, shown=shown)
        text = "Activate it: the broker trusts it at the next handshake" if shown else ""
        self._do(text, "ca", "activate", name, "--product", product, shown=shown)
        self.authorities[product] = authority

    def _do(self, text: str, *words: str, shown: bool = True) -> None:
        self._call(text, words, shown)

    def _ask(self, text: str, *words: str, shown: bool) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._call(text, (*words, "--json"), shown))
        return answer

    def _call(self, text: str, words: Sequence[str], shown: bool) -> str:
        if shown:
            here = f"{Path.cwd()}/"  # shown as one would type it
            self.say(text, f"fleetgate {' '.join(words)}".removesuffix(" --json").replace(here, ""))
        output = io.StringIO()
        before = os.environ.get(CONFIG_VARIABLE)
        os.environ[CONFIG_VARIABLE] = str(self.stage.place.settings)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
                self.run(words)
        finally:
            os.environ.pop(CONFIG_VARIABLE)
            if before is not None:
                os.environ[CONFIG_VARIABLE] = before
        return output.getvalue()


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A device certificate for the reader, signed by the first product's CA; paths of certificate and key.

    Raises:
        NotFoundError: no demo has been here.
    """
    keys = directory / "factory"
    product = PRODUCTS[0]
    if not (keys / f"{product}.key").is_file():
        raise NotFoundError(f"no demo in {directory}: start `make demo` first, in another terminal")
    key = serialization.load_pem_private_key((keys / f"{product}.key").read_bytes(), None)
    cert = x509.load_pem_x509_certificate((keys / f"{product}.pem").read_bytes())
    authority = Authority(cert=cert, key=key)  # type: ignore[arg-type]  # the factory's own key
    return authority.issue(f"{product}-{name}", now=now_utc()).write(keys / "devices", name)

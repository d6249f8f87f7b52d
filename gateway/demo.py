"""The demo: a real installation, broker, service and fleet, in one folder on free ports.

Every step prints the command that a real installation would take, so that watching it teaches. What the
devices saw is compared at the end with what SQL finds in the database.
"""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from gateway.cli.api import Api, open_api
from gateway.cli.init import create_first_organization
from gateway.device.factory import Authority, create_authority
from gateway.device.fleet import Broker, Fleet, FleetReport, Plan
from gateway.device.messages import Profile
from gateway.installation import Installation, create_installation
from gateway.settings import Settings
from provisioning.errors import NotFoundError, SetupError
from store import reports
from store.database import Database
from store.times import now_utc
from store.verify import verify

PRODUCTS: Final = ("thermostat", "gateway-v2", "e-meter")
MARKER: Final = ".fleetgate-demo"
START_SECONDS: Final = 30.0
Say = Callable[[str, str], None]
"""Tells a step: a sentence, and the command that does it ('' for none)."""


@dataclass(slots=True, kw_only=True)
class Demo:
    """A running demo."""

    place: Installation
    settings: Settings
    authorities: dict[str, Authority] = field(default_factory=dict)

    @property
    def broker(self) -> Broker:
        """Where its devices dial."""
        return Broker(
            host=self.place.device_host,
            port=self.place.device_port,
            cafile=self.place.broker_ca,
            audience=self.place.audience,
            prefix=self.place.prefix,
        )

    def plans(self, devices: int, intruders: int) -> list[Plan]:
        """Well-behaved devices of all products in turn, and intruders whose names no product takes."""
        now = now_utc()
        plans = []
        for number in range(devices):
            product = PRODUCTS[number % len(PRODUCTS)]
            name = f"{product}-{number:05}"
            made = self.authorities[product].issue(name, now=now)
            version = ("1.0.0", "1.0.1", "1.1.0")[secrets.randbelow(3)]
            plans.append(Plan(name=name, made=made, profile=Profile(model=product, version=version)))
        for number in range(intruders):
            product = PRODUCTS[number % len(PRODUCTS)]
            name = f"intruder-{number:05}"
            made = self.authorities[product].issue(name, now=now)
            profile = Profile(model=product, version="6.6.6")
            plans.append(Plan(name=name, made=made, profile=profile, expected="identifier_pattern"))
        return plans


@contextlib.contextmanager
def running_demo(directory: Path, say: Say) -> Iterator[Demo]:
    """Installs, starts broker and gateway, registers the products, and ends all of it.

    Args:
        directory: taken over if an earlier demo made it, or it is empty or not there.
        say: is told each step.

    Raises:
        SetupError: the folder is somebody else's, or a part does not start.
    """
    _take_over(directory)
    host = "localhost"
    say(
        "Make an installation: broker PKI, secrets, settings, first admin key",
        f"fleetgate init {directory} --device-host {host}",
    )
    account = _account()
    place = create_installation(
        directory,
        device_host=host,
        now=now_utc(),
        device_port=0,
        gateway_port=0,
        http_port=0,
        download_port=0,
        owner=account,
        broker_user=account,
    )
    (directory / MARKER).write_text(
        json.dumps(
            {
                "host": place.device_host,
                "port": place.device_port,
                "cafile": str(place.broker_ca),
                "audience": place.audience,
                "prefix": place.prefix,
            }
        )
    )
    settings = Settings.load(place.settings)
    create_first_organization(settings, "demo")
    say("Start the broker on the shipped configuration", f"mosquitto -c {place.configuration}")
    with place.local_broker():
        say("Start the gateway", f"fleetgate serve --config {place.settings}")
        with _served(place, settings), open_api(place.settings) as api:
            demo = Demo(place=place, settings=settings)
            for number, product in enumerate(PRODUCTS):
                demo.authorities[product] = _register(api, directory, product, say if number == 0 else None)
            say(f"The same for {' and '.join(PRODUCTS[1:])}", "")
            yield demo


def run_fleet(
    demo: Demo, devices: int, seconds: float, on_change: Callable[[Fleet], None] = lambda _: None
) -> tuple[Fleet, FleetReport]:
    """Connects the devices and some intruders, and serves them until each has its answer."""
    fleet = Fleet(demo.plans(devices, max(1, devices // 50)), demo.broker)
    return fleet, fleet.run(seconds, on_change=on_change)


def judge(demo: Demo, report: FleetReport, devices: int) -> dict[str, Any]:
    """The headless demo's answer: what the devices saw, held against SQL and the invariants."""
    database = Database(demo.settings.database.url)
    try:
        with database.read() as tx:
            by_product, refused = reports.count_devices(tx), reports.count_refused_keys(tx)
        checked = verify(database)
    finally:
        database.close()
    agrees = by_product == dict(report.by_product) and refused == dict(report.refused)
    well_behaved = sum(not outcome.name.startswith("intruder-") for outcome in report.welcomed)
    return {
        "devices": {
            "simulated": len(report.outcomes),
            "provisioned": sum(by_product.values()),
            "refused": refused,
            "by_product": by_product,
        },
        "latency_ms": {"p50": report.latency_ms(0.5), "p99": report.latency_ms(0.99)},
        "invariants": {
            "ok": checked.ok,
            "checked": sorted({finding.invariant for finding in checked.findings}),
            "breaches": [breach for finding in checked.findings for breach in finding.breaches],
        },
        "ok": agrees and checked.ok and well_behaved == devices,
    }


def find_broker(directory: Path) -> Broker:
    """Where the devices of the demo in `directory` dial.

    Raises:
        NotFoundError: no demo has been there.
    """
    marker = directory / MARKER
    if not marker.is_file():
        raise NotFoundError(f"no demo in {directory}: start `make demo` first, in another terminal")
    values = json.loads(marker.read_text())
    return Broker(**{**values, "cafile": Path(values["cafile"])})


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


def _register(api: Api, directory: Path, product: str, say: Say | None) -> Authority:
    def tell(what: str, command: str) -> None:
        if say is not None:
            say(what, command)

    tell("Make a product", f"fleetgate product create {product}")
    api.post("products", body={"name": product, "description": f"The demo's {product}"})
    tell(
        "Give it cohorts", f"fleetgate cohort create {product} canary; fleetgate cohort create {product} main"
    )
    for cohort in ("canary", "main"):
        api.post("products", product, "cohorts", body={"name": cohort})
    jitp = {
        "enabled": True,
        "identifier_pattern": f"{product}-.+",
        "tags": ["demo"],
        "cohort_rules": [{"split": {"canary": 10, "main": 90}}],
    }
    tell(
        "Let its devices provision themselves, one in ten as canary",
        f"fleetgate product jitp {product} --enable --settings jitp.json",
    )
    api.put("products", product, "jitp", body=jitp)
    authority = create_authority(f"Demo {product} CA {secrets.token_hex(3)}", now=now_utc())
    keys = directory / "factory"
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / f"{product}.pem").write_bytes(authority.pem)
    (keys / f"{product}.key").touch(mode=0o600)
    (keys / f"{product}.key").write_bytes(authority.key_pem)
    tell(
        "Register its CA, and prove that we hold its key",
        f"fleetgate ca register {product} {keys / product}.pem; fleetgate ca prove {product} PROOF.pem",
    )
    made = api.post(
        "products", product, "authorities", body={"name": product, "certificate": authority.pem.decode()}
    )
    proof = authority.prove(made["code"], now_utc())
    api.post("authorities", made["id"], "prove", body={"certificate": proof.decode()})
    tell("Activate it: the broker trusts it at the next handshake", f"fleetgate ca activate {product}")
    api.post("authorities", made["id"], "activate")
    return authority


@contextlib.contextmanager
def _served(place: Installation, settings: Settings) -> Iterator[None]:
    """The real service as a process of its own, until its `/readyz` says so; ended by SIGTERM."""
    log = place.directory / "gateway.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(place.settings)],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        pause = threading.Event()
        for _ in range(int(START_SECONDS / 0.1)):
            if process.poll() is not None:
                raise SetupError(f"the gateway ended with {process.returncode}; its log: {log}")
            if _is_ready(settings.http.url):
                break
            pause.wait(0.1)
        else:
            raise SetupError(f"the gateway was not ready within {START_SECONDS:.0f} s; its log: {log}")
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == 200
    return False


def _take_over(directory: Path) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / MARKER).exists():
        raise SetupError(f"{directory} is not empty and no demo made it; give another with --directory")
    shutil.rmtree(directory)


def _account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name

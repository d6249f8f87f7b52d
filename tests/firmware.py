"""Firmware for tests: products with a signing key, bundles pushed over the API, rollouts that have begun."""

import hashlib
import itertools
import secrets
from typing import Any, Final

from broker_fixtures import wait_until
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running import Running

from gateway.operations import bundles, rollouts
from provisioning.bundles import Artifact, BundleStatement, sign_statement
from provisioning.envelope import key_id_of, spki_of
from provisioning.rollouts import Plan, RolloutState

KEY: Final = ec.generate_private_key(ec.SECP256R1())
KEYS: Final = {key_id_of(KEY.public_key()): spki_of(KEY.public_key())}
SEQUENCE: Final = itertools.count(1)


def make_product(running: Running, stem: str) -> str:
    """A product whose bundles KEY signs, and whose `lab-*` hardware is canary; returns its name."""
    name = f"{stem}-{secrets.token_hex(4)}"
    running.product(name, cohort_rules=[{"hardware": {"model": "lab-*"}, "cohort": "canary"}])
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    bundles.add_key(running.desk, running.principal, product=name, name="first", pem=pem.decode())
    return name


def push(running: Running, product: str, *, size: int = 5000, **changes: Any) -> BundleStatement:
    """A bundle of one artifact, pushed over the API."""
    content = secrets.token_bytes(size)
    number = next(SEQUENCE)
    statement = BundleStatement(
        **(
            {
                "product": product,
                "version": f"1.{number}.0",
                "bundle_seq": number,
                "artifacts": (
                    Artifact(name="image.bin", size=len(content), sha256=hashlib.sha256(content).hexdigest()),
                ),
            }
            | changes
        )
    )
    with running.api() as api:
        place = f"/api/v1/products/{product}"
        sent = api.put(f"{place}/artifacts/{statement.artifacts[0].sha256}", content=content)
        assert sent.status_code == 204, sent.text
        answer = api.post(f"{place}/bundles", json={"envelope": sign_statement(KEY, statement).decode()})
        assert answer.status_code == 201, answer.text
    return statement


def roll_out(
    running: Running, product: str, version: str, *cohorts: str, **plan: Any
) -> rollouts.RolloutView:
    """A rollout that has begun."""
    made = rollouts.create(
        running.desk,
        running.principal,
        product=product,
        version=version,
        cohorts=cohorts or ("main",),
        plan=Plan(**plan),
        start_at=None,
    )
    wait_until(lambda: state_of(running, made[0]) is not RolloutState.SCHEDULED, "the rollout starts")
    return made[0]


def state_of(running: Running, view: rollouts.RolloutView) -> RolloutState:
    """Where a rollout stands now."""
    return rollouts.load(running.desk, running.principal, view.rollout.id).rollout.state


def attempts_of(running: Running, view: rollouts.RolloutView) -> dict[str, int]:
    """A rollout's attempts by state, from counters."""
    return rollouts.load(running.desk, running.principal, view.rollout.id).attempts

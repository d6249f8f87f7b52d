"""Facts and identities for tests of decisions: no database, no broker, no clock."""

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.device.factory import Authority, DeviceCertificate, create_authority
from provisioning.authorities import AuthorityState, inspect_authority
from provisioning.certificates import parse_chain
from provisioning.greeting import Terms, Verdict, decide_message
from provisioning.ids import AuthorityId, CohortId, OrganizationId, ProductId
from provisioning.messages import Hello, Presence
from provisioning.products import JitpSettings, Product
from provisioning.verification import Anchor, TrustAnchors, VerifiedIdentity, verify_chain
from provisioning.working import AuthorityFact, Registry, WorkingSet

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TERMS = Terms(audience="gw", challenge_key=b"k" * 32, heartbeat_seconds=60)


class World:
    """One product with a CA and two cohorts, and the working set of everything that was said."""

    def __init__(self, **jitp: Any) -> None:
        self.now = NOW
        self._ids = itertools.count(1000)
        self.authority: Authority = create_authority("World CA", now=NOW)
        facts = inspect_authority(self.authority.pem)
        self.anchors = TrustAnchors(
            [
                Anchor(
                    authority_id=AuthorityId(1),
                    product_id=ProductId(1),
                    certificate=facts.certificate,
                    key_id=facts.key_id,
                    state=AuthorityState.ACTIVE,
                    legacy=False,
                )
            ]
        )
        settings = JitpSettings.model_validate({"enabled": True, "default_cohort": "main"} | jitp)
        product = Product(
            id=ProductId(1),
            organization_id=OrganizationId(1),
            name="sensor",
            description="",
            created_at=NOW,
            jitp=settings,
        )
        fact = AuthorityFact(
            id=AuthorityId(1), product_id=ProductId(1), name="first", state=AuthorityState.ACTIVE
        )
        registry = Registry(
            revision=1,
            products={product.id: product},
            cohorts={product.id: {"canary": CohortId(1), "main": CohortId(2)}},
            authorities={fact.id: fact},
        )
        self.facts = WorkingSet(registry=registry, broker="main", worker="w", epoch=1)

    def with_authority(self, state: AuthorityState) -> None:
        registry = self.facts.registry
        fact = replace(registry.authorities[AuthorityId(1)], state=state)
        self.facts.registry = replace(registry, authorities={fact.id: fact})

    def make(self, cn: str, **more: Any) -> DeviceCertificate:
        return self.authority.issue(cn, now=NOW, **more)

    def identity(self, made: DeviceCertificate) -> VerifiedIdentity:
        return verify_chain(parse_chain(made.der_chain), self.anchors, self.now)

    def say(self, made: DeviceCertificate, **more: Any) -> Verdict:
        """A hello of `made`, decided now; then a second passes."""
        number = next(self._ids)
        document = {
            "v": 1,
            "aud": "gw",
            "topic": "t",
            "conn": f"{number:016x}",
            "boot": "b" * 16,
            "seq": 1,
            "ts": int(self.now.timestamp() * 1000),
            "nonce": f"nonce-{number}",
            "hardware": {"model": "m"},
            "firmware": {"version": "1"},
        } | more
        hello = Hello.model_validate_json(json.dumps({k: v for k, v in document.items() if v is not None}))
        return self.decide(hello, made)

    def decide(self, message: Hello | Presence, made: DeviceCertificate) -> Verdict:
        verdict = decide_message(
            message,
            self.identity(made),
            self.facts,
            terms=TERMS,
            now=self.now,
            new_id=lambda: next(self._ids),
        )
        self.now += timedelta(seconds=1)
        return verdict

"""What the API takes and gives about firmware, as models; numbers of objects are strings."""

from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from gateway.http.views import Body, RuleOut
from gateway.operations.bundles import Pushed
from gateway.operations.rollouts import Explanation, RolloutView
from provisioning.attempts import Attempt
from provisioning.bundles import Artifact, Bundle, PushDecision
from provisioning.ids import DeviceId
from provisioning.rollouts import Override, Plan
from store.signing_keys import SigningKey
from store.timelines import Happening


class NewSigningKey(Body):
    """A public key that may sign a product's bundles."""

    name: str
    key: str = Field(max_length=4096, description="PEM, SubjectPublicKeyInfo: P-256 or Ed25519")


class SigningKeyOut(BaseModel):
    """A signing key."""

    id: str
    name: str
    key_id: str
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: SigningKey) -> "SigningKeyOut":
        """From the type of the store."""
        return cls(
            id=str(key.id),
            name=key.name,
            key_id=key.key_id,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
        )


class NewBundle(Body):
    """A bundle to take in."""

    envelope: str = Field(
        max_length=32_768, description="the signed statement: a DSSE envelope, as JSON text"
    )


class ArtifactOut(BaseModel):
    """An artifact of a bundle."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, artifact: Artifact) -> "ArtifactOut":
        """From the type of the core."""
        return cls(name=artifact.name, size=artifact.size, sha256=artifact.sha256)


class BundleOut(BaseModel):
    """A bundle."""

    id: str
    version: str
    bundle_seq: int
    digest: str
    hardware: list[str]
    floor: int | None
    notes: str
    size: int
    artifacts: list[ArtifactOut]
    created: bool = Field(True, description="false where the very same bundle was there already")

    @classmethod
    def of(cls, bundle: Bundle, *, created: bool = True) -> "BundleOut":
        """From the type of the core."""
        statement = bundle.statement
        return cls(
            id=str(bundle.id),
            version=bundle.version,
            bundle_seq=bundle.bundle_seq,
            digest=bundle.digest,
            hardware=[f"{one.model} {'/'.join(one.revisions)}".strip() for one in statement.hardware],
            floor=statement.floor,
            notes=statement.notes,
            size=sum(artifact.size for artifact in statement.artifacts),
            artifacts=[ArtifactOut.of(artifact) for artifact in statement.artifacts],
            created=created,
        )

    @classmethod
    def of_pushed(cls, pushed: Pushed) -> "BundleOut":
        """From what a push came to."""
        return cls.of(pushed.bundle, created=pushed.created)


class PushCheckOut(BaseModel):
    """What would come of pushing a bundle, and the artifacts to upload before."""

    rules: list[RuleOut]
    known: bool
    missing: list[ArtifactOut]

    @classmethod
    def of(cls, decision: PushDecision) -> "PushCheckOut":
        """From the type of the core."""
        return cls(
            rules=[RuleOut.of(rule) for rule in decision.rules],
            known=decision.known,
            missing=[ArtifactOut.of(artifact) for artifact in decision.missing],
        )


class NewRollout(Body):
    """A bundle to roll out to cohorts."""

    product: str
    version: str
    cohorts: list[str] = Field(min_length=1, max_length=64)
    start_at: AwareDatetime | None = Field(None, description="with its zone; none: at once")
    plan: Plan = Field(default_factory=Plan)


class RolloutOut(BaseModel):
    """A rollout, with its attempts by state."""

    id: str
    group: str
    product: str
    cohort: str
    version: str
    bundle_seq: int
    state: str
    start_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempts: dict[str, int]
    plan: Plan

    @classmethod
    def of(cls, view: RolloutView) -> "RolloutOut":
        """From the command's answer."""
        rollout = view.rollout
        return cls(
            id=str(rollout.id),
            group=str(rollout.group),
            product=view.product,
            cohort=view.cohort,
            version=rollout.bundle.version,
            bundle_seq=rollout.bundle.bundle_seq,
            state=rollout.state,
            start_at=rollout.start_at,
            started_at=rollout.started_at,
            ended_at=rollout.ended_at,
            attempts=view.attempts,
            plan=rollout.plan,
        )


class NewOverride(Body):
    """A bundle for named devices, over a period."""

    product: str
    version: str
    devices: list[str] = Field(min_length=1, max_length=1000, description="identifiers, topic names or ids")
    starts_at: AwareDatetime | None = None
    ends_at: AwareDatetime | None = None


class OverrideOut(BaseModel):
    """An override."""

    id: str
    version: str
    bundle_seq: int
    devices: list[str]
    starts_at: datetime
    ends_at: datetime | None

    @classmethod
    def of(cls, override: Override, device_ids: tuple[DeviceId, ...]) -> "OverrideOut":
        """From the type of the core."""
        return cls(
            id=str(override.id),
            version=override.bundle.version,
            bundle_seq=override.bundle.bundle_seq,
            devices=[str(number) for number in device_ids],
            starts_at=override.starts_at,
            ends_at=override.ends_at,
        )


class AttemptOut(BaseModel):
    """One device's try at one rollout or override."""

    id: str
    version: str
    bundle_seq: int
    from_version: str
    state: str
    percent: int | None
    reason: str
    detail: str
    offered_at: datetime
    stepped_at: datetime
    finished_at: datetime | None
    times_out_at: datetime | None

    @classmethod
    def of(cls, attempt: Attempt) -> "AttemptOut":
        """From the type of the core."""
        return cls(
            id=str(attempt.id),
            version=attempt.bundle_version,
            bundle_seq=attempt.bundle_seq,
            from_version=attempt.from_version,
            state=attempt.state,
            percent=attempt.percent if attempt.percent >= 0 else None,
            reason=attempt.reason,
            detail=attempt.detail,
            offered_at=attempt.offered_at,
            stepped_at=attempt.stepped_at,
            finished_at=attempt.finished_at,
            times_out_at=attempt.times_out_at,
        )


class ExplanationOut(BaseModel):
    """Why a device is, or is not, offered firmware now."""

    device: str
    offered: bool
    version: str | None = Field(description="of the candidate, where there is one")
    rules: list[RuleOut]
    attempt: AttemptOut | None

    @classmethod
    def of(cls, explanation: Explanation) -> "ExplanationOut":
        """From the command's answer."""
        decision = explanation.decision
        return cls(
            device=explanation.device,
            offered=decision.ready,
            version=None if decision.source is None else decision.source.bundle.version,
            rules=[RuleOut.of(rule) for rule in decision.rules],
            attempt=None if explanation.attempt is None else AttemptOut.of(explanation.attempt),
        )


class HappeningOut(BaseModel):
    """Something that happened to a device."""

    at: datetime
    kind: str
    word: str
    before: str
    about: str
    reason: str

    @classmethod
    def of(cls, happening: Happening) -> "HappeningOut":
        """From the type of the store."""
        return cls(
            at=happening.at,
            kind=happening.kind,
            word=happening.word,
            before=happening.before,
            about=happening.about,
            reason=happening.reason,
        )


def refusal(decision: PushDecision) -> dict[str, Any]:
    """The extension members of the problem document of a refused bundle."""
    checked = PushCheckOut.of(decision).model_dump(mode="json")
    rule = decision.refused
    return {"reason": None if rule is None else rule.reason, **checked}

"""What the API takes and gives, as models; numbers of objects are strings (JavaScript loses large ones)."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from gateway.http.text import has_nul
from provisioning.access import Role
from provisioning.decision import Rule, first_failed
from provisioning.errors import RejectReason
from provisioning.products import Cohort, Product, Tag
from provisioning.statistics import Per
from store.authorities import Authority
from store.devices import DeviceView, InboxItem
from store.organizations import ApiKey
from store.reports import Flows

Number = Annotated[int, Field(ge=0, lt=1 << 63)]
"""An object's number in a path."""


class Body(BaseModel):
    """What is sent: members that are not known are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_nul(cls, sent: Any) -> Any:
        if has_nul(sent):
            raise ValueError("no text may have the character U+0000")
        return sent


class NewProduct(Body):
    """A product to make."""

    name: str
    description: str = ""
    tags: list[str] = Field(default_factory=list)


class NewCohort(Body):
    """A cohort to make."""

    name: str
    description: str = ""


class NewAuthority(Body):
    """A CA to register."""

    name: str
    certificate: str = Field(description="PEM")


class Proof(Body):
    """The proof of possession of a CA's key."""

    certificate: str = Field(description="PEM; CN is the code, signed by the CA")


class CertificateToCheck(Body):
    """A device's certificate to try."""

    chain: str = Field(description="PEM, leaf first, with intermediates")
    product: str | None = Field(None, description="where it should come to")


class NewDevice(Body):
    """A device that is known before it comes."""

    identifier: str = Field(min_length=1, max_length=128)
    cohort: str | None = None
    tags: list[Tag] = Field(default_factory=list, max_length=32)


class Grant(Body):
    """How long a device may bring a new key."""

    hours: float = Field(24, gt=0, le=720)


class NewApiKey(Body):
    """An API key to make."""

    name: str
    role: Role
    expires_at: AwareDatetime | None = None


class ApiKeyOut(BaseModel):
    """An API key as it is kept: all but the key."""

    id: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> "ApiKeyOut":
        """From the store's type."""
        return cls(
            id=str(key.id),
            name=key.name,
            role=key.role,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
        )


class MadeApiKeyOut(ApiKeyOut):
    """A key that was just made. `key` is shown this once; where the answer is given again, it is null."""

    key: str | None


class ProductOut(BaseModel):
    """A product."""

    id: str
    name: str
    description: str
    tags: list[str]
    jitp: dict[str, Any]
    enrolled: int
    archived_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, product: Product) -> "ProductOut":
        """From the type of the core."""
        return cls(
            id=str(product.id),
            name=product.name,
            description=product.description,
            tags=list(product.tags),
            jitp=product.jitp.model_dump(mode="json"),
            enrolled=product.enrolled,
            archived_at=product.archived_at,
            created_at=product.created_at,
        )


class CohortOut(BaseModel):
    """A cohort."""

    id: str
    name: str
    description: str
    created_at: datetime

    @classmethod
    def of(cls, cohort: Cohort) -> "CohortOut":
        """From the type of the core."""
        return cls(
            id=str(cohort.id), name=cohort.name, description=cohort.description, created_at=cohort.created_at
        )


class AuthorityOut(BaseModel):
    """A CA. `code` is there until it is proven."""

    id: str
    product: str
    name: str
    state: str
    subject: str
    key_id: str
    fingerprint: str
    legacy: bool
    code: str | None
    code_expires_at: datetime | None
    proven_at: datetime | None
    not_before: datetime
    not_after: datetime

    @classmethod
    def of(cls, authority: Authority) -> "AuthorityOut":
        """From the store's type."""
        open_code = authority.proven_at is None
        return cls(
            id=str(authority.id),
            product=authority.product,
            name=authority.name,
            state=authority.state,
            subject=authority.subject,
            key_id=authority.key_id,
            fingerprint=authority.fingerprint,
            legacy=authority.legacy,
            code=authority.code if open_code else None,
            code_expires_at=authority.code_expires_at if open_code else None,
            proven_at=authority.proven_at,
            not_before=authority.not_before,
            not_after=authority.not_after,
        )


class DeviceOut(BaseModel):
    """A device."""

    id: str
    product: str
    cohort: str | None
    identifier: str
    topic_name: str | None
    state: str
    connection: str | None
    last_seen_at: datetime | None
    tags: list[str]
    attributes: dict[str, Any]
    hardware_model: str
    hardware_revision: str
    firmware_version: str
    new_key_until: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, view: DeviceView) -> "DeviceOut":
        """From the store's type."""
        device = view.device
        return cls(
            id=str(device.id),
            product=view.product,
            cohort=view.cohort,
            identifier=device.identifier,
            topic_name=device.topic_name,
            state=device.state,
            connection=view.connection,
            last_seen_at=view.last_seen_at,
            tags=list(device.tags),
            attributes=dict(device.attributes),
            hardware_model=device.hardware_model,
            hardware_revision=device.hardware_revision,
            firmware_version=device.firmware_version,
            new_key_until=device.new_key_until,
            created_at=device.created_at,
        )


class DevicePage(BaseModel):
    """A page of devices; `next_cursor` is the cursor of the one after, null at the end."""

    items: list[DeviceOut]
    next_cursor: str | None


class InboxOut(BaseModel):
    """Refusals of what was proven, grouped."""

    id: str
    product: str
    reason: str
    identifier: str
    topic_name: str
    key_id: str
    detail: str
    seen: int
    first_at: datetime
    last_at: datetime

    @classmethod
    def of(cls, item: InboxItem) -> "InboxOut":
        """From the store's type."""
        return cls(
            id=str(item.id),
            product=item.product,
            reason=item.reason,
            identifier=item.identifier,
            topic_name=item.topic_name,
            key_id=item.key_id,
            detail=item.detail,
            seen=item.seen,
            first_at=item.first_at,
            last_at=item.last_at,
        )


class FlowsOut(BaseModel):
    """What flowed, bucket by bucket: for each word as many counts as there are `starts`."""

    per: Per
    starts: list[datetime]
    connects: dict[str, list[int]]
    disconnects: dict[str, list[int]]
    enrollments: dict[str, list[int]]
    refusals: dict[str, list[int]]
    outcomes: dict[str, list[int]]
    failures: dict[str, list[int]]

    @classmethod
    def of(cls, flows: Flows) -> "FlowsOut":
        """From the store's type."""
        return cls(per=flows.per, starts=list(flows.starts), **flows.words)


class RuleOut(BaseModel):
    """One check of a decision."""

    name: str
    passed: bool | None
    detail: str
    reason: str | None
    changes_at: datetime | None

    @classmethod
    def of(cls, rule: Rule) -> "RuleOut":
        """From the type of the core."""
        return cls(
            name=rule.name,
            passed=rule.passed,
            detail=rule.detail,
            reason=rule.reason,
            changes_at=rule.changes_at,
        )


class CheckOut(BaseModel):
    """What would happen to a certificate: `welcome`, `pending` or `rejected`, and the rules that say so."""

    result: str
    reason: str | None
    rules: list[RuleOut]

    @classmethod
    def of(cls, rules: list[Rule]) -> "CheckOut":
        """From the rules of the decision."""
        refusing = first_failed(rules)
        reason = None if refusing is None else refusing.reason
        pending = reason is RejectReason.APPROVAL_REQUIRED
        return cls(
            result="welcome" if refusing is None else "pending" if pending else "rejected",
            reason=reason,
            rules=[RuleOut.of(rule) for rule in rules],
        )

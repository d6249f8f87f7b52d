"""What a product is, and how it takes in devices: its JITP settings."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from provisioning.errors import InvalidError
from provisioning.ids import CohortId, OrganizationId, ProductId

NAME_PATTERN: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""Names of organizations, products and cohorts: what fits in a URL, a topic and a shell unquoted."""

Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:=-]+$")]


def parse_name(text: str, what: str) -> str:
    """`text` if it may name a `what` (`product`, `cohort` …).

    Raises:
        InvalidError: it is not 1–63 of a–z, 0–9 and inner hyphens.
    """
    if NAME_PATTERN.fullmatch(text) is None:
        raise InvalidError(
            f"{what} name must be 1–63 of a–z, 0–9 and inner hyphens, got {text[:80]!r}", field="name"
        )
    return text


class EnrollmentMode(StrEnum):
    """Who may enroll just in time, once certificate and signature are proven."""

    OPEN = "open"
    ALLOW_LIST = "allow_list"
    APPROVAL = "approval"


class IdentifierSource(StrEnum):
    """The certificate field that names the device within its product."""

    CN = "cn"
    SERIAL_NUMBER = "serial_number"
    SAN_URI = "san_uri"
    SAN_DNS = "san_dns"


class CohortRule(BaseModel):
    """Puts a device in a cohort where everything it names matches; names nothing: matches every device.

    Patterns are shell globs, matched whole and with case. Exactly one of `cohort` and `split` is given;
    `split` divides by weight, stably: the same device always falls into the same part.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    authority: str | None = Field(None, description="name of the registered CA")
    certificate: dict[str, str] = Field(default_factory=dict, description="certificate field → pattern")
    hardware: dict[str, str] = Field(default_factory=dict, description="model or revision → pattern")
    attributes: dict[str, str] = Field(default_factory=dict, description="reported attribute → pattern")
    cohort: str | None = Field(None, description="name of the cohort")
    split: dict[str, Annotated[int, Field(ge=0, le=1_000_000)]] = Field(
        default_factory=dict, description="cohort name → weight"
    )

    @model_validator(mode="after")
    def _one_target(self) -> "CohortRule":
        if (self.cohort is None) == (not self.split):
            raise ValueError("give exactly one of cohort and split")
        if self.split and not sum(self.split.values()):
            raise ValueError("the weights of a split must not all be 0")
        unknown = set(self.hardware) - {"model", "revision"}
        if unknown:
            raise ValueError(f"hardware knows model and revision, got {sorted(unknown)}")
        fields = {"cn", "serial_number", "o", "ou", "san_uri", "san_dns"}
        if set(self.certificate) - fields:
            raise ValueError(
                f"certificate knows {sorted(fields)}, got {sorted(set(self.certificate) - fields)}"
            )
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The cohorts that this rule may choose."""
        return (self.cohort,) if self.cohort is not None else tuple(self.split)


class JitpSettings(BaseModel):
    """How a product enrolls devices that it has never seen. Everything works at its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(False, description="whether unknown devices enroll at all")
    mode: EnrollmentMode = EnrollmentMode.OPEN
    identifier_source: IdentifierSource = IdentifierSource.CN
    identifier_pattern: str | None = Field(
        None, max_length=256, description="regular expression that the whole identifier must match"
    )
    allow_list: frozenset[str] = Field(
        default_factory=frozenset, description="identifiers, for mode allow_list"
    )
    quota: int | None = Field(
        None, ge=0, description="most devices ever enrolled just in time; none: no limit"
    )
    tags: tuple[Tag, ...] = Field((), max_length=32, description="given to every device that enrolls")
    cohort_rules: tuple[CohortRule, ...] = Field(
        (), max_length=64, description="the first that matches decides"
    )
    default_cohort: str | None = Field(None, description="where no rule matches")

    @field_validator("identifier_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One kind of device."""

    id: ProductId
    organization_id: OrganizationId
    name: str
    description: str
    created_at: datetime
    tags: tuple[str, ...] = ()
    notes: str = ""
    jitp: JitpSettings = field(default_factory=JitpSettings)
    enrolled: int = 0
    support_until: datetime | None = None
    archived_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """A named segment of a product's devices."""

    id: CohortId
    product_id: ProductId
    name: str
    description: str
    created_at: datetime


def parse_jitp(settings: object) -> JitpSettings:
    """JITP settings from a JSON object.

    Raises:
        InvalidError: naming the first field that is wrong.
    """
    try:
        return JitpSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "jitp"
        raise InvalidError(f"JITP settings, {place}: {first['msg']}", field=place) from error


def check_cohorts(settings: JitpSettings, cohorts: frozenset[str]) -> None:
    """Refuses settings that name a cohort the product does not have.

    Raises:
        InvalidError: naming the cohort and those that there are.
    """
    named = {name for rule in settings.cohort_rules for name in rule.targets}
    if settings.default_cohort is not None:
        named.add(settings.default_cohort)
    missing = sorted(named - cohorts)
    if missing:
        raise InvalidError(
            f"cohort {missing[0]!r} is not there; the product has {', '.join(sorted(cohorts)) or 'none'}",
            field="jitp",
        )

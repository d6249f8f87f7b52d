"""Which cohort a new device stands in: rules in order, a stable weighted split, or the default."""

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Final

from provisioning.certificates import CertificateFacts
from provisioning.decision import Rule
from provisioning.ids import CohortId, ProductId
from provisioning.messages import Hello
from provisioning.products import CohortRule, JitpSettings

_SPACE: Final = 1 << 64


def place_of(product_id: ProductId, identifier: str) -> float:
    """A device's place in 0–1 (1 excluded): the same for ever, spread evenly by SHA-256."""
    digest = hashlib.sha256(f"{product_id}\n{identifier}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / _SPACE


def choose_part(split: Mapping[str, int], place: float) -> str:
    """The part of a weighted split that holds `place`.

    Parts lie side by side in the order given, so raising the first one's weight only moves devices into it.

    Args:
        split: name → weight, at least one above 0.
        place: 0–1.
    """
    total = sum(split.values())
    edge = 0
    chosen = ""
    for name, weight in split.items():
        if not weight:
            continue
        chosen = name
        edge += weight
        if place * total < edge:
            break
    return chosen


def decide_cohort(
    settings: JitpSettings,
    *,
    product_id: ProductId,
    identifier: str,
    certificate: CertificateFacts,
    authority: str,
    hello: Hello | None,
    cohorts: Mapping[str, CohortId],
) -> tuple[CohortId | None, list[Rule]]:
    """The cohort, and the rule that chose it. In a dry run `hello` is None: no rule that needs it matches."""
    for number, rule in enumerate(settings.cohort_rules, start=1):
        if not _matches(rule, certificate, authority, hello):
            continue
        if rule.cohort is not None:
            name, how = rule.cohort, f"rule {number} matches"
        else:
            place = place_of(product_id, identifier)
            name, how = choose_part(rule.split, place), f"rule {number} splits, this device at {place:.3f}"
        return cohorts.get(name), [Rule(name="cohort", passed=True, detail=f"{name}: {how}")]
    if settings.default_cohort is not None:
        detail = f"{settings.default_cohort}: the default"
        return cohorts.get(settings.default_cohort), [Rule(name="cohort", passed=True, detail=detail)]
    return None, [Rule(name="cohort", passed=True, detail="none: no rule matches and there is no default")]


def _matches(rule: CohortRule, certificate: CertificateFacts, authority: str, hello: Hello | None) -> bool:
    if rule.authority is not None and rule.authority != authority:
        return False
    for name, pattern in rule.certificate.items():
        value = certificate.field(name)
        if value is None or not fnmatchcase(value, pattern):
            return False
    if rule.hardware:
        if hello is None:
            return False
        reported = {"model": hello.hardware.model, "revision": hello.hardware.revision}
        if not all(fnmatchcase(reported[name], pattern) for name, pattern in rule.hardware.items()):
            return False
    if rule.attributes:
        if hello is None:
            return False
        for name, pattern in rule.attributes.items():
            reported_value = hello.attributes.get(name)
            if reported_value is None or not fnmatchcase(str(reported_value), pattern):
                return False
    return True

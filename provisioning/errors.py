"""Every error Fleetgate raises on purpose, under one root, and every reason word it gives to a device.

A `RejectReason` is a stable word of the protocol: each has a section in `docs/errors.md`, and a test holds
the two together. Devices learn the word; operators learn `detail` too, which says what was expected, what
was found, and of which object.
"""

from enum import StrEnum


class RejectReason(StrEnum):
    """Why a message was not simply accepted. Words are never renamed and never reused."""

    # Before anything is proven: the message itself.
    MESSAGE_TOO_LARGE = "message_too_large"
    MALFORMED_JSON = "malformed_json"
    MALFORMED_ENVELOPE = "malformed_envelope"
    MALFORMED_MESSAGE = "malformed_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    WRONG_AUDIENCE = "wrong_audience"
    WRONG_TOPIC = "wrong_topic"
    RATE_LIMITED = "rate_limited"
    # The certificate, its chain, and the signature.
    CHAIN_REQUIRED = "chain_required"
    MALFORMED_CERTIFICATE = "malformed_certificate"
    CERTIFICATE_PROFILE = "certificate_profile"
    KEY_NOT_ALLOWED = "key_not_allowed"
    CERTIFICATE_NAME = "certificate_name"
    UNKNOWN_CA = "unknown_ca"
    CHAIN_INVALID = "chain_invalid"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CA_EXPIRED = "ca_expired"
    CA_NOT_ACTIVE = "ca_not_active"
    CA_REVOKED = "ca_revoked"
    KEY_REVOKED = "key_revoked"
    KEY_MISMATCH = "key_mismatch"
    BAD_SIGNATURE = "bad_signature"
    # Freshness: answered with a challenge, never with a refusal.
    CLOCK_OFF = "clock_off"
    NOT_FRESH = "not_fresh"
    CHALLENGE_INVALID = "challenge_invalid"
    # Enrollment.
    KEY_IN_OTHER_PRODUCT = "key_in_other_product"
    DEVICE_BLOCKED = "device_blocked"
    DEVICE_RETIRED = "device_retired"
    DEVICE_QUARANTINED = "device_quarantined"
    KEY_CHANGE_UNPROVEN = "key_change_unproven"
    PRODUCT_ARCHIVED = "product_archived"
    CA_RETIRING = "ca_retiring"
    JITP_DISABLED = "jitp_disabled"
    NOT_ON_ALLOW_LIST = "not_on_allow_list"
    APPROVAL_REQUIRED = "approval_required"
    IDENTIFIER_MISSING = "identifier_missing"
    IDENTIFIER_PATTERN = "identifier_pattern"
    IDENTIFIER_CHANGED = "identifier_changed"
    QUOTA_EXHAUSTED = "quota_exhausted"
    TOPIC_NAME_TAKEN = "topic_name_taken"
    # Bundles: operators alone learn these.
    BUNDLE_MALFORMED = "bundle_malformed"
    BUNDLE_UNSIGNED = "bundle_unsigned"
    SIGNING_KEY_UNKNOWN = "signing_key_unknown"
    SIGNING_KEY_FOREIGN = "signing_key_foreign"
    SIGNING_KEY_REVOKED = "signing_key_revoked"
    BUNDLE_PRODUCT = "bundle_product"
    BUNDLE_EXISTS = "bundle_exists"
    BUNDLE_SEQ = "bundle_seq"
    ARTIFACT_MISMATCH = "artifact_mismatch"
    ARTIFACT_MISSING = "artifact_missing"
    # Addresses of artifacts.
    URL_MALFORMED = "url_malformed"
    URL_FORGED = "url_forged"
    URL_EXPIRED = "url_expired"
    URL_FOREIGN = "url_foreign"
    URL_WITHDRAWN = "url_withdrawn"
    # Ours, not the device's.
    INTERNAL_ERROR = "internal_error"


class FleetgateError(Exception):
    """The root. Nothing raw (ValueError, SQLAlchemy, binascii) crosses a package's border."""


class MessageError(FleetgateError):
    """A message that cannot be read as protocol v1 says.

    `reason` is the word for the device, `detail` the sentence for the operator; `detail` may quote the
    message only by position and type, never by its content, because nothing here is proven yet.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class VerificationError(FleetgateError):
    """A certificate, chain or signature that does not prove what it must."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class InvalidError(FleetgateError):
    """An operator's input that breaks a rule; `field` names it where one field is to blame."""

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class TransitionError(FleetgateError):
    """A state change that the object's life does not have (`revoked` → `active`)."""


class ConflictError(FleetgateError):
    """What was asked for collides with what is there: a name taken, a key registered."""


class TooManyError(FleetgateError):
    """Too much of it at once; the message says what ends first."""


class NotFoundError(FleetgateError):
    """No such object in the caller's scope (another's object is not found either)."""


class AccessError(FleetgateError):
    """The caller may not do that."""


class UnknownKeyError(AccessError):
    """No API key was sent, or one that is unknown, expired or revoked."""


class StoreError(FleetgateError):
    """The database or the blob store failed; the message says which and what to do."""


class SetupError(FleetgateError):
    """The installation is incomplete or in use; the message says what to do next."""

"""The names of things, as types: a product's number cannot stand where a device's belongs.

Numbers are 63-bit integers made by the caller (`store.ids.IdSource`), so that a whole batch of rows can be
written without asking the database for each. On JSON they travel as strings, because JavaScript loses
integers above 2**53.
"""

from typing import NewType

OrganizationId = NewType("OrganizationId", int)
ProductId = NewType("ProductId", int)
CohortId = NewType("CohortId", int)
DeviceId = NewType("DeviceId", int)
CredentialId = NewType("CredentialId", int)
AuthorityId = NewType("AuthorityId", int)

KeyId = NewType("KeyId", str)
"""SHA-256 of a DER SubjectPublicKeyInfo, 64 lower-case hex digits (protocol, section 2)."""

Fingerprint = NewType("Fingerprint", str)
"""SHA-256 of a whole DER certificate, 64 lower-case hex digits."""

TopicName = NewType("TopicName", str)
"""A device's address on the broker: its certificate's CN, checked against `topics.TOPIC_NAME_PATTERN`."""

SigningKeyId = NewType("SigningKeyId", int)
BundleId = NewType("BundleId", int)
RolloutId = NewType("RolloutId", int)
OverrideId = NewType("OverrideId", int)
AttemptId = NewType("AttemptId", int)

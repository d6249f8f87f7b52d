"""Commands on signing keys, artifacts and bundles."""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization

from gateway.operations.desk import Desk
from provisioning.access import Principal, Role, check_role
from provisioning.bundles import Bundle, PushDecision, check_bundle_key, decide_push
from provisioning.envelope import check_signing_key, key_id_of, spki_of
from provisioning.errors import ConflictError, InvalidError, SetupError, VerificationError
from provisioning.ids import BundleId, ProductId, SigningKeyId
from provisioning.products import parse_name
from store import artifacts, bundles, products, signing_keys
from store.blobs import Upload
from store.signing_keys import SigningKey


class RefusedBundleError(ConflictError):
    """A bundle that is not taken in; the decision has the rules."""

    def __init__(self, decision: PushDecision) -> None:
        rule = decision.refused
        assert rule is not None
        super().__init__(rule.detail)
        self.decision = decision
        self.reason = rule.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A bundle as the gateway has it; `created` is False where it was there already."""

    bundle: Bundle
    created: bool


def add_key(desk: Desk, principal: Principal, *, product: str, name: str, pem: str) -> SigningKey:
    """Lets a public key sign a product's bundles. Repeating it under the same name changes nothing.

    Raises:
        InvalidError: it is no public key in PEM, or of a kind that signs no bundles.
        ConflictError: the name or the key is taken.
    """
    if "PRIVATE KEY" in pem:
        raise InvalidError("this is a private key: it never leaves your machine; send FILE.pub", field="key")
    try:
        key = check_signing_key(serialization.load_pem_public_key(pem.encode()))
        check_bundle_key(key)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"this is not a public key in PEM: {error}", field="key") from error
    except VerificationError as error:
        raise InvalidError(error.detail, field="key") from error
    try:
        with desk.database.write() as tx:
            owner = products.load(tx, principal.organization_id, product)
            made = SigningKey(
                id=SigningKeyId(desk.new_id()),
                product_id=owner.id,
                name=parse_name(name, "signing key"),
                key_id=key_id_of(key),
                spki=spki_of(key),
                created_at=desk.clock(),
            )
            for known in signing_keys.list_all(tx, owner.id):
                if (known.name, known.key_id, known.revoked_at) == (made.name, made.key_id, None):
                    return known
            signing_keys.create(tx, made)
            after = {"product": product, "name": name, "key_id": made.key_id}
            desk.note(tx, principal, "signing_key.add", made.id, after=after)
    except ConflictError as error:
        raise ConflictError(
            f"product {product!r} has a signing key {name!r}, or this key, already"
        ) from error
    return made


def list_keys(desk: Desk, principal: Principal, product: str) -> list[SigningKey]:
    """A product's signing keys."""
    with desk.database.read() as tx:
        return signing_keys.list_all(tx, products.load(tx, principal.organization_id, product).id)


def revoke_key(desk: Desk, principal: Principal, *, product: str, name: str) -> SigningKey:
    """Lets a key sign no further bundles; those that it signed stay."""
    with desk.database.write() as tx:
        owner = products.load(tx, principal.organization_id, product)
        key = signing_keys.load(tx, owner.id, name)
        if key.revoked_at is None:
            signing_keys.revoke(tx, key.id, desk.clock())
            desk.note(tx, principal, "signing_key.revoke", key.id, after={"product": product, "name": name})
        return signing_keys.load(tx, owner.id, name)


def begin_upload(desk: Desk, principal: Principal, product: str) -> tuple[ProductId, Upload]:
    """Where the bytes of an artifact go; finish with `finish_upload`.

    Raises:
        NotFoundError: there is no such product.
    """
    check_role(principal, Role.OPERATOR)
    if desk.blobs is None:
        raise SetupError("this worker has no blob store")
    with desk.database.read() as tx:
        return products.load(tx, principal.organization_id, product).id, desk.blobs.upload()


def finish_upload(
    desk: Desk, principal: Principal, product_id: ProductId, upload: Upload, sha256: str
) -> None:
    """Takes an artifact in once its bytes are what its address says.

    Raises:
        InvalidError: they are not, or there are none.
        ConflictError: the same artifact is just being removed, since no bundle came to use it.
    """
    if upload.size == 0:
        raise InvalidError("an artifact must not be empty", field="body")
    try:
        upload.verify(sha256)
    except VerificationError as error:
        raise InvalidError(f"{error.reason}: {error.detail}", field="sha256") from error
    with desk.database.write([artifacts.lock(sha256)]) as tx:
        artifacts.begin(tx, desk.new_id(), product_id, sha256)
    upload.finish(sha256)  # outside of any transaction: an object store may take its time
    with desk.database.write([artifacts.lock(sha256)]) as tx:
        number = artifacts.complete(tx, product_id, sha256, upload.size)
        desk.note(tx, principal, "artifact.push", number, after={"sha256": sha256, "size": upload.size})


def check(desk: Desk, principal: Principal, product: str, envelope: bytes) -> PushDecision:
    """What would come of pushing a bundle, and which artifacts are missing; changes nothing."""
    with desk.database.read() as tx:
        owner = products.load(tx, principal.organization_id, product)
        return decide_push(envelope, bundles.load_push_facts(tx, owner))


def push(desk: Desk, principal: Principal, product: str, envelope: bytes) -> Pushed:
    """Takes a bundle in. The very same one again changes nothing.

    Raises:
        RefusedBundleError: a rule refuses it, or an artifact is not here yet.
    """
    with desk.database.read() as tx:
        number = products.load(tx, principal.organization_id, product).id
    with desk.database.write([artifacts.push_lock(number)]) as tx:
        owner = products.load(tx, principal.organization_id, product)
        decision = decide_push(envelope, bundles.load_push_facts(tx, owner))
        if decision.refused is not None:
            raise RefusedBundleError(decision)
        assert decision.statement is not None
        assert decision.key_id is not None
        if decision.known:
            return Pushed(bundle=bundles.load(tx, owner, decision.statement.version), created=False)
        bundle = Bundle(
            id=BundleId(desk.new_id()),
            product_id=owner.id,
            digest=decision.digest,
            envelope=envelope,
            statement=decision.statement,
        )
        bundles.create(tx, bundle, decision.key_id, desk.clock())
        after = {"product": product, "version": bundle.version, "bundle_seq": bundle.bundle_seq}
        desk.note(tx, principal, "bundle.push", bundle.id, after={**after, "digest": bundle.digest})
    return Pushed(bundle=bundle, created=True)


def list_all(desk: Desk, principal: Principal, product: str) -> Sequence[Bundle]:
    """A product's bundles, the newest first."""
    with desk.database.read() as tx:
        return bundles.list_all(tx, products.load(tx, principal.organization_id, product).id)


def load(desk: Desk, principal: Principal, product: str, version: str) -> Bundle:
    """One bundle."""
    with desk.database.read() as tx:
        return bundles.load(tx, products.load(tx, principal.organization_id, product), version)

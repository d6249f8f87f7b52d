"""Wycheproof: signatures that clever people broke, against the one function that verifies ours."""

from typing import Any

import pytest

from provisioning.envelope import load_spki, verify_signature
from provisioning.errors import VerificationError


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Wycheproof P-256", "wycheproof-ecdsa_secp256r1_sha256_test.json"),
        ("Wycheproof Ed25519", "wycheproof-ed25519_test.json"),
    ],
)
def test_outcomes(vectors: Any, name: str, file: str) -> None:
    wrong: list[str] = []
    count = 0
    for group in vectors.load(file)["testGroups"]:
        key = load_spki(bytes.fromhex(group["publicKeyDer"]))
        for test in group["tests"]:
            count += 1
            try:
                verify_signature(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
                valid = True
            except VerificationError:
                valid = False
            # "acceptable" ones may go either way; there are none in these files.
            if valid is not (test["result"] == "valid"):
                wrong.append(f"{test['tcId']} {test['comment']}: expected {test['result']}")
    vectors.ran(name, count)
    assert wrong == []
    assert count > 100

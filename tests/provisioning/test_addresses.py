"""Addresses of artifacts: made for one device and one artifact, good for a while, and for nobody who guesses."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW

from provisioning.downloads import check_token, make_token
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import DeviceId

KEY, OLD, OTHER = b"k" * 32, b"o" * 32, b"x" * 32
DIGEST, ANOTHER = "ab" * 32, "cd" * 32
DEVICE = DeviceId(252116099483605972)
UNTIL = NOW + timedelta(hours=1)
TOKEN = make_token(KEY, DEVICE, DIGEST, UNTIL)


def refusal(token: str, sha256: str = DIGEST, keys: tuple[bytes, ...] = (KEY,), **more: int) -> RejectReason:
    with pytest.raises(VerificationError) as caught:
        check_token(keys, token, sha256, NOW + timedelta(**more))
    return caught.value.reason


def test_an_address_names_its_device_until_it_expires() -> None:
    assert check_token([KEY], TOKEN, DIGEST, NOW) == DEVICE
    assert check_token([KEY], TOKEN, DIGEST, UNTIL) == DEVICE
    assert refusal(TOKEN, seconds=3601) is RejectReason.URL_EXPIRED


def test_during_a_rotation_both_keys_are_good() -> None:
    old = make_token(OLD, DEVICE, DIGEST, UNTIL)
    assert check_token([KEY, OLD], old, DIGEST, NOW) == DEVICE
    assert refusal(old) is RejectReason.URL_FORGED


def test_another_artifact_and_another_key_are_told_apart() -> None:
    assert refusal(TOKEN, ANOTHER) is RejectReason.URL_FOREIGN
    assert refusal(make_token(OTHER, DEVICE, DIGEST, UNTIL)) is RejectReason.URL_FORGED


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "A", TOKEN + "=", "?" * len(TOKEN), "é" * 8])
def test_what_the_gateway_never_makes_is_malformed(token: str) -> None:
    assert refusal(token) is RejectReason.URL_MALFORMED


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(ALPHABET))
def test_no_character_can_be_changed(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    if changed != TOKEN:
        assert refusal(changed) in (
            RejectReason.URL_MALFORMED,
            RejectReason.URL_FORGED,
            RejectReason.URL_FOREIGN,
        )


@given(st.text(max_size=80))
def test_no_text_raises_anything_but_our_own(token: str) -> None:
    if token != TOKEN:
        refusal(token)

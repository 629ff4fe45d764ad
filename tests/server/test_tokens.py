from __future__ import annotations

import time

import jwt
import pytest
from monailabel.config import settings
from monailabel.endpoints.user import auth

from ssmsam.server.monailabel_patches import accept_signed_tokens

rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

CLAIMS = {"preferred_username": "reader-a", "realm_access": {"roles": ["monailabel-user"]}}


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> rsa.RSAPrivateKey:
    """The realm's key; MONAI Label is asked to check tokens with its public half."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    monkeypatch.setattr(auth, "get_public_key", lambda realm: private.public_key().public_bytes(*form).decode())
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "jwt", jwt)  # put back afterwards
    accept_signed_tokens()
    return private


def test_a_signed_token_is_accepted(key: rsa.RSAPrivateKey) -> None:
    user = auth.from_token(jwt.encode(CLAIMS, key, algorithm="RS256"))
    assert (user.username, user.roles) == ("reader-a", ["monailabel-user"])


def test_others_are_not(key: rsa.RSAPrivateKey) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    tokens = [
        jwt.encode(CLAIMS, stranger, algorithm="RS256"),
        jwt.encode(CLAIMS | {"exp": time.time() - 60}, key, algorithm="RS256"),
        jwt.encode(CLAIMS, "x" * 64, algorithm="HS256"),
        jwt.encode(CLAIMS, "", algorithm="none"),
        "no token",
    ]
    for token in tokens:
        with pytest.raises(jwt.InvalidTokenError):
            auth.from_token(token)

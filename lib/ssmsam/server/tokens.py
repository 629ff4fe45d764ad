"""Access tokens (``MONAI_LABEL_AUTH_ENABLE``): MONAI Label does not say which signatures it accepts.

PyJWT refuses to check a token without such a list, so every valid token would be turned away.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jwt
from monailabel.endpoints.user import auth

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
"""Those that fit the realm's public RSA key. Never one with a shared secret: the public key would be that secret."""


def accept_signed_tokens() -> None:
    """Let MONAI Label check tokens signed with the realm's key."""
    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=ALGORITHMS))

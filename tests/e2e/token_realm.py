"""The realm of an OpenID provider: its public key, where tokens are handed out, and one user with a password."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

REALM = "/realms/hospital"


class TokenRealm:
    """Runs until closed. Hands out a token with ``roles`` to whoever knows the ``password``."""

    def __init__(self, *, password: str, roles: tuple[str, ...]) -> None:
        self.password, self.roles = password, roles
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        handler = type("Handler", (_Handler,), {"realm": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{REALM}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, *roles: str, **claims: Any) -> str:
        """Signed with the realm's key."""
        said = {"preferred_username": "reader-a", "realm_access": {"roles": list(roles)}, **claims}
        return jwt.encode(said, self._key, algorithm="RS256")

    @property
    def description(self) -> dict[str, str]:
        public = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"realm": "hospital", "public_key": base64.b64encode(public).decode()}


class _Handler(BaseHTTPRequestHandler):
    realm: TokenRealm

    def do_GET(self) -> None:
        if self.path == f"{REALM}/.well-known/openid-configuration":
            self._answer({"token_endpoint": f"{self.realm.url}/token"})
        else:
            self._answer(self.realm.description)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form.get("password") == [self.realm.password]:
            self._answer({"access_token": self.realm.token(*self.realm.roles), "token_type": "Bearer"})
        else:
            self._answer({"error": "invalid_grant"}, status=401)

    def _answer(self, content: dict[str, str], *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return

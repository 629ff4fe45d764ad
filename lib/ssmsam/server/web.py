"""The web application round the app: routes, error handlers, middleware."""

from __future__ import annotations

from monailabel.app import app as web
from monailabel.config import settings

from ssmsam.server import monailabel_patches as patches
from ssmsam.server.app import ServerApp
from ssmsam.server.errors import install_handlers
from ssmsam.server.exposure import Compression, SameSite
from ssmsam.server.openapi import describe
from ssmsam.server.page import routes as page
from ssmsam.server.routes import ROUTERS
from ssmsam.service.warmup import WarmUp


class WebApp(ServerApp):
    """A server's app that answers over the web."""

    def on_init_complete(self) -> None:
        """The server is about to answer: mend its routes, and warm up meanwhile."""
        super().on_init_complete()
        patches.keep_sessions_private(self.sessions())
        patches.unseal(web)
        patches.replace_routes(web, (*ROUTERS, page.router, page.studies))
        patches.extend_openapi(web, describe)
        web.add_middleware(Compression)
        origins = tuple(str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS or ())
        if not origins:
            patches.forbid_other_sites(web)
        web.add_middleware(SameSite, origins=origins)
        install_handlers(web)
        patches.accept_signed_tokens()
        self.warm_up = WarmUp(encoder=self.encoder, decoder=self.decoder)
        self.warm_up.start()

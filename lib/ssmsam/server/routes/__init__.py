"""The routes of this server. Plain functions run in threads; what they are given is checked before it is passed on."""

from ssmsam.server.routes import (
    administration,
    checkpoints,
    datastore,
    inference,
    jobs,
    pages,
    proxy,
    sessions,
    studies,
)

ROUTERS = (
    administration.router,
    checkpoints.router,
    datastore.router,
    datastore.slices,
    inference.router,
    jobs.router,
    pages.router,
    proxy.router,
    sessions.router,
    studies.router,
)

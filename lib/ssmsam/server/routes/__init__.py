"""The routes of this server. Plain functions run in threads; what they are given is checked before it is passed on."""

from ssmsam.server.routes import (
    cache,
    heads,
    inference,
    jobs,
    logs,
    proxied,
    reference,
    sessions,
    slices,
    starts,
    studies,
    tasks,
    viewer,
)

ROUTERS = (
    cache.router,
    heads.router,
    inference.router,
    jobs.router,
    logs.router,
    tasks.router,
    studies.router,
    slices.router,
    sessions.router,
    starts.router,
    proxied.router,
    viewer.router,
    reference.router,
)

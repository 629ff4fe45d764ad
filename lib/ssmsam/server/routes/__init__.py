"""The routes of this server. Plain functions run in threads; what they are given is checked before it is passed on."""

from ssmsam.server.routes import (
    administration,
    checkpoints,
    datastore,
    inference,
    jobs,
    page,
    proxy,
    sessions,
    studies,
    tasks,
    viewer,
)

ROUTERS = (
    administration.cached_data,
    checkpoints.router,
    jobs.cohort,
    inference.router,
    jobs.router,
    administration.router,
    tasks.router,
    datastore.router,
    datastore.slices,
    sessions.router,
    proxy.router,
    viewer.router,
    viewer.reference,
    page.router,
    studies.router,
)

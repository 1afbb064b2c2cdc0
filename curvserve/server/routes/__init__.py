"""The calls of the API, one file for each noun."""

from fastapi import APIRouter

from . import (
    backup,
    checkpoints,
    compute,
    halves,
    history,
    metrics,
    models,
    page,
    parameters,
    probes,
    sessions,
)

ROUTERS: tuple[APIRouter, ...] = (
    compute.router,  # first, because a path is looked for in this order
    halves.router,
    parameters.router,
    probes.router,
    metrics.router,
    models.router,
    sessions.router,
    checkpoints.router,
    history.router,
    backup.router,
    page.router,
)
"""Every router of the application."""

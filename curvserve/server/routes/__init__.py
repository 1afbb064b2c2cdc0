"""The calls of the API, one file for each noun."""

from fastapi import APIRouter

from . import checkpoints, compute, halves, history, metrics, models, parameters, probes, sessions

ROUTERS: tuple[APIRouter, ...] = (
    probes.router,
    metrics.router,
    models.router,
    sessions.router,
    parameters.router,
    compute.router,
    halves.router,
    checkpoints.router,
    history.router,
)
"""Every router of the application."""

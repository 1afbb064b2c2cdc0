"""Metrics, for Prometheus to scrape."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from ..context import InContext

router = APIRouter(tags=["probes"])


@router.get(
    "/metrics",
    summary="Metrics in Prometheus's text format",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(context: InContext) -> Response:
    """Return counts, histograms and the state of every session."""
    answer = Response(context.metrics.exposition())
    answer.headers["content-type"] = CONTENT_TYPE_PLAIN_0_0_4
    return answer

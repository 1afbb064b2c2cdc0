"""The deployment's files, read."""

import inspect
import re
from pathlib import Path
from typing import Any

import yaml

from curvserve.cli.serve import serve
from curvserve.server.limits import Limits
from curvserve.server.run import LAST_ANSWERS
from tests.server.process import ROOT

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
COMPOSE_CPU = DOCKER / "compose.cpu.yaml"
COMPOSE_RAY = DOCKER / "compose.ray.yaml"
DOCKERFILE = DOCKER / "Dockerfile"

OPTIONS = {f"CURVSERVE_{name.upper()}" for name in inspect.signature(serve).parameters}
"""The variables that `curvserve serve` reads."""


def read(path: Path) -> Any:
    """Return what a YAML file holds."""
    return yaml.safe_load(path.read_text())


def seconds(duration: str) -> float:
    """Return a duration as compose writes it."""
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match and duration
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def time_to_stop(environment: dict[str, str]) -> float:
    """Return the seconds that a server with these variables may take to stop."""
    notice = environment.get("CURVSERVE_NOTICE_SECONDS", Limits.notice_seconds)
    shutdown = environment.get("CURVSERVE_SHUTDOWN_SECONDS", Limits.shutdown_seconds)
    return float(notice) + float(shutdown) + LAST_ANSWERS

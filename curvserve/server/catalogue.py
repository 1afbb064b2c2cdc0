"""What is told of each model that is served."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from curvserve_client.types import ModelSpec, ParameterSpec

from ..models import Model, check
from ..sessions import Executor

log = logging.getLogger("curvserve.models")


class Catalogue:
    """The specifications of models that have been checked.

    Which quantities each has is computed by the executor, as the first of its work.
    """

    def __init__(
        self, models: Mapping[str, Model], devices: Mapping[str, torch.device], executor: Executor
    ) -> None:
        """Check the models.

        Args:
            models: name -> recipe.
            devices: name -> where it is computed.
            executor: who will compute.

        Raises:
            ModelUnfit: one does not work.
        """
        self._models = models
        self._devices = devices
        self._executor = executor
        self._parameters = {
            # what workers have need not be here
            name: _parameters(model, torch.device("cpu") if executor.lends else devices[name])
            for name, model in models.items()
        }
        self._found: dict[str, asyncio.Task[ModelSpec]] = {}

    def begin(self) -> None:
        """Begin to find out which quantities the models have."""
        self._found = {
            name: asyncio.create_task(self._specification(name)) for name in self._models
        }

    async def describe(self, model: str) -> ModelSpec:
        """Return a model's specification; waits until it is known."""
        return await asyncio.shield(self._found[model])  # a caller that leaves must not end it

    async def describe_all(self) -> list[ModelSpec]:
        """Return all of them."""
        return [await self.describe(model) for model in self._models]

    async def finish(self, seconds: float) -> None:
        """Wait for what has begun, so many seconds at most."""
        if self._found:
            await asyncio.wait(self._found.values(), timeout=seconds)

    async def _specification(self, name: str) -> ModelSpec:
        support = await self._executor.support(name)
        if support.refused:
            log.warning("model %s: %s", name, support)
        model = self._models[name]
        return ModelSpec(
            name=name,
            parameters=self._parameters[name],
            inputs=model.inputs.describe(),
            targets=model.targets.describe(),
            loss=type(model.loss()).__name__,
            metrics=tuple(model.metrics),
            quantities=support.quantities,
            refused=support.refused,
            max_batch=model.max_batch,
            device=str(self._devices[name]),
        )


def _parameters(model: Model, device: torch.device) -> dict[str, ParameterSpec]:
    # in a thread that ends: OpenMP keeps workers for each that has computed, and where there are
    # more of them than cores, those of the compute thread sleep between any two operations
    with ThreadPoolExecutor(1) as thread:
        network, _ = thread.submit(check, model, device).result()
    return {name: ParameterSpec.of(parameter) for name, parameter in network.named_parameters()}

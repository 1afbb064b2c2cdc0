"""Programs as CUDA graphs: all kernels of an evaluation, launched in one go.

Of a small net's pass on a GPU most is the time in which Python launches one kernel after the other.
A graph launches the same ones by itself, with the same arguments in the same memory. So what a
program is given is copied to a place of the graph's own before, and what it returns is copied from
there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.weak import WeakIdKeyDictionary

from curvserve.engine.programs import ALL, Rest, Way, layout
from curvserve.engine.storages import Storages
from curvserve.engine.traced import is_mask, is_random

__all__ = ["Captured", "CudaGraphs", "Recorder", "obstacle"]

_WARM_UPS = 3
"""As torch's documentation has it: libraries choose kernels and take workspaces in these."""

_META = torch.device("meta")
"""Where the values of operations lie that were put into a program; they move what others made."""

_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_PUTS = (_aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_WAITING = ("linalg_", "_linalg_", "cholesky", "geqrf", "ormqr", "_ctc_loss")
"""How operations are called that ask the GPU how they fared, or how long something is."""


class Recorder(ABC):
    """Records what functions launch. What is recorded must not run at the same time."""

    def __init__(self) -> None:
        """Records nothing yet."""
        self._places = WeakIdKeyDictionary()

    def place(self, tensor: Tensor) -> Tensor:
        """Where a tensor that others may give other memory lies for all that is recorded.

        Args:
            tensor: A parameter, say; its values are copied there at first.
        """
        place: Tensor | None = self._places.get(tensor)
        if place is None or layout(place) != layout(tensor):
            place = self._places[tensor] = tensor.detach().clone()
        return place

    @abstractmethod
    def record(
        self, run: Callable[[], list[Tensor]], device: torch.device
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """Runs a function without arguments.

        Args:
            run: The function.
            device: What it computes on.

        Returns:
            Its results, and what does the same again, and writes over them.
        """


class CudaGraphs(Recorder):
    """Records CUDA graphs that share the memory between their results.

    All are one thread's. What one has returned is another's to write over, unless it is held:
    :class:`Captured` does that.
    """

    def __init__(self) -> None:
        """Records nothing yet."""
        super().__init__()
        self._alive: WeakKeyDictionary[torch.cuda.CUDAGraph, torch.device] = WeakKeyDictionary()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def record(
        self, run: Callable[[], list[Tensor]], device: torch.device
    ) -> tuple[list[Tensor], Callable[[], None]]:
        """See the base class."""
        with torch.cuda.device(device):
            # one for all: memory is used again on the stream where it was used
            stream = self._streams.setdefault(device, torch.cuda.Stream())
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            others = (graph for graph, where in self._alive.items() if where == device)
            pool = next((graph.pool() for graph in others), None) or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                # other threads may go on with what is theirs
                with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                    results = run()
            except Exception:  # whatever it is, it goes on
                _let_go(pool, stream)
                raise
        self._alive[graph] = device

        def again() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return results, again


def _let_go(pool: Any, stream: torch.cuda.Stream) -> None:
    """Does what torch 2.11 leaves undone where a recording fails."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # where a later one has done it
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    # its generator takes itself to be recording until something has been recorded
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros((), device="cuda")


class Captured:
    """A program that a GPU runs by itself."""

    def __init__(
        self, program: GraphModule, arguments: Sequence[Tensor], recorder: Recorder
    ) -> None:
        """Records the program.

        Args:
            program: Nothing of :func:`obstacle` stands against it.
            arguments: What it takes at the first time, later ones of the same shapes and types.
            recorder: What records it.
        """
        given = {name: _attribute(program, name) for name in _constants(program)}
        moved = [name for name in given if given[name].device == arguments[0].device]
        own = given | {name: recorder.place(given[name]) for name in moved}
        places = [argument.clone() for argument in arguments]
        written = Storages(program.graph).written
        changed = {node.target for node in written if node.op == "get_attr"}
        runner = GraphModule(own, program.graph)
        self._results, self._again = recorder.record(lambda: runner(*places), arguments[0].device)
        self._constants = [given[name] for name in moved]
        self._copy_in = _Copies([*places, *(own[name] for name in moved)])
        self._changed = [(given[name], own[name]) for name in moved if name in changed]
        self._copy_out = _Copies(self._results)

    def begin(self, *arguments: Tensor) -> tuple[Way, Rest]:
        """See :class:`curvserve.engine.programs.Operations`."""

        def rest() -> list[Tensor]:
            self._copy_in.fill([*arguments, *self._constants])
            self._again()
            for outside, inside in self._changed:
                outside.copy_(inside)
            return self._copy_out.taken()

        return ALL, rest


class _Copies:
    """Tensors that are copied to, or from, all at once."""

    def __init__(self, places: Sequence[Tensor]) -> None:
        """Sorts them by type: one kernel copies what is of one."""
        self._places = list(places)
        self._groups = [
            [i for i, place in enumerate(places) if place.dtype == dtype]
            for dtype in dict.fromkeys(place.dtype for place in places)
        ]

    def fill(self, values: Sequence[Tensor]) -> None:
        """Copies values to the places."""
        self._copy(self._places, values)

    def taken(self) -> list[Tensor]:
        """Returns the values at the places, in memory of their own."""
        values = [torch.empty_like(place) for place in self._places]
        self._copy(values, self._places)
        return values

    def _copy(self, to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for group in self._groups:
            torch._foreach_copy_([to[i] for i in group], [values[i] for i in group])


def obstacle(program: GraphModule, model: nn.Module, arguments: Sequence[Tensor]) -> str:
    """Tells why a program cannot be recorded, as far as can be known before; nothing if it can.

    A failed recording would leave torch's generator and allocator in a state between.

    Args:
        program: The program.
        model: The net, whose tensors get other values later.
        arguments: What it takes.
    """
    device, *others = {argument.device for argument in arguments}
    if others:
        return "the batch lies on several devices"
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    fixed: set[Node] = set()
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            value = _attribute(program, str(node.target))
            if value.device == device:
                continue
            if id(value) in own:
                return f"a tensor of the model lies on {value.device}"
            fixed.add(node)
        elif node.op == "call_function":
            elsewhere = [v for v in _values(node) if v.device not in (device, _META)]
            if not elsewhere and not fixed.isdisjoint(inputs) and node.target in _COPIES:
                return f"{node.target} copies to {device} in the middle"
            if _waits(node):
                return f"{node.target} waits for {device}"
            if elsewhere and (not fixed.issuperset(inputs) or is_random(node)):
                return f"{node.target} computes on {elsewhere[0].device}"
            if elsewhere:
                fixed.add(node)
    return ""


def _waits(node: Node) -> bool:
    name = getattr(node.target, "__name__", "")
    if node.target in _PUTS:  # a mask is made numbers of, as many as it says
        indices: Any = node.args[1]
        return any(map(is_mask, indices))
    return name.startswith(_WAITING) and not name.startswith("linalg_vector_norm")


def _constants(program: GraphModule) -> list[str]:
    """The names of the tensors that a program knows, each once."""
    return list(dict.fromkeys(str(node.target) for node in program.graph.find_nodes(op="get_attr")))


def _attribute(program: GraphModule, name: str) -> Tensor:
    found: Tensor = getattr(program, name)
    return found


def _values(node: Node) -> list[Tensor]:
    found = node.meta.get("val")
    several = found if isinstance(found, (list, tuple)) else [found]
    return [value for value in several if isinstance(value, Tensor)]

"""A call as a CUDA graph: what is left of its time without the host's."""

from __future__ import annotations

import torch

from .timing import WARM_CALLS, Call, Tensors


class Graphed:
    """Captures a call when it is first made, and replays it from then on."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.graph: torch.cuda.CUDAGraph | None = None
        self.found: Tensors = {}

    def __call__(self) -> Tensors:
        if self.graph is None:
            self.graph = self.captured()
        self.graph.replay()
        return self.found

    def captured(self) -> torch.cuda.CUDAGraph:
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARM_CALLS):
                self.call()
        main.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.found = self.call()
        return graph

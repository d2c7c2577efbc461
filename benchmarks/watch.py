"""The time per phase and the peak memory of a training run, in any tool's loop.

Models are instrumented from outside; `backward` and the optimiser step are the same functions for every tool.
"""

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Watch:
    """Seconds by phase, from the moment it is made, and the peak of this process's anonymous memory.

    "reading" is what comes before the first forward pass; "rest" is what no other phase accounts for.
    """

    def __init__(self, **models: torch.nn.Module) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._began = time.monotonic()
        self._first = 0.0
        self._since: dict[Any, float] = {}
        for name, model in models.items():
            # Not a hook: FARM calls `forward` itself, which hooks do not see.
            model.forward = self._timed(name, model.forward)
        register_optimizer_step_pre_hook(lambda *_: self._start("optimiser"))
        register_optimizer_step_post_hook(lambda *_: self._stop("optimiser"))
        torch.autograd.backward = self._timed("backward", torch.autograd.backward)
        self._peak = anonymous_megabytes()
        threading.Thread(target=self._look, daemon=True).start()

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)  # its signature too, which callers read
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._start(name)
            try:
                return call(*arguments, **keywords)
            finally:
                self._stop(name)

        return timed

    def _start(self, name: str) -> None:
        self._since[name] = time.monotonic()
        self._first = self._first or self._since[name]

    def _stop(self, name: str) -> None:
        self.seconds[name] += time.monotonic() - self._since[name]

    def _look(self) -> None:
        while True:
            self._peak = max(self._peak, anonymous_megabytes())
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        """Seconds in all and by phase, and megabytes."""
        total = time.monotonic() - self._began
        phases = {"reading": self._first - self._began, **self.seconds}
        phases["rest"] = total - sum(phases.values())
        return {"seconds": total, "phases": phases, "peak_megabytes": self._peak}


def anonymous_megabytes() -> float:
    """RssAnon of this process: memory that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0


def matrix_gigaflops(seconds: float = 2.0) -> float:
    """What this machine multiplies matrices at for so long, fp32, in the shape of a small feed-forward layer."""
    rows, width, inner = 4096, 384, 1536
    left, right = torch.randn(rows, width), torch.randn(width, inner)
    left @ right  # the first call sets up the threads
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        left @ right
        done += 1
    return done * 2 * rows * width * inner / (time.perf_counter() - began) / 1e9

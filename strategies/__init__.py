"""How one training step spreads over ranks: single, horovod, multiworker.

Usable alone; imports nothing of ours.

    strategy = strategies.get("horovod")

gives an object with the contract of `strategies.base.Strategy`. Environment variables say which
network interface it uses and how long ranks wait for each other: see `strategies.settings`.
"""

from __future__ import annotations

import importlib
import os

from strategies.base import Strategy, StrategyError, leave
from strategies.cluster import Cluster, detect

# --strategy's word -> module and class. A further strategy is one file and one line here.
STRATEGIES = {
    "single": ("strategies.single", "SingleStrategy"),
    "horovod": ("strategies.horovod", "HorovodStrategy"),
    "multiworker": ("strategies.multiworker", "MultiWorkerStrategy"),
}

__all__ = ["STRATEGIES", "Cluster", "Strategy", "StrategyError", "detect", "get", "leave"]


def get(name: str) -> Strategy:
    """Start the named strategy in this process; the environment says which rank this is.

    Call it before any other use of TensorFlow: devices and collectives are set up here. Outside a
    launcher the world is this one process; `strategies.launch.run` starts several on this machine.

    Raises:
        StrategyError: the name is unknown, or the strategy cannot start in this environment.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"unknown strategy {name!r}; there are {', '.join(STRATEGIES)}")
    module, attribute = STRATEGIES[name]
    strategy: Strategy = getattr(importlib.import_module(module), attribute)(detect(os.environ))
    return strategy

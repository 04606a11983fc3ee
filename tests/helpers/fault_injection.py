"""Train with a fault: python fault_injection.py FAULT N [options]. It comes at step N, on rank 1 if there is one.

hang: the step never returns. held: the same, in native code that keeps the interpreter lock. tight: the
address space may grow no further. slow: from then on evaluation takes longer.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from pathlib import Path

from torch import Tensor

from adadf_dist import train
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.method.model import Output

FAULT, AT = sys.argv[1], int(sys.argv[2])
forward, predict, steps = DDPEngine.forward, DDPEngine.predict, [0]


def hang_for_ever() -> None:
    while True:
        time.sleep(1)


def faulty_forward(self: DDPEngine, images: Tensor) -> Output:
    steps[0] += 1
    if steps[0] == AT and self.world.rank == self.world.size - 1:
        if FAULT == "hang":
            hang_for_ever()
        if FAULT == "held":
            ctypes.PyDLL(None).sleep(3600)
        if FAULT == "tight":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE"),) * 2)
    return forward(self, images)


def faulty_predict(self: DDPEngine, images: Tensor) -> Tensor:
    if FAULT == "slow" and steps[0] >= AT and self.world.rank == self.world.size - 1:
        time.sleep(0.5)
    return predict(self, images)


if __name__ == "__main__":
    DDPEngine.forward, DDPEngine.predict = faulty_forward, faulty_predict  # type: ignore[method-assign]
    train.main(sys.argv[3:])

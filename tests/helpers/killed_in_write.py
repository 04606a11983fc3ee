"""Train, but die by SIGKILL in the middle of the n-th checkpoint write: python killed_in_write.py N [options]."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import IO

import torch

from adadf_dist import train

real_save, writes = torch.save, [0]


def save(content: object, file: IO[bytes]) -> None:
    writes[0] += 1
    if writes[0] < int(sys.argv[1]):
        real_save(content, file)
        return
    whole = io.BytesIO()
    real_save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.save = save
    train.main(sys.argv[2:])

"""Connect the ranks of a run: wait until rank 0 is reachable, then agree on a unique ID for this start."""

from __future__ import annotations

import socket
import time
import uuid
from typing import TYPE_CHECKING

from adadf_dist.console.logs import EVERY_RANK, get_logger
from adadf_dist.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

logger = get_logger(__name__)

NOTIFY_AFTER_S = 10.0
"""Seconds to wait for rank 0 before printing a message."""
RETRY_INTERVAL_S = 0.5
"""Seconds between connection attempts."""
POLL_INTERVAL_S = 0.05
"""Seconds between two checks by rank 0 for newly connected ranks."""
CONNECT_TIMEOUT_S = 5.0
"""Timeout of one connection attempt, in seconds."""


def check_master_addr(host: str, port: int) -> None:
    """Raise `UserError` if the host name cannot be resolved. Torch would fail with a long C++ stack trace."""
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise UserError(
            f"MASTER_ADDR is {host!r}: {reason}; set it to the name or IP address of rank 0's node"
        ) from None


def wait_for_address(host: str, port: int, timeout_s: float) -> None:
    """Wait until the address accepts connections. Raises `UserError` after `timeout_s` seconds.

    torch would also wait, but would report a timeout with a long C++ stack trace.
    """
    began = time.monotonic()
    notified = False
    while True:
        left = began + timeout_s - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(min(left, CONNECT_TIMEOUT_S), 0.1)):
                return
        except (OSError, UnicodeError, OverflowError) as error:
            reason = str(getattr(error, "strerror", None) or error)
        left = began + timeout_s - time.monotonic()
        if left <= 0:
            raise UserError(
                f"rank 0 cannot be reached at {host}:{port} (MASTER_ADDR, MASTER_PORT): {reason}; no "
                f"connection within {timeout_s:g} s (runtime.timeout_s): check that rank 0 is running, that this is "
                "its address, and that no firewall blocks the port"
            )
        if not notified and time.monotonic() - began > NOTIFY_AFTER_S:
            notified = True
            logger.info(f"waiting for rank 0 at {host}:{port} ({left:.0f} s left): {reason}", extra=EVERY_RANK)
        time.sleep(min(RETRY_INTERVAL_S, left))


def exchange_start_id(store: Store, rank: int, size: int, timeout_s: float) -> str:
    """Agree on a unique ID for this start of the run, and return it on every rank.

    After a restart, torchrun's store still contains addresses of processes that no longer exist, so the ranks must not
    trust values already in it. Each rank therefore writes a new random name, and rank 0 answers every name it finds
    until all ranks of this start have acknowledged the ID.
    """
    me, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    if rank:
        store.set(f"adadf/hello/{rank}", me)
        start: str = store.get(f"adadf/welcome/{me}").decode()
        store.add(f"adadf/thanks/{start}", 1)
        return start
    hellos = [f"adadf/hello/{other}" for other in range(1, size)]
    while store.add(f"adadf/thanks/{me}", 0) < size - 1:
        for hello in hellos:
            if store.check([hello]):
                store.set(f"adadf/welcome/{store.get(hello).decode()}", me)
        if time.monotonic() > deadline:
            joined = store.add(f"adadf/thanks/{me}", 0) + 1
            raise RuntimeError(f"only {joined} of {size} ranks joined within {timeout_s:g} s")
        time.sleep(POLL_INTERVAL_S)
    return me

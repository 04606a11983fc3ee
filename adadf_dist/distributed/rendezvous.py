"""How the ranks of a run find each other: the wait for an address, and a name for this start alone."""

from __future__ import annotations

import socket
import sys
import time
import uuid
from typing import TYPE_CHECKING

from adadf_dist.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

NOTIFY_AFTER_S = 10.0
"""A wait that is longer says what it waits for."""
RETRY_INTERVAL_S = 0.5
"""Between two tries."""
POLL_INTERVAL_S = 0.05
"""Between two looks of rank 0 at who has come."""
CONNECT_TIMEOUT_S = 5.0
"""A try that nobody answers, not even with a refusal, is given up after this."""


def check_master_addr(host: str, port: int) -> None:
    """Raises `UserError` where rank 0 itself does not know the name: torch would tell it by pages of C++ frames."""
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise UserError(f"MASTER_ADDR is {host!r}: {reason}; give a name or address of rank 0's node") from None


def wait_for_address(host: str, port: int, timeout_s: float) -> None:
    """Return as soon as something listens there. Raises `UserError` when nothing did for `timeout_s`.

    torch would wait as well, but tell of it by pages of C++ frames.
    """
    began = time.monotonic()
    spoken = False
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
                f"rank 0 cannot be reached at {host}:{port} (MASTER_ADDR, MASTER_PORT): {reason}; nothing in "
                f"{timeout_s:g} s (runtime.timeout_s): see that rank 0 runs, that the address is its own and that no "
                "firewall stands between"
            )
        if not spoken and time.monotonic() - began > NOTIFY_AFTER_S:
            spoken = True
            print(f"waiting for rank 0 at {host}:{port}, {left:.0f} s more ({reason})", file=sys.stderr, flush=True)
        time.sleep(min(RETRY_INTERVAL_S, left))


def exchange_start_id(store: Store, rank: int, size: int, timeout_s: float) -> str:
    """A name for this start of all ranks, the same on each, that no start before had.

    torchrun's agents keep their store over restarts, with the addresses of processes that are gone, and count their
    restarts each for itself; so the ranks find each other without trusting anything that stands in the store. Each
    says hello under a fresh name, and rank 0 answers whatever names it finds until all of its own time have thanked.
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
            raise RuntimeError(f"{store.add(f'adadf/thanks/{me}', 0) + 1} of {size} ranks came in {timeout_s:g} s")
        time.sleep(POLL_INTERVAL_S)
    return me

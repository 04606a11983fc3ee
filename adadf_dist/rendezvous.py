"""The wait for the address at which the ranks of a run meet."""

from __future__ import annotations

import socket
import sys
import time

from adadf_dist.errors import UserError

SPEAK_AFTER_S = 10.0
"""A wait that is longer says what it waits for."""
BETWEEN_S = 0.5
"""Between two tries."""
TRY_S = 5.0
"""A try that nobody answers, not even with a refusal, is given up after this."""


def wait_for_address(host: str, port: int, timeout_s: float) -> None:
    """Return as soon as something listens there. Raises `UserError` when nothing did for `timeout_s`.

    torch would wait as well, but tell of it by pages of C++ frames.
    """
    began = time.monotonic()
    spoken = False
    while True:
        left = began + timeout_s - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(min(left, TRY_S), 0.1)):
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
        if not spoken and time.monotonic() - began > SPEAK_AFTER_S:
            spoken = True
            print(f"waiting for rank 0 at {host}:{port}, {left:.0f} s more ({reason})", file=sys.stderr, flush=True)
        time.sleep(min(BETWEEN_S, left))

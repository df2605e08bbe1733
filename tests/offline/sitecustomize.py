"""Closes the network to this Python process: any address but the machine's own raises.

Python imports `sitecustomize` from PYTHONPATH at start-up, so a folder on that path reaches every
child process too: Jupyter kernels, xdist workers, torchrun. Where I2B_MACHINE is set,
`other_machine` comes in the same way.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def _is_local(host: object) -> bool:
    import ipaddress
    import socket

    if isinstance(host, (bytes, bytearray)):
        host = host.decode()
    # None, "" and numbers: any own address, and address families that never leave the machine.
    if not isinstance(host, str) or host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        # A Unix socket's address is a path, not a tuple.
        host = args[1][0] if isinstance(args[1], tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    if not _is_local(host):
        raise RuntimeError(
            f"Tests run without a network, but something asked for {host!r}: bundle what it needs."
        )


sys.addaudithook(_refuse_network)
if os.environ.get("I2B_MACHINE"):
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import other_machine  # noqa: F401

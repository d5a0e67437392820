"""Addresses, and connections cut: gRPC has no way to end a stream whose reader stands still."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat


def format_address(host: str, port: int) -> str:
    """`host:port`, with the brackets an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cut_connections(host: str, port: int) -> int:
    """Shut down every TCP connection that was accepted on `host:port` in this process.

    Both ends see the end of the connection at once; descriptors stay with their owner. Clients of the same
    port inside this process are not touched, apart from their peer going away.

    Returns:
        How many connections were cut.
    """
    cut = 0
    for name in os.listdir("/proc/self/fd"):
        # A descriptor may be closed or reused by another thread at any time: look only at our duplicate.
        try:
            duplicate = os.dup(int(name))
        except OSError:
            continue
        try:
            cut += _cut_if_at(duplicate, host, port)
        finally:
            os.close(duplicate)
    return cut


def _cut_if_at(descriptor: int, host: str, port: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    found = socket.socket(fileno=descriptor)
    try:
        if found.family not in (socket.AF_INET, socket.AF_INET6) or not _is_at(
            found.getsockname(), host, port
        ):
            return False
        found.getpeername()  # fails for the listening socket, which is not ours to touch
        found.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected (any more): nothing to cut
        return False
    finally:
        found.detach()
    return True


def _is_at(name: tuple[str, int], host: str, port: int) -> bool:
    if name[1] != port:
        return False
    try:
        wanted = ipaddress.ip_address(host)
    except ValueError:  # a host name: the port has to do
        return True
    found = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return wanted.is_unspecified or wanted in (found, mapped)

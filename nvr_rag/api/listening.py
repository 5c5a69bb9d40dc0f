"""Where the API listens: settings in, a listening socket out, and whether other machines can reach it."""

from __future__ import annotations

import ipaddress
import socket

from nvr_rag.errors import ConfigurationError
from nvr_rag.settings import ApiSettings

_BACKLOG = 2048


def listen(settings: ApiSettings) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigurationError with what to do."""
    family, address = _address(settings.host, settings.port)
    # Naming the protocol matters: asyncio turns Nagle's algorithm off only where it sees TCP, and with it on every
    # answer waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); stop what uses the port, "
            "perhaps another nvr-rag serve, or set NVR_API__PORT to another one (0 takes a free one)"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket, for clients."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"the host {host!r} is not known here; set NVR_API__HOST to an address of this machine, such as 127.0.0.1"
        ) from error
    addresses = [(family, (str(address[0]), port)) for family, _, _, _, address in found]
    return addresses[0]


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    host = str(listener.getsockname()[0])
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def is_local_name(host: str) -> bool:
    """Whether a Host header, with or without a port, names this machine's loopback."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost" or name.lower().endswith(".localhost")

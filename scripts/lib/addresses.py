"""Addresses of servers and the keys for them: what a recipe may hold, what a message may show."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import SplitResult, urlsplit

from scripts.lib.errors import EqaError

LAST_PORT = 65535


def check_address(url: str, what: str) -> SplitResult:
    """The parts of a server's base address.

    A recipe travels: to git, DVC, process lists and logs. So it may not hold a password or a token.

    Args:
        url: base address such as http://127.0.0.1:23333/v1.
        what: its key or variable, for messages.
    Raises:
        EqaError: no http or https address, or one with user name, password, query or fragment, which the message does
            not repeat.
    """
    way_out = "write one such as http://127.0.0.1:23333/v1"
    try:
        parts = urlsplit(url)
        held = parts.username is not None or parts.query or parts.fragment or "@" in parts.netloc
        if held and parts.scheme in ("http", "https"):
            raise EqaError(
                f"{what} holds a user name, a password, a query or a fragment, which would be stored with the recipe; {way_out} "
                "and give the key in its environment variable"
            )
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        if fits and all(" " < sign < "\x7f" for sign in url):
            return parts
    except ValueError:  # brackets, or a port that is no port
        pass
    raise EqaError(f"{what}={_unparsed(url)}: no http address; {way_out}")


def public(address: str) -> str:
    """An address without user name, password and query, for messages."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return _unparsed(address)
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def _unparsed(text: str) -> str:
    """What is no address, for messages; where it may hold a secret, that cannot be told apart."""
    return "..." if set(text) & set("@?#") else text


def is_local(url: str) -> bool:
    """Whether the address is this machine's loopback."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port_number(port: object, where: str) -> None:
    """Raises EqaError, naming `where` it stands, for what is no TCP port."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= LAST_PORT:
        raise EqaError(f"{where}: {port} is no port; choose one from 1 to {LAST_PORT}")


def read_key(variable: str) -> str:
    """A key from the environment, without white space around it; "" where it is not set.

    A file with Windows line ends leaves a carriage return behind the key; no HTTP library sends that, and says it aloud.

    Raises:
        EqaError: white space within it, or signs that no HTTP header may hold; names the variable alone.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= sign <= "~" for sign in key):
        raise EqaError(f"{variable}: holds white space or signs other than ASCII; export the bare key")
    return key


def hidden(text: str, key: str) -> str:
    """Text of others on one line, without the key; the caller cuts it."""
    text = " ".join(text.split())
    return text.replace(key, "***") if key else text

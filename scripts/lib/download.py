"""Downloads that go on where they stopped, are checked against a pinned hash, and destroy nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from scripts.lib.errors import EqaError
from scripts.lib.files import hash_file
from scripts.lib.progress import Progress

log = logging.getLogger(__name__)

TRIES = 5  # failures in a row without a new byte
TIMEOUT_S = 30.0
DISK_RESERVE = 64 << 20  # left free beside the download itself
SCHEMES = ("file", "http", "https")


def shown(address: str) -> str:
    """`address` without user, password and query, which may carry secrets."""
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that hold no IPv6 address
        return "..." if set(address) & set("@?#") else address
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def check_disk(folder: Path, need: int, what: str) -> None:
    """Whether `need` bytes fit where `folder` is or will be.

    Raises:
        EqaError: they do not; names both numbers.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need + DISK_RESERVE > free:
        raise EqaError(
            f"{folder}: {what} needs {need / 1e6:,.1f} MB, only {free / 1e6:,.1f} MB are free; "
            "free space or link this folder to a larger disk"
        )


def matches(path: Path, sha256: str = "", md5: str = "", size: int | None = None) -> str:
    """ "" if the file is as pinned, else "expected ..., found ...". Nothing pinned: always as pinned."""
    if size is not None and path.stat().st_size != size:
        return f"expected {size} bytes, found {path.stat().st_size}"
    for name, wanted in (("sha256", sha256), ("md5", md5)):
        if wanted:
            found = hash_file(path, name)
            if found != wanted.lower():
                return f"expected {name} {wanted}, found {found}"
    return ""


def fetch(
    address: str,
    target: Path,
    *,
    sha256: str = "",
    md5: str = "",
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    tries: int = TRIES,
    pause_s: float = 1.0,
) -> Path:
    """Bring `address` to `target`.

    What arrived stays in `target`.part, with the server's mark of the version beside it, and the next call goes on
    from there. A file that is at `target` already and is as pinned is left alone; one that is not is left alone too,
    and refused.

    Args:
        address: file:, http: or https:.
        sha256, md5, size: what is pinned; "" or None where it is not known.
        headers: sent along; never to another host after a redirect if they name a credential (httpx sees to it).
        tries: failures in a row, without a new byte, before giving up.
        pause_s: wait after the first failure; doubles each time.
    Raises:
        EqaError: unknown kind of address, not there, no disk, no connection, or not as pinned.
    """
    try:
        kind = urlsplit(address).scheme
    except ValueError:
        kind = ""
    if kind not in SCHEMES:
        raise EqaError(f"{shown(address) or address}: an address starting with file:, http: or https: is wanted")
    if target.exists():
        fault = matches(target, sha256, md5, size)
        if fault:
            raise EqaError(f"{target}: {fault}; it is left as it is: move it away to fetch {shown(address)} again")
        return target
    part = target.with_name(target.name + ".part")
    mark = target.with_name(target.name + ".part.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists() and part.stat().st_size > 0
    if kind == "file":
        _copy(address, part, size)
        resumed = False
    else:
        _transfer(address, part, mark, size, headers or {}, tries, pause_s)
    fault = matches(part, sha256, md5, size)
    if fault and resumed:
        # the beginning may be of another version: once more from the first byte
        log.info("%s: %s after going on from an earlier download; starting over", target.name, fault)
        part.unlink()
        mark.unlink(missing_ok=True)
        _transfer(address, part, mark, size, headers or {}, tries, pause_s)
        fault = matches(part, sha256, md5, size)
    mark.unlink(missing_ok=True)
    if fault:
        wrong = target.with_name(target.name + ".wrong")
        os.replace(part, wrong)
        raise EqaError(
            f"{shown(address)}: {fault}; kept as {wrong} to look at: the address has changed, or the pin is wrong"
        )
    os.replace(part, target)
    return target


def _copy(address: str, part: Path, size: int | None) -> None:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise EqaError(f"{shown(address)}: a file address names no host; write file:///PATH")
    source = Path(unquote(parts.path))
    if not source.is_file():
        raise EqaError(f"{source}: no such file; correct the address {shown(address)}")
    check_disk(part.parent, source.stat().st_size, source.name)
    shutil.copyfile(source, part)


def _transfer(
    address: str, part: Path, mark: Path, size: int | None, headers: Mapping[str, str], tries: int, pause_s: float
) -> None:
    """Everything of `address` into `part`, over as many connections as it takes."""
    import httpx

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes whole addresses, signed ones too
    failures = 0
    timeout = httpx.Timeout(TIMEOUT_S)
    with httpx.Client(follow_redirects=True, timeout=timeout, headers=dict(headers)) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _request(client, address, part, mark, size):
                    return
                fault = "the server cannot go on where the download stopped"
            except httpx.HTTPStatusError as error:
                code = error.response.status_code
                if code not in (408, 425, 429) and code < 500:
                    raise EqaError(
                        f"{shown(address)}: the server answers {code} {error.response.reason_phrase}; {_way_out(code)}"
                    ) from None
                fault = f"the server answers {code}"
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise EqaError(f"{shown(address)}: {error}; correct the address") from None
            now = part.stat().st_size if part.exists() else 0
            failures = 1 if now > before else failures + 1
            if failures >= tries:
                raise EqaError(
                    f"{shown(address)}: {fault}, {tries} times; {now} bytes are kept in {part}: "
                    "run again to go on from there"
                )
            log.info("%s: %s at byte %d; trying again", part.name, fault, now)
            time.sleep(min(30.0, pause_s * 2 ** (failures - 1)))


def _way_out(code: int) -> str:
    if code in (401, 403):
        return "accept its terms there, or give a token (HF_TOKEN for Hugging Face)"
    return "correct the address or fetch the file by hand into data.source"


def _request(client, address: str, part: Path, mark: Path, size: int | None) -> bool:
    """One connection. False where the next one must start from the first byte."""
    import httpx

    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return True  # killed between the last byte and the check
    version = _read_mark(mark, address)
    asked = {"Accept-Encoding": "identity"}  # ranges count bytes of the file, not of a compression of it
    if have and (version or size is not None):
        asked["Range"] = f"bytes={have}-"
        if version:
            asked["If-Range"] = version
    else:
        have = 0  # nothing tells that the rest would be of the same version
    with client.stream("GET", address, headers=asked) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            # complete already, or longer than the file is by now: only the pinned hash can tell
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total.isdigit() and int(total) == have:
                return True
            part.unlink()
            return False
        response.raise_for_status()
        if response.status_code == httpx.codes.PARTIAL_CONTENT and not _starts_at(response, have):
            part.unlink()
            return False
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise EqaError(
                f"{shown(address)}: the server offers {total} bytes, {size} are pinned; "
                "the address has changed, or the pin is wrong"
            )
        check_disk(part.parent, (total or size or have) - have, part.name.removesuffix(".part"))
        _write_mark(mark, address, response)
        bar = Progress(total, "B", done=have, name=part.name.removesuffix(".part"))
        with bar, part.open("ab" if have else "wb") as file:
            for block in response.iter_raw():  # as it comes: a block gathered first would be lost with the connection
                file.write(block)
                have += len(block)
                bar.update(len(block))
                if size is not None and have > size:
                    raise EqaError(
                        f"{shown(address)}: the server sends more than the pinned {size} bytes; the address has changed"
                    )
    return True  # a body shorter than its Content-Length has raised by now (httpx)


def _starts_at(response, have: int) -> bool:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    return unit == "bytes" and rest.partition("-")[0] == str(have)


def _read_mark(mark: Path, address: str) -> str:
    """The version of what is in the .part file, "" if it is of another address or not known."""
    try:
        content = json.loads(mark.read_text(encoding="utf-8"))
        return content["version"] if content["address"] == hashlib.sha256(address.encode()).hexdigest() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_mark(mark: Path, address: str, response) -> None:
    # If-Range takes a strong ETag or a date
    version = response.headers.get("ETag", "")
    if not version or version.startswith("W/"):
        version = response.headers.get("Last-Modified", "")
    content = {"address": hashlib.sha256(address.encode()).hexdigest(), "version": version}
    mark.write_text(json.dumps(content), encoding="utf-8")

"""The HM3D frames archive: a .tgz of some 12 GB, only ever read forwards in one pass, never unpacked whole.

Members are checked before anything is done with them: a path that could leave its folder, a link, a device or a sparse
file refuses the whole archive, and so does an archive that ends early. Headers are bounded before tarfile reads them: it
takes the memory that a long name or a pax record claims, and reads on for as long as a member's size says.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.lib.errors import EqaError
from scripts.lib.readers import MAX_IMAGE_BYTES, image_size
from scripts.lib.sources import FRAME_SUFFIXES, short_hash

_HEAD_BYTES = 1 << 16  # a PNG's size stands in its first 24 bytes, a JPEG's behind its camera notes
_BLOCK = 1 << 20
MAX_HEADER_BYTES = 1 << 16  # of a long name or a pax record; paths end at 4096 bytes
MAX_MEMBER_BYTES = 1 << 40  # the whole archive has 12e9
_MAX_HEADERS = 8  # of one member: its own, a long name, a long link, a pax record, a global one
_NO_SPARSE = "a sparse file, which no picture is"


class _Header(tarfile.TarInfo):
    """A header, refused by its claims. `frombuf` and `fromtarfile` are documented; tarfile calls them for each block."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(_NO_SPARSE)
        extended = header.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        limit = MAX_HEADER_BYTES if extended else MAX_MEMBER_BYTES
        if not 0 <= header.size <= limit:
            what = "an extended header" if extended else f"member {header.name[:200]!r}"
            raise tarfile.ReadError(f"{what} claims {header.size} bytes, {limit} are possible")
        return header

    @classmethod
    def fromtarfile(cls, tar: _Tar) -> _Header:
        if tar.headers >= _MAX_HEADERS:
            raise tarfile.ReadError(f"more than {_MAX_HEADERS} headers of one member")
        tar.headers += 1
        try:
            return super().fromtarfile(tar)
        finally:
            tar.headers -= 1

    def _proc_gnusparse_10(self, *_: object) -> None:
        # no documented place comes before this: it reads the member's content, as much as that likes
        raise tarfile.ReadError(_NO_SPARSE)


class _Tar(tarfile.TarFile):
    """Reads our headers and knows how many it is within."""

    tarinfo = _Header
    headers = 0


class _Tail:
    """A stream that remembers its last 512 bytes: a whole tar ends in zeros."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.tail = data[-512:] if len(data) >= 512 else (self.tail + data)[-512:]
        return data


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What tarfile, gzip and the disk raise, as one line about the archive."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        # ValueError: tarfile takes a pax record's numbers for numbers
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise EqaError(
            f"{path}: no whole .tgz ({reason}); it is damaged or ends early; fetch the archive again"
        ) from None
    except OSError as error:
        if error.errno is None:
            raise EqaError(f"{path}: damaged archive ({error}); fetch the archive again") from None
        raise EqaError(f"{path}: cannot be read ({error.strerror}); mend its permissions or fetch it again") from None


def read_member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, size: int = -1) -> bytes:
    """The first `size` bytes of a member that `walk_archive` gave; all by default.

    Raises:
        EqaError: the archive ends within it or is damaged there.
    """
    with _damage_told(path):  # raised here, outside the walk, these errors would pass it by
        stream = tar.extractfile(member)
        return stream.read(size) if stream else b""


def walk_archive(path: Path) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Every colour frame of the archive in its order, as (normal path, member, tar for read_member).

    Raises:
        EqaError: no .tgz, damaged, ends early, or a member that could leave its folder, a link or a device.
    """
    with _damage_told(path), path.open("rb") as file, gzip.GzipFile(fileobj=file) as unzipped:
        stream = _Tail(unzipped)  # type: ignore[arg-type]
        with _Tar.open(fileobj=stream, mode="r|", bufsize=_BLOCK) as tar:  # type: ignore[call-overload]
            for member in tar:
                tar.members.clear()  # tarfile keeps every header otherwise
                _check_claims(path, member, tar)
                name = _checked_name(path, member)
                if name.endswith(FRAME_SUFFIXES) and member.isreg():
                    if not name.isprintable():  # half characters among them, which no manifest can hold
                        raise EqaError(f"{path}: member {name[:200]!r} has a name of no text; fetch the archive again")
                    if not 0 < member.size <= MAX_IMAGE_BYTES:
                        raise EqaError(f"{path}: member {name} claims {member.size} bytes; fetch the archive again")
                    yield name, member, tar
            # a member that is cut off is noticed by tarfile, an archive cut between two only by what is missing
            while stream.read(_BLOCK):
                pass
        if len(stream.tail) < 512 or any(stream.tail):
            raise EqaError(f"{path}: ends early, without a tar's end mark; fetch the archive again")


def _check_claims(path: Path, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """What pax records say beside the header."""
    if member.issparse() or any(key.startswith("GNU.sparse.") for key in member.pax_headers):
        raise EqaError(f"{path}: member {member.name[:200]!r} is {_NO_SPARSE}; fetch the archive again")
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        raise EqaError(
            f"{path}: member {member.name[:200]!r} claims {str(member.size)[:30]} bytes, {MAX_MEMBER_BYTES} are "
            "possible; fetch the archive again"
        )
    # tarfile keeps global records for as long as it reads
    if sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > MAX_HEADER_BYTES:
        raise EqaError(f"{path}: global headers of more than {MAX_HEADER_BYTES} bytes; fetch the archive again")


def _checked_name(path: Path, member: tarfile.TarInfo) -> str:
    name = member.name
    if name.startswith("/") or "\0" in name or "\\" in name or ".." in PurePosixPath(name).parts:
        raise EqaError(
            f"{path}: member {name[:200]!r} could leave its folder; this is not the archive that is meant, fetch it again"
        )
    if not (member.isreg() or member.isdir()):
        raise EqaError(
            f"{path}: member {name[:200]!r} is a link or a device; this is not the archive that is meant, fetch it again"
        )
    return str(PurePosixPath(name))


def episode_of(name: str, episodes: Collection[str]) -> tuple[str, str] | None:
    """(episode, file name) of a member, whatever folders stand in front; None for an episode not asked for."""
    folder, _, file = name.rpartition("/")
    while folder:
        if folder in episodes:
            return folder, file
        folder = folder.partition("/")[2]
    return None


def list_archive(path: Path, episodes: Collection[str]) -> dict[str, dict]:
    """One pass: what the archive holds of the episodes.

    Returns:
        {episode: {"kind": "archive", "frames": n, "width", "height", "bytes", "digest", "names": sorted file names}};
        "fault" instead of a size where the first frame is no picture.
    Raises:
        EqaError: see `walk_archive`; also a frame that is there twice.
    """
    wanted = frozenset(episodes)
    sizes: dict[str, dict[str, int]] = {}
    heads: dict[str, dict] = {}
    for name, member, tar in walk_archive(path):
        found = episode_of(name, wanted)
        if found is None:
            continue
        episode, file = found
        files = sizes.setdefault(episode, {})
        if file in files:
            raise EqaError(f"{path}: frame {file} of episode {episode} is there twice; fetch the archive again")
        files[file] = member.size
        if episode not in heads:
            head = read_member(path, tar, member, _HEAD_BYTES)
            try:
                width, height = image_size(head, f"{path}: {name}")
                heads[episode] = {"width": width, "height": height}
            except EqaError:
                heads[episode] = {"fault": f"{path.name}: {name}: no PNG or JPEG picture; fetch the archive again"}
    listing = {}
    for episode, files in sorted(sizes.items()):
        png = sorted(file for file in files if file.endswith(FRAME_SUFFIXES[0]))
        names = png or sorted(files)
        listing[episode] = {
            "kind": "archive",
            "frames": len(names),
            "bytes": sum(files[name] for name in names),
            "digest": short_hash("".join(f"{name}\0{files[name]}\n" for name in names)),
            "names": names,
            **heads[episode],
        }
    return listing

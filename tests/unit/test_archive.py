"""scripts.lib.archive: what headers claim costs nothing, and whatever tarfile raises is one line."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts.lib.archive import MAX_HEADER_BYTES, list_archive
from scripts.lib.errors import EqaError
from tests.lib import raw_data
from tests.lib.project import ROOT

EPISODE = "hm3d-v0/000-hm3d-BFRyYbPCCPE"
FRAME = f"data/frames/{EPISODE}/00000-rgb.png"
END = bytes(1024)
LISTS = """
import resource, sys
from pathlib import Path
from scripts.lib.archive import list_archive
from scripts.lib.errors import EqaError
from tests.lib import raw_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list_archive(Path(sys.argv[1]), [sys.argv[2]])
    print("accepted")
except EqaError as error:
    print(str(error).replace("\\n", "#"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def records(**pairs: object) -> bytes:
    """Pax records: "LENGTH KEY=VALUE" lines, each with its own length."""
    made = b""
    for key, value in pairs.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        made += str(length).encode() + body
    return made


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("PaxHeaders/x", len(content), kind) + padded(content)


def frame(data: bytes = b"") -> bytes:
    data = data or raw_data.encoded(1)
    return header(FRAME, len(data)) + padded(data)


def old_sparse(name: str, size: int) -> bytes:
    block = bytearray(header(name, size, tarfile.GNUTYPE_SPARSE))
    block[482] = 1  # more maps follow in blocks of their own
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def written(folder: Path, *blocks: bytes) -> Path:
    (path := folder / "frames.tgz").write_bytes(gzip.compress(b"".join([*blocks, END]), 1))
    return path


def refused(path: Path) -> str:
    with pytest.raises(EqaError) as told:
        list_archive(path, [EPISODE])
    assert str(told.value).startswith(f"{path}: ")
    assert str(told.value).endswith(("fetch the archive again", "fetch it again"))
    assert "\n" not in str(told.value)
    return str(told.value)


SPARSE = {
    "size that is no number": records(**{"GNU.sparse.size": "abc"}),
    "real size that is no number": records(**{"GNU.sparse.realsize": "1x"}),
    "real size of 5000 digits": records(**{"GNU.sparse.realsize": "9" * 5000}),
    "map that is no number": records(**{"GNU.sparse.map": "a,b"}),
    "version 1.0": records(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    "version 1.0 of a real size": records(
        **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "8"}
    ),
    "version 0.1": records(**{"GNU.sparse.map": "0,8", "GNU.sparse.size": "8"}),
    "name only": records(**{"GNU.sparse.name": "x"}),
}


@pytest.mark.parametrize("content", SPARSE.values(), ids=SPARSE)
def test_a_pax_record_of_a_sparse_file_refuses_the_archive_in_one_line(tmp_path, content):
    refused(written(tmp_path, pax(content), frame()))


def test_an_old_gnu_sparse_member_refuses_the_archive(tmp_path):
    assert "sparse file" in refused(written(tmp_path, old_sparse(FRAME, 512), bytes(512 * 3), frame()))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"9" * 5000 + b" path=x\n", "integer string conversion"),
        (b"15 hdrcharset=\xff\n", "utf-8"),
        (records(path="../x-rgb.png"), "leave its folder"),
        (records(size=-512), "-512 bytes"),
        (records(size=10**30), "1" + "0" * 29),
    ],
)
def test_a_pax_record_that_lies_refuses_the_archive_in_one_line(tmp_path, content, word):
    assert word in refused(written(tmp_path, pax(content), frame(), frame()))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
def test_an_extended_header_is_refused_by_what_it_claims_before_it_is_read(tmp_path, kind):
    claimed = 100 * 10**6
    path = tmp_path / "frames.tgz"
    with gzip.open(path, "wb", 9) as file:
        file.write(header("x", claimed, kind))
        for _ in range(claimed // 10**6):
            file.write(bytes(10**6))
    assert path.stat().st_size < 10**6
    done = subprocess.run(
        [sys.executable, "-c", LISTS, str(path), EPISODE], capture_output=True, text=True, cwd=ROOT, check=True
    )
    said, grown_kb = done.stdout.splitlines()
    assert f"claims {claimed} bytes, {MAX_HEADER_BYTES} are possible" in said
    assert int(grown_kb) < 40_000


def test_a_member_that_claims_an_exabyte_ends_at_once(tmp_path):
    """tarfile would read a megabyte at a time up to there, past the archive's end."""
    big = bytearray(header("notes.txt", 0))
    big[124:136] = b"\x80" + (2**60).to_bytes(11, "big")
    big[148:156] = b" " * 8
    big[148:156] = b"%06o\0 " % sum(big)
    assert f"claims {2**60} bytes" in refused(written(tmp_path, bytes(big), frame()))


def test_headers_upon_headers_are_refused_before_the_stack_ends(tmp_path):
    long_name = header("././@LongLink", 2, b"L") + padded(b"x\0")
    assert "more than 8 headers" in refused(written(tmp_path, long_name * 2000, frame()))


def test_global_records_may_not_grow_without_end(tmp_path):
    blocks = [pax(records(**{f"comment{i}": "y" * 60_000}), tarfile.XGLTYPE) + frame() for i in range(3)]
    assert f"more than {MAX_HEADER_BYTES} bytes" in refused(written(tmp_path, *blocks))


def test_a_frame_whose_name_is_no_text_is_refused(tmp_path):
    data = raw_data.encoded(1)
    bad = header(FRAME.replace("00000", "a\udcff"), len(data)) + padded(data)
    assert "name of no text" in refused(written(tmp_path, bad))


def test_long_names_and_pax_records_that_tar_writes_are_read(tmp_path):
    data = raw_data.encoded(1)
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{tar_format}.tgz"
        with tarfile.open(path, "w:gz", format=tar_format, pax_headers={"comment": "made by git archive"}) as tar:
            info = tarfile.TarInfo(f"{'long/' * 60}é/{FRAME}")
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))
        assert list_archive(path, [EPISODE])[EPISODE]["frames"] == 1

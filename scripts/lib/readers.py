"""Readers of raw episodes: one interface, one class a source.

A fifth source is a fifth class and a line in `open_reader`. All offer

reader.count              frames that may be chosen
reader.width, .height     px
reader.read(indices)      BGR pictures (height, width, 3), uint8, one by one in the given order
reader.jpeg(indices)      the stored JPEG bytes, or None where the source stores none
reader.check(indices)     cheap proof that these frames can be had, without decoding all of them
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from scripts.lib.errors import EqaError
from scripts.lib.sources import frame_files
from scripts.lib.video_decoder import Decoder, DecoderDied, DecoderError, take_decoder

if TYPE_CHECKING:
    import numpy as np

MAX_SIDE_PX = 16384  # four times 4K; larger claims are damage or malice
# 8K video has half as many; a progressive JPEG of some bytes that claims more takes gigabytes to decode
MAX_PIXELS = 64 * 2**20
MAX_IMAGE_BYTES = 256 * 2**20
MAX_JPEG_SCANS = 100  # encoders write some ten; each goes over the whole picture again
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
SCANNET_FRAMES = 600  # Open-EQA samples within the first 600 frames of a scan, in its extractor and so in its baselines
SENS_VERSION = 4
SENS_JPEG = 2
_SENS_FRAME_BYTES = 64 + 4 * 8  # pose, two times, two sizes
_VIDEO_BATCH_BYTES = 128 * 2**20


class Reader(Protocol):
    """What every source offers; see the module's text."""

    count: int
    width: int
    height: int

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]: ...
    def jpeg(self, indices: Sequence[int]) -> list[bytes] | None: ...
    def check(self, indices: Sequence[int]) -> None: ...
    def close(self) -> None: ...


def frame_limit(episode: str, kind: str) -> int | None:
    """Most frames that may be chosen from: ScanNet's rule, None for no limit."""
    return SCANNET_FRAMES if kind == "sens" or episode.startswith("scannet") else None


def open_reader(episode: str, kind: str, path: Path) -> Reader:
    """The reader for a record of sources.find_episode.

    Args:
        episode: episode_history, for ScanNet's limit.
        kind: frames, video or sens.
        path: folder or file.
    Raises:
        EqaError: the file is not what it should be; names it.
    """
    limit = frame_limit(episode, kind)
    if kind == "frames":
        return FrameFolder(path, limit)
    if kind == "video":
        return VideoFile(path, limit)
    if kind == "sens":
        return SensFile(path, limit)
    raise EqaError(f"{path}: kind {kind!r} has no reader; one of frames, video, sens is wanted")


# ------------------------------------------------------------------------------------------------ pictures


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) in px from the head of a PNG or JPEG file.

    Raises:
        EqaError: neither of the two, cut off, or larger than MAX_SIDE_PX or MAX_PIXELS.
    """
    if data[:8] == PNG_MAGIC:
        if len(data) < 24 or data[8:16] != b"\0\0\0\x0dIHDR":
            raise _no_picture(where)
        width, height = struct.unpack(">II", data[16:24])
    elif data[:2] == b"\xff\xd8":
        width, height = _jpeg_size(data, where)
    else:
        raise _no_picture(where)
    _check_size(width, height, where)
    return width, height


def _check_size(width: int, height: int, where: str, what: str = "") -> None:
    """Refuse what no camera takes, before anything of that size is decoded."""
    if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX and width * height <= MAX_PIXELS):
        raise EqaError(
            f"{where}: claims {what}{width}x{height} px, 1 to {MAX_SIDE_PX} a side and {MAX_PIXELS} in all "
            f"are possible; fetch it again"
        )


def _jpeg_size(data: bytes, where: str) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            at += 2
            continue
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    raise _no_picture(where)


def _no_picture(where: str) -> EqaError:
    return EqaError(f"{where}: no PNG or JPEG picture; fetch or extract it again")


def check_whole(data: bytes, where: str) -> None:
    """Refuse a picture that ends early, and one that makes a decoder work for minutes.

    Decoders fill what is missing with grey and say nothing.

    Raises:
        EqaError: no end mark, a PNG whose parts reach beyond its end or that is animated, a JPEG of more than
            MAX_JPEG_SCANS scans.
    """
    if data[:8] == PNG_MAGIC:
        names = _png_chunks(data)
        # OpenCV reads these by a decoder of its own, which fills what is missing and says nothing
        if b"acTL" in names:
            raise EqaError(f"{where}: an animated PNG, one picture a file is wanted; extract the frames again")
        whole = b"IEND" in names
    else:
        whole = b"\xff\xd9" in data[-1024:]  # some cameras pad after the end mark
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise EqaError(
                f"{where}: {scans} scans in one JPEG, {MAX_JPEG_SCANS} are possible; fetch or extract it again"
            )
    if not whole:
        raise EqaError(f"{where}: this picture ends early; fetch or extract it again")


def _png_chunks(data: bytes) -> set[bytes]:
    """Names of a PNG's chunks that lie within the data, up to IEND.

    OpenCV takes memory for what a chunk claims before it looks for it: 57 bytes took 4.2 GB and 30 s.
    """
    names: set[bytes] = set()
    at = len(PNG_MAGIC)
    while at + 12 <= len(data) and b"IEND" not in names:
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, name, content, checksum
        if end > len(data):
            break
        names.add(data[at + 4 : at + 8])
        at = end
    return names


def decode_image(data: bytes, where: str) -> np.ndarray:
    """Decode PNG or JPEG bytes to BGR (height, width, 3), uint8.

    Raises:
        EqaError: text, damaged, cut off, too large; names `where`.
    """
    import numpy as np

    from scripts.lib.video import load_cv2

    cv2 = load_cv2()
    width, height = image_size(data, where)
    check_whole(data, where)
    with _library_messages() as messages:
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            picture = None
    # libjpeg fills what is lost with grey and only says so
    if any(b"premature end" in message for message in messages):
        picture = None
    if picture is None or picture.shape != (height, width, 3):
        raise EqaError(f"{where}: damaged picture, OpenCV cannot decode it; fetch or extract it again")
    return picture


@contextlib.contextmanager
def _library_messages() -> Iterator[list[bytes]]:
    """What C libraries write to stderr meanwhile: libpng and libjpeg know no other way. Filled at the end."""
    messages: list[bytes] = []
    sys.stderr.flush()
    with tempfile.TemporaryFile() as catcher:
        kept = os.dup(2)
        os.dup2(catcher.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            catcher.seek(0)
            messages += catcher.read(65536).splitlines()


def read_picture_file(path: Path) -> bytes:
    """Bytes of a picture file.

    Raises:
        EqaError: missing, no regular file, empty or larger than MAX_IMAGE_BYTES.
    """
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise EqaError(f"{path}: no regular file; a PNG or JPEG picture is wanted")
        if not 0 < info.st_size <= MAX_IMAGE_BYTES:
            raise EqaError(
                f"{path}: {info.st_size} bytes, 1 to {MAX_IMAGE_BYTES} are possible; fetch or extract it again"
            )
        return path.read_bytes()
    except OSError as error:
        raise EqaError(f"{path}: cannot be read ({error.strerror}); mend it or fetch it again") from None


def _check_indices(indices: Sequence[int], count: int, where: Path) -> None:
    if any(not 0 <= i < count for i in indices):
        raise IndexError(f"{where}: frames {list(indices)} of {count}")


# ------------------------------------------------------------------------------------------------ sources


class FrameFolder:
    """A folder of *-rgb.png (or .jpg), sorted by name."""

    def __init__(self, folder: Path, limit: int | None = None):
        self._files = [folder / name for name, _ in frame_files(folder)][:limit]
        self.count = len(self._files)
        if not self.count:
            raise EqaError(f"{folder}: no *-rgb.png and no *-rgb.jpg in it; extract the episode's frames again")
        self.width, self.height = image_size(read_picture_file(self._files[0]), str(self._files[0]))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        _check_indices(indices, self.count, self._files[0].parent)
        for i in indices:
            picture = decode_image(read_picture_file(self._files[i]), str(self._files[i]))
            self._check_size(i, picture.shape[1], picture.shape[0])
            yield picture

    def jpeg(self, indices: Sequence[int]) -> list[bytes] | None:
        return None  # nearly always PNG; one path for both keeps one quality

    def check(self, indices: Sequence[int]) -> None:
        _check_indices(indices, self.count, self._files[0].parent)
        for i in sorted(set(indices)):
            data = read_picture_file(self._files[i])
            self._check_size(i, *image_size(data, str(self._files[i])))
            check_whole(data, str(self._files[i]))

    def _check_size(self, index: int, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            raise EqaError(
                f"{self._files[index]}: {width}x{height} px, the episode's first frame has {self.width}x{self.height}; "
                f"extract the episode's frames again"
            )

    def close(self) -> None:
        pass


class SpooledFrames(FrameFolder):
    """Some frames of an episode, kept as files under their index; others raise KeyError."""

    def __init__(self, files: Mapping[int, Path], count: int):
        self._files = files  # type: ignore[assignment]  # indexed alike
        self.count = count
        first = files[min(files)]
        self.width, self.height = image_size(read_picture_file(first), str(first))

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for i in indices:
            picture = decode_image(read_picture_file(self._files[i]), str(self._files[i]))
            self._check_size(i, picture.shape[1], picture.shape[0])
            yield picture


def check_container(path: Path) -> None:
    """Refuse a video that is shorter than its container says: decord would take the rest for the whole.

    Reads the sizes of mp4's top-level boxes, of AVI's RIFF chunks or of Matroska's segment; no pictures.

    Raises:
        EqaError: empty or cut off.
    """
    size = _file_bytes(path)
    if size == 0:
        raise EqaError(f"{path}: empty file; fetch the video again")
    try:
        with path.open("rb") as file:
            end = _container_end(file.read(64), file, size)
    except OSError as error:
        raise EqaError(f"{path}: cannot be read ({error.strerror}); mend its permissions or fetch it again") from None
    if end > size:
        raise EqaError(f"{path}: cut off at {size} of {end} bytes; fetch the video again")


def _container_end(head: bytes, file: BinaryIO, size: int) -> int:
    """Bytes that the container claims, as far as it does; `size` where it does not."""
    if head[4:8] == b"ftyp":
        at = 0
        while at + 8 <= size:
            file.seek(at)
            box = file.read(16)
            length = struct.unpack(">I", box[:4])[0]
            if length == 1 and len(box) == 16:
                length = struct.unpack(">Q", box[8:16])[0]
            if length < 8:  # 0: up to the end of the file; 2 to 7: no box, decord will tell
                return size
            at += length
        return at if at > size else size
    if head[:4] == b"RIFF" and len(head) >= 8:
        return 8 + int(struct.unpack("<I", head[4:8])[0])
    if head[:4] == b"\x1a\x45\xdf\xa3":
        try:
            at, length = _matroska_size(head, 4)
            at += length
            if head[at : at + 4] == b"\x18\x53\x80\x67":
                start, length = _matroska_size(head, at + 4)
                return start + length
        except (IndexError, ValueError):  # no size, as a live recording, or a head of odd length: decord will tell
            return size
    return size


def _matroska_size(data: bytes, at: int) -> tuple[int, int]:
    """(offset behind it, value) of a variable-length size; ValueError for "unknown"."""
    width = 9 - data[at].bit_length()
    if width > 8:
        raise ValueError("no size")
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    if value == (1 << 7 * width) - 1:
        raise ValueError("unknown size")
    return at + width, value


class VideoFile:
    """A video by decord: seeks to the key frame before each wanted frame and decodes from there."""

    def __init__(self, path: Path, limit: int | None = None):
        self._path = path
        check_container(path)
        self._decoder: Decoder | None = take_decoder()
        try:
            try:
                total = self._decoder.open(path)
            except DecoderError:
                raise EqaError(
                    f"{path}: decord finds no video in it; it is cut off or no mp4, mkv or avi; fetch it again"
                ) from None
            except DecoderDied as death:
                raise self._killer(death) from None
            if total < 1:
                raise EqaError(f"{path}: a video of 0 frames; fetch it again")
            self.count = min(total, limit or total)
            self._first = self._batch([0])[0]  # kept: it is nearly always wanted, and seeking back to it costs
            self.height, self.width = self._first.shape[:2]
            _check_size(self.width, self.height, str(path))
        except EqaError:
            self.close()
            raise

    def _killer(self, death: DecoderDied) -> EqaError:
        self._decoder = None
        return EqaError(
            f"{self._path}: decord fails on it ({death}); the video is damaged, or memory is short; fetch it again"
        )

    def _batch(self, indices: list[int]) -> np.ndarray:
        """RGB (len(indices), height, width, 3)."""
        try:
            frames = self._decoder.frames(indices)
        except DecoderError:
            label = f"one of frames {', '.join(map(str, indices[:64]))}" if len(indices) > 1 else f"frame {indices[0]}"
            raise EqaError(
                f"{self._path}: {label} cannot be decoded; the video is damaged or cut off; fetch it again"
            ) from None
        except DecoderDied as death:
            raise self._killer(death) from None
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise EqaError(f"{self._path}: frame {indices[0]} is no RGB picture; fetch the video again")
        return frames

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        import numpy as np

        _check_indices(indices, self.count, self._path)
        rest = [int(i) for i in indices]
        while rest and rest[0] == 0:
            yield np.ascontiguousarray(self._first[:, :, ::-1])
            rest = rest[1:]
        size = max(1, _VIDEO_BATCH_BYTES // (self.width * self.height * 3))
        for start in range(0, len(rest), size):
            for picture in self._batch(rest[start : start + size]):
                yield np.ascontiguousarray(picture[:, :, ::-1])

    def jpeg(self, indices: Sequence[int]) -> list[bytes] | None:
        return None

    def check(self, indices: Sequence[int]) -> None:
        """Decode the last wanted frame: a file that was cut off fails there."""
        _check_indices(indices, self.count, self._path)
        self._batch([max(indices)])

    def close(self) -> None:
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            with contextlib.suppress(DecoderDied):
                decoder.release()


class SensFile:
    """ScanNet's .sens, version 4: seeks over what is not wanted.

    Source: the format as ScanNet's SensReader (SensorData.py) reads it: header, then per frame a pose, two times, two
    sizes, the colour JPEG and the packed depth.
    """

    def __init__(self, path: Path, limit: int | None = SCANNET_FRAMES):
        self._path = path
        self._size = _file_bytes(path)
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise EqaError(
                f"{path}: cannot be read ({error.strerror}); mend its permissions or fetch it again"
            ) from None
        try:
            self._read_header(limit)
            self._places = self._find_frames()
        except BaseException:
            self._file.close()
            raise

    def _at(self, offset: int, size: int, what: str) -> bytes:
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise EqaError(f"{self._path}: cannot be read ({error.strerror}); fetch it again") from None
        if len(data) != size:
            raise EqaError(f"{self._path}: ends early, within {what} (byte {self._size}); fetch the .sens again")
        return data

    def _read_header(self, limit: int | None) -> None:
        version, name_bytes = struct.unpack("<IQ", self._at(0, 12, "the header"))
        if version != SENS_VERSION:
            raise EqaError(
                f"{self._path}: .sens version {version}, only {SENS_VERSION} is known; fetch ScanNet's release"
            )
        if name_bytes > 4096:
            raise EqaError(f"{self._path}: claims a sensor name of {name_bytes} bytes; damaged, fetch the .sens again")
        at = 12 + name_bytes + 4 * 64
        color, _, width, height, _, _, _, frames = struct.unpack("<iiIIIIfQ", self._at(at, 36, "the header"))
        if color != SENS_JPEG:
            names = {0: "raw", 1: "png"}
            raise EqaError(
                f"{self._path}: colour compression {color} ({names.get(color, 'unknown')}), only {SENS_JPEG} "
                f"(jpeg) is read; ScanNet's release has jpeg"
            )
        _check_size(width, height, str(self._path), "colour of ")
        self._first = at + 36
        room = (self._size - self._first) // _SENS_FRAME_BYTES
        if frames > room:
            raise EqaError(
                f"{self._path}: claims {frames} frames, its {self._size} bytes hold {room} at most; "
                f"fetch the .sens again"
            )
        if frames == 0:
            raise EqaError(f"{self._path}: a .sens of 0 frames; fetch it again")
        self.width, self.height = width, height
        self.total = frames
        self.count = min(frames, limit or frames)

    def _find_frames(self) -> list[tuple[int, int]]:
        """(offset, bytes) of each JPEG within the limit."""
        places = []
        at = self._first
        for i in range(self.count):
            color, depth = struct.unpack("<QQ", self._at(at + 80, 16, f"frame {i}"))
            at += _SENS_FRAME_BYTES
            if color > MAX_IMAGE_BYTES or at + color + depth > self._size:
                raise EqaError(
                    f"{self._path}: frame {i} claims {color} + {depth} bytes, {max(0, self._size - at)} are left; "
                    f"cut off or damaged, fetch the .sens again"
                )
            places.append((at, color))
            at += color + depth
        return places

    def _jpeg_of(self, index: int) -> bytes:
        data = self._at(*self._places[index], f"frame {index}")
        where = f"{self._path}: frame {index}"
        if data[:2] != b"\xff\xd8":
            raise _no_picture(where)
        size = image_size(data, where)
        check_whole(data, where)
        if size != (self.width, self.height):
            raise EqaError(
                f"{where}: {size[0]}x{size[1]} px, the header says {self.width}x{self.height}; fetch the .sens again"
            )
        return data

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        _check_indices(indices, self.count, self._path)
        for i in indices:
            yield decode_image(self._jpeg_of(i), f"{self._path}: frame {i}")

    def jpeg(self, indices: Sequence[int]) -> list[bytes] | None:
        _check_indices(indices, self.count, self._path)
        found = {i: self._jpeg_of(i) for i in set(indices)}
        for i, data in found.items():
            decode_image(data, f"{self._path}: frame {i}")  # whole at both ends is not whole in between
        return [found[i] for i in indices]

    def check(self, indices: Sequence[int]) -> None:
        _check_indices(indices, self.count, self._path)
        for i in sorted(set(indices)):
            self._jpeg_of(i)

    def close(self) -> None:
        self._file.close()


def _file_bytes(path: Path) -> int:
    try:
        info = os.stat(path)
    except OSError as error:
        raise EqaError(f"{path}: cannot be read ({error.strerror}); mend it or fetch it again") from None
    if not stat.S_ISREG(info.st_mode):
        raise EqaError(f"{path}: no regular file; fetch it again")
    return info.st_size

"""torch's `.pt` files (zip archives, since torch 1.6) read and written without torch, and without running a pickle.

An archive holds `NAME/data.pkl`, which says how tensors lie in storages, and `NAME/data/<key>`, the storages' bytes,
uncompressed. Whoever unpickles a file runs whatever it asks for; here data.pkl may only name what a tensor consists
of, each name stands for a function of this file, and anything else is refused before it runs.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from hybrid_retrieval.errors import InputError

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# What torch.save writes for tensors, in every protocol. Not among it: whatever sets state or makes objects.
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BINPERSID"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"),
}
# A description of a few tensors has a few hundred bytes. The bound is for the memory that reading one can take.
_MOST_PICKLE_BYTES = 1 << 16
_MOST_MEMO = 1 << 12

# What zipfile lets out for damaged archives: of a broken name, an unknown method, an encrypted member, ...
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, UnicodeDecodeError),
)
_PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError)


class _Storage(NamedTuple):
    """A storage as data.pkl refers to it: so many elements of a dtype in member `data/<key>`."""

    dtype: np.dtype[Any]
    key: str
    elements: int


class _Layout(NamedTuple):
    """A contiguous tensor: `shape` elements of a storage from element `start`."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TorchArray:
    """A tensor of a `.pt` file, read when asked for. start: bytes before it in its member."""

    path: Path
    member: str
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self) -> NDArray[Any]:
        """The whole tensor, in memory. Raises `InputError` for a damaged file."""
        with self._reading() as file:
            data = self._take(file, self.dtype.itemsize * math.prod(self.shape))
            self._finish(file)
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """The tensor in blocks of up to `rows` along the first axis. Raises `InputError` for a damaged file.

        That the archive's checksum holds is known only after the last block.
        """
        row_shape = self.shape[1:]
        row_bytes = self.dtype.itemsize * math.prod(row_shape)
        with self._reading() as file:
            for first in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - first)
                yield np.frombuffer(self._take(file, count * row_bytes), self.dtype).reshape(count, *row_shape)
            self._finish(file)

    @contextmanager
    def _reading(self) -> Iterator[IO[bytes]]:
        """The member, from the tensor's first byte."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                skipped = 0
                while skipped < self.start:
                    skipped += len(self._take(file, min(self.start - skipped, 1 << 20)))
                yield file
        except _ZIP_ERRORS as error:
            raise _damaged(self.path, str(error)) from None

    def _take(self, file: IO[bytes], count: int) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise _damaged(self.path, f"{self.member} ends early")
        return data

    def _finish(self, file: IO[bytes]) -> None:
        """Read to the end of the member, where zipfile compares the checksum."""
        while file.read(1 << 20):
            pass


def open_tensors(path: Path) -> list[TorchArray]:
    """The tensors that a `.pt` file holds: one, or those of a tuple or list, in order.

    Raises `InputError` that names the file: for one that is missing, truncated, no torch archive, or that holds
    anything but contiguous tensors of the dtypes in `STORAGE_DTYPES`.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; is the index complete?") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if magic[:1] == b"\x80":
        raise InputError(
            f"{path}: expected torch's zip format, got a bare pickle as torch wrote before 1.6, which is not safe to "
            "read; load it with torch and save it again with torch.save"
        )
    if magic != b"PK\x03\x04":
        raise InputError(f"{path}: expected a file that torch.save wrote (a zip archive), got something else")
    try:
        with zipfile.ZipFile(path) as archive:
            return _open(path, archive)
    except _ZIP_ERRORS as error:
        raise _damaged(path, str(error)) from None


def open_tensor(path: Path) -> TorchArray:
    """The one tensor that a file holds. Raises `InputError`."""
    tensors = open_tensors(path)
    if len(tensors) != 1:
        raise InputError(f"{path}: expected one tensor, got {len(tensors)}")
    return tensors[0]


def _open(path: Path, archive: zipfile.ZipFile) -> list[TorchArray]:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise InputError(f"{path}: expected a file that torch.save wrote, got a zip archive without one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    size_on_disk = path.stat().st_size
    for name in (pickles[0], f"{folder}byteorder"):
        if name in members and members[name].file_size > _MOST_PICKLE_BYTES:
            raise InputError(
                f"{path}: expected the description of a tensor in {name}, got {members[name].file_size} bytes"
            )
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise InputError(
            f"{path}: expected little-endian numbers, got others; save it again on a little-endian machine"
        )
    found = []
    for layout in _layouts(path, archive.read(pickles[0])):
        name = f"{folder}data/{layout.storage.key}"
        size = layout.storage.elements * layout.storage.dtype.itemsize
        info = members.get(name)
        if info is None or info.file_size != size or info.compress_type != zipfile.ZIP_STORED or size > size_on_disk:
            got = "nothing" if info is None else f"{info.file_size} (method {info.compress_type})"
            raise InputError(f"{path}: expected {size} uncompressed bytes in {name}, got {got}; copy the index anew")
        start = layout.start * layout.storage.dtype.itemsize
        found.append(TorchArray(path, name, start, layout.storage.dtype, layout.shape))
    return found


def _layouts(path: Path, data: bytes) -> list[_Layout]:
    """Read data.pkl: what it may do is checked first, and what it may name while it is read."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                _refuse(path, f"the pickle instruction {opcode.name}")
            if opcode.name == "LONG_BINPUT" and int(argument or 0) >= _MOST_MEMO:
                _refuse(path, f"a pickle with entry {argument} in its memo")
        value = _TensorUnpickler(path, data).load()
    except InputError:
        raise
    except _PICKLE_ERRORS as error:
        raise _damaged(path, f"data.pkl: {error or type(error).__name__}") from None
    layouts = list(value) if type(value) in (tuple, list) else [value]
    for layout in layouts:
        if not isinstance(layout, _Layout):
            _refuse(path, f"a {type(layout).__name__}")
    return layouts


class _TensorUnpickler(pickle.Unpickler):
    """Knows three names, and gives none of them as what it is in Python."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("collections", "OrderedDict"): _no_hooks,
        }
        if (module, name) not in known:
            _refuse(self._path, f"a pickle that asks for {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
            _, dtype, key, _, elements = pid
            if isinstance(dtype, np.dtype) and isinstance(key, str) and _is_count(elements):
                return _Storage(dtype, key, elements)
        _refuse(self._path, "a reference to something that is no storage")

    def _tensor(
        self, storage: Any, start: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, *more: Any
    ) -> _Layout:
        sizes_known = type(shape) is tuple and type(strides) is tuple and all(map(_is_count, (start, *shape, *strides)))
        if not isinstance(storage, _Storage) or not sizes_known or len(shape) != len(strides) or more:
            _refuse(self._path, "a malformed tensor")
        step = 1
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if size > 1 and stride != step and 0 not in shape:
                raise InputError(
                    f"{self._path}: expected a contiguous tensor, got shape {shape} with strides {strides}; "
                    "save its .contiguous() with torch"
                )
            step *= size
        if start + math.prod(shape) > storage.elements:
            raise InputError(
                f"{self._path}: a tensor of shape {shape} from element {start} does not fit its storage of "
                f"{storage.elements}"
            )
        return _Layout(storage, start, shape)


def _no_hooks() -> None:
    """Stands for the empty OrderedDict of backward hooks that every tensor is saved with."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path}: expected tensors and nothing else, got {what}; refused, nothing of it was run")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: truncated or damaged ({reason}); copy the index anew")


@dataclass(frozen=True, slots=True)
class Blocks:
    """An array to write, given block by block along its first axis. The blocks add up to `shape`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterable[NDArray[Any]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Blocks:
        """An array that is in memory."""
        return cls(array.dtype, array.shape, [array])


# colbert-ai's memory-mapped mode takes it that a tensor starts at this byte (`residual_embeddings.py`, 0.2.22).
_FIRST_DATA = 320
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
# zipfile writes the long form of a header from about here; written always from here, its length is known before.
_LONG_MEMBER_BYTES = 1 << 30


def save_tensors(path: Path, arrays: Blocks | Sequence[Blocks]) -> None:
    """Write what `torch.save` writes for one tensor, or for a tuple of tensors. The same arrays give the same bytes."""
    single = isinstance(arrays, Blocks)
    listed = [arrays] if isinstance(arrays, Blocks) else list(arrays)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, array in enumerate(listed):
            _write_storage(archive, f"archive/data/{key}", array)
        described = b"".join(_describe(str(key), array) for key, array in enumerate(listed))
        body = described if single else b"(" + described + b"t"
        for name, data in (("data.pkl", b"\x80\x02" + body + b"."), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _write_storage(archive: zipfile.ZipFile, name: str, array: Blocks) -> None:
    size = array.dtype.itemsize * math.prod(array.shape)
    long = size >= _LONG_MEMBER_BYTES
    info = zipfile.ZipInfo(name)
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(name) + (_ZIP64_EXTRA_BYTES if long else 0)
    smallest = start + 4  # an extra field has a head of 4 bytes
    wanted = _FIRST_DATA if smallest <= _FIRST_DATA else -(-smallest // _ALIGNMENT) * _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", wanted - smallest) + bytes(wanted - smallest)
    written = 0
    with archive.open(info, "w", force_zip64=long) as file:
        for block in array.blocks:
            data = np.ascontiguousarray(block, array.dtype)
            file.write(data.reshape(-1).view(np.uint8).data)
            written += data.nbytes
    assert written == size, f"{name}: {written} bytes of {size}"


def _describe(key: str, array: Blocks) -> bytes:
    """The pickle of one tensor, as torch.save writes it; torch's names need not be importable for it."""
    storage = next(name for name, dtype in STORAGE_DTYPES.items() if dtype == array.dtype)
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(len(array.shape)))
    elements = math.prod(array.shape)
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            *(_plain("storage"), f"ctorch\n{storage}\n".encode(), _plain(key), _plain("cpu"), _plain(elements)),
            b"tQ",
            *(_plain(0), _plain(array.shape), _plain(strides), _plain(False)),
            b"ccollections\nOrderedDict\n)RtR",
        )
    )


def _plain(value: Any) -> bytes:
    """The instructions for a string, number or tuple: its pickle without head and end."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]

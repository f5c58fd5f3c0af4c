"""Messages of the policy server as bytes: msgpack with arrays as .npy, read under limits of size, depth and type.

What a message means is `vla.deploy.dialects`'; sending it is the server's and the client's. The layout is that of the
public Apache-2.0 code of GR00T N1.5 to N1.7: an array is a map ``{"__ndarray_class__": true, "as_npy": bytes}`` whose
bytes are a whole .npy file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError, MissingDependencyError, UnsafeInputError

__all__ = ["DTYPES", "MAX_MESSAGE_BYTES", "ModalityConfig", "array_from_npy", "array_to_npy", "pack", "unpack"]

MAX_MESSAGE_BYTES = 32 * 2**20
"""Largest message that is read unless told otherwise: sixteen views of 640 x 1024 px."""
DTYPES = ("|u1", "|b1", "<f2", "<f4", "<f8", "<i4", "<i8")
"""Element types that an array may have, as .npy spells them; never objects, strings or records."""
_MAX_DIMENSIONS = 6
_MAX_DEPTH = 8
_MAX_ITEMS = 4096
"""Items of a list or entries of a map."""
_MAX_TEXT_BYTES = 64 * 1024
_HEADER = re.compile(
    rb"\{'descr': '([|<>=][A-Za-z][0-9]{1,2})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)
_MAGIC = b"\x93NUMPY"
_ARRAY, _ARRAY_BYTES = "__ndarray_class__", "as_npy"
_MODALITY, _MODALITY_JSON = "__ModalityConfig_class__", "as_json"


@dataclass(frozen=True)
class ModalityConfig:
    """What one kind of input or output looks like, as GR00T's clients ask for it."""

    as_json: Any
    """JSON text in N1.5, a map from N1.6 on."""


def pack(message: Any) -> bytes:
    """Returns the bytes of a message of plain data, arrays and `ModalityConfig`."""
    return bytes(_msgpack().packb(message, default=_encode, use_bin_type=True))


def unpack(data: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """Reads a message; nothing in it is run, and nothing larger than the message itself is allocated for it.

    Args:
        data: one msgpack value.
        max_bytes: largest message that is read.

    Raises:
        UnsafeInputError: the message is too large, too deep or too long, or an array has a type that is not served.
        DataError: the bytes are no message.
    """
    if len(data) > max_bytes:
        raise UnsafeInputError(f"the message has {len(data):,} bytes, at most {max_bytes:,} are read")
    limits = {"max_str_len": _MAX_TEXT_BYTES, "max_bin_len": max_bytes, "max_ext_len": 0}
    try:
        value = _msgpack().unpackb(
            data, raw=False, strict_map_key=True, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS, **limits
        )
    except RecursionError as error:
        raise UnsafeInputError("the message is nested too deeply") from error
    except Exception as error:  # the library's errors share no base class but this
        text = " ".join(str(error).split())[:200]
        raise DataError(f"the message is not msgpack as it is read here ({type(error).__name__}: {text})") from error
    return _decode(value, 0)


def array_to_npy(array: NDArray[Any]) -> bytes:
    """Returns the bytes of a .npy file (version 1.0, C order) that holds an array.

    Raises:
        UnsafeInputError: its element type is not served.
    """
    data = np.ascontiguousarray(array).reshape(np.shape(array))
    descr = data.dtype.newbyteorder("<").str
    if descr not in DTYPES:
        raise UnsafeInputError(f"an array of type {data.dtype} cannot be sent; use one of {_names()}")
    shape = f"({len(data)},)" if data.ndim == 1 else str(tuple(data.shape))
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(_MAGIC) + 4 + len(header) + 1) % 64) + b"\n"
    return _MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header + data.astype(descr, copy=False).tobytes()


def array_from_npy(data: bytes) -> NDArray[Any]:
    """Reads the bytes of a .npy file without trusting its header: what it claims must fit the bytes that are there.

    Raises:
        UnsafeInputError: the element type is not served (objects never are), or the header claims another size.
        DataError: the bytes are no .npy file.
    """
    length = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length
    end = start + int.from_bytes(data[8:start], "little")
    match = _HEADER.fullmatch(data[start:end]) if end - start <= 1024 else None
    if not data.startswith(_MAGIC) or data[6:7] not in (b"\x01", b"\x02", b"\x03") or match is None:
        raise DataError("an array's bytes are not a .npy file")
    descr = match[1].decode()
    if descr not in DTYPES:
        raise UnsafeInputError(f"an array has the type '{descr}', which is not read; use one of {_names()}")
    shape = _shape(match[3].decode())
    dtype = np.dtype(descr)
    if math.prod(shape) * dtype.itemsize != len(data) - end:
        raise UnsafeInputError(
            f"an array claims the shape {list(shape)} of {dtype}, its {len(data) - end} bytes do not"
        )
    order = "F" if match[2] == b"True" else "C"
    return np.frombuffer(data, dtype, offset=end).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) > _MAX_DIMENSIONS or any(not part.isdigit() or len(part) > 10 for part in parts):
        raise UnsafeInputError(
            f"an array claims the shape ({text[:80]}); at most {_MAX_DIMENSIONS} dimensions are read"
        )
    return tuple(int(part) for part in parts)


def _names() -> str:
    return ", ".join(str(np.dtype(d)) for d in DTYPES)


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _ARRAY_BYTES: array_to_npy(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, ModalityConfig):
        return {_MODALITY: True, _MODALITY_JSON: value.as_json}
    raise TypeError(f"a message cannot hold a {type(value).__name__}")


def _decode(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UnsafeInputError(f"the message is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        if not isinstance(value.get(_ARRAY_BYTES), bytes):
            raise DataError(f"an array has no '{_ARRAY_BYTES}' with bytes")
        return array_from_npy(value[_ARRAY_BYTES])
    if _MODALITY in value:
        return ModalityConfig(_decode(value.get(_MODALITY_JSON), depth + 1))
    return {key: _decode(item, depth + 1) for key, item in value.items()}


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise MissingDependencyError(
            "the policy protocol needs msgpack: pip install 'latent-pyramid[serve]'"
        ) from error
    return msgpack

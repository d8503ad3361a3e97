"""Read arrays of numbers from a pickle without calling functions of NumPy that could access arbitrary memory.

NumPy's own functions trust a pickle: a forged data type can claim to hold no objects, and eight bytes of the
file are then used as an object's address. Here stand-ins record what the file describes, and arrays are made
of it afterwards, of plain numbers only.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

NUMERIC_TYPE = re.compile(r"[biuf]\d{1,2}")
"""The data types allowed, as a pickle names them: booleans, integers and floats, with their size in bytes."""


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Some of the values of a pickled dictionary: arrays, or lists, of numbers.

    Args:
        path: of the pickle, any protocol, of Python 2 or 3.
        names: of the values; missing ones are ignored.

    Raises:
        OSError: it cannot be read.
        Exception: of any other kind, if it is no such pickle, damaged or malicious.
    """
    with path.open("rb") as file:
        held = _ArraysOnly(file, encoding="latin1").load()
    if not isinstance(held, dict):
        raise pickle.UnpicklingError(f"expected a dictionary of arrays, not {type(held).__name__}")
    return {name: _numbers(held[name], name) for name in names if name in held}


def _numbers(value: Any, name: str) -> NDArray[Any]:
    if isinstance(value, _Array):
        return value.made()
    if not isinstance(value, list) or not all(type(number) in (bool, int, float) for number in value):
        raise pickle.UnpicklingError(f"its {name} are not numbers")
    return np.array(value)


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *_: object) -> None:
        if not NUMERIC_TYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("it holds an array of something other than numbers")
        self.order = order

    def made(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for ``numpy.ndarray``, and for an array that is being read."""

    def __init__(self, *_: object) -> None:
        self.dtype: _Type | None = None

    @classmethod
    def from_buffer(cls, data: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
        """Of protocol 5."""
        array = cls()
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, by_columns, self.data = state
        self.order: Literal["F", "C"] = "F" if by_columns else "C"

    def made(self) -> NDArray[Any]:
        if not isinstance(self.dtype, _Type):
            raise pickle.UnpicklingError("it holds an array of no type")
        # Python 2 had its bytes as text.
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        array: NDArray[Any] = np.frombuffer(data, self.dtype.made()).reshape(self.shape, order=self.order)
        return array


def _latin1(text: str, encoding: str) -> bytes:
    """What bytes of an old pickle are made with, and no other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Makes plain containers and stand-ins for arrays; any other name in the file is refused."""

    NAMES: ClassVar = {
        "_codecs.encode": _latin1,
        "numpy.ndarray": _Array,
        "numpy.dtype": _Type,
        **dict.fromkeys(
            ["numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"], _Array
        ),
        **dict.fromkeys(
            ["numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"], _Array.from_buffer
        ),
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for one of the few functions that an array is pickled with."""
        asked = f"{module}.{name}"
        if asked not in self.NAMES:
            raise pickle.UnpicklingError(f"it asks for {asked}")
        return self.NAMES[asked]

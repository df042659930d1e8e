"""Reading safetensors: a length, a JSON table and raw bytes, with nothing that could run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medvol.core import WeightsError

_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a ``.safetensors`` file.

    Raises:
        WeightsError: If the header or a tensor's place in the file is not what the format requires.

    Source:
        https://huggingface.co/docs/safetensors, section Format.
    """
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if len(content) < 8 or length > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise WeightsError(f"{path}: is not a whole safetensors file")
    try:
        table: Any = json.loads(bytes(content[8:start]), object_pairs_hook=_unique)
        rows = {name: row for name, row in table.items() if name != "__metadata__"}
        _require_gapless([row["data_offsets"] for row in rows.values()], len(content) - start)
        return {name: _tensor(memoryview(content)[start:], row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: is not a whole safetensors file: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _require_gapless(offsets: list[Any], length: int) -> None:
    """The format allows no byte to be shared by two tensors or to belong to none."""
    position = 0
    for begin, end in sorted(offsets):
        if begin != position:
            raise ValueError(f"its tensors overlap or leave a hole at byte {begin}")
        position = end
    if position != length:
        raise ValueError(f"holds {length} bytes of tensors, its header describes {position}")


def _tensor(buffer: memoryview, row: Any) -> Tensor:
    dtype, shape = _DTYPES[row["dtype"]], row["shape"]
    begin, end = row["data_offsets"]
    if not isinstance(shape, list) or any(type(n) is not int for n in (*shape, begin, end)):
        raise ValueError(f"a shape {shape!r} or an offset is not a whole number")
    count = math.prod(shape)
    if min([begin, *shape]) < 0 or end > len(buffer) or end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not fit bytes {begin} to {end}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer[begin:end], dtype=torch.uint8).view(dtype).reshape(shape).clone()

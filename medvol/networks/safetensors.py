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
        WeightsError: If the header or a tensor's place in the file is not what the format says.

    Source:
        https://huggingface.co/docs/safetensors, section Format.
    """
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if len(content) < 8 or length > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise WeightsError(f"{path}: is not a whole safetensors file")
    try:
        table: Any = json.loads(bytes(content[8:start]))
        rows = {name: row for name, row in table.items() if name != "__metadata__"}
        return {name: _tensor(memoryview(content)[start:], row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: is not a whole safetensors file: {error}") from error


def _tensor(buffer: memoryview, row: Any) -> Tensor:
    dtype, shape = _DTYPES[row["dtype"]], [int(n) for n in row["shape"]]
    begin, end = (int(n) for n in row["data_offsets"])
    count = math.prod(shape)
    if min([begin, *shape]) < 0 or end > len(buffer) or end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not fit bytes {begin} to {end}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer[begin:end], dtype=torch.uint8).view(dtype).reshape(shape).clone()

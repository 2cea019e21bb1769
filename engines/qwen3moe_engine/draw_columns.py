"""Parameters of a step's draws by column, as the sampling kernel takes them and as they travel to other ranks.

Owns: their names and dtypes. Must not know who draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3moe_engine.logits import Draw

DrawColumns = dict[str, NDArray]  # of one length: that of `offset`
# A row's parameters, in the order of the kernel's arrays; the 64-bit ones first, so that all are aligned.
PARAMETERS = {
    "seed": np.uint64,
    "offset": np.uint64,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
}
ROW_BYTES = sum(np.dtype(dtype).itemsize for dtype in PARAMETERS.values())


def columns_of(draws: Sequence[Draw]) -> DrawColumns:
    """An array for each of PARAMETERS, in their dtypes, with an element for each draw."""
    params = [given.params for given in draws]
    # 0 for a greedy row that has no seed
    values = {name: [getattr(each, name) or 0 for each in params] for name in PARAMETERS if name != "offset"}
    values["offset"] = [given.offset for given in draws]
    return {name: np.array(values[name], dtype) for name, dtype in PARAMETERS.items()}

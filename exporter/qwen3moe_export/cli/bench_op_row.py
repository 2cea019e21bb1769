"""An operator's measured time beside its bound and a peer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen3moe_engine.bench.steps import Times

if TYPE_CHECKING:
    from qwen3moe_engine.bench.ops.rig import Work

HEADER = ["op", "us", "p90", "GB/s", "TFLOP/s", "bound us", "of the bound", "peer us", "peer / ours"]


@dataclass(frozen=True)
class OpRow:
    """Times in microseconds. name: as in the file of a peer's figures. peer: None if that has none."""

    name: str
    median: float
    p90: float
    gigabytes_per_second: float
    teraflops: float
    bound: float
    peer: float | None = None

    @property
    def cells(self) -> list[str]:
        times = [f"{self.median:.2f}", f"{self.p90:.2f}"]
        rates = [f"{self.gigabytes_per_second:.0f}", f"{self.teraflops:.0f}" if self.teraflops else ""]
        bound = [f"{self.bound:.2f}", f"{100 * self.bound / self.median:.0f} %"]
        peer = [f"{self.peer:.1f}", f"{self.peer / self.median:.2f}"] if self.peer else ["", ""]
        return [self.name, *times, *rates, *bound, *peer]


def make_op_row(name: str, times: Times, work: Work, bound: float, peer: float | None) -> OpRow:
    """bound: microseconds."""
    seconds = times.median * 1e-3
    rates = work.num_bytes / seconds / 1e9, work.num_flops / seconds / 1e12
    return OpRow(name, times.median * 1e3, times.percentile(90) * 1e3, *rates, bound, peer)

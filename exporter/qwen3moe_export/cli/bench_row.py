"""A measured time beside its bound and a peer's."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3moe_engine.bench.steps import Times

HEADER = ["case", "ms", "p90", "tok/s", "bound ms", "of the bound", "peer ms", "peer / ours"]


@dataclass(frozen=True)
class Row:
    """Times in milliseconds. name: as in the file of a peer's figures. bound: by memory traffic, None if not known."""

    name: str
    median: float
    p90: float
    tokens_per_second: float
    bound: float | None = None
    peer: float | None = None

    @property
    def cells(self) -> list[str]:
        bound = [f"{self.bound:.2f}", f"{100 * self.bound / self.median:.0f} %"] if self.bound else ["", ""]
        peer = [f"{self.peer:.2f}", f"{self.peer / self.median:.2f}"] if self.peer else ["", ""]
        return [self.name, f"{self.median:.3f}", f"{self.p90:.3f}", f"{self.tokens_per_second:.0f}", *bound, *peer]


def make_row(name: str, times: Times, num_tokens: int, bound: float | None, peer: float | None) -> Row:
    return Row(name, times.median, times.percentile(90), num_tokens / times.median * 1e3, bound, peer)

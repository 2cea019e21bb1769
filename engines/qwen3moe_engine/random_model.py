"""A model of pseudo-random weights: where each tensor's values are drawn from.

Owns: seeds and ranges by a tensor's name, and how far routers prefer some experts. Must not know where values are made.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from statistics import NormalDist

from qwen3moe_engine.checkpoint import StoredTensor
from qwen3moe_plugins.errors import InputError

# Variance of a token's preference, as a share of its square: how far tokens differ in how much they like the preferred
# experts. At 1/20 few tokens (below 1 %) choose none of 8 experts that take half of all assignments.
PREFERENCE_VARIANCE = 1 / 20
# What layers add to the residual stream of a model that prefers experts. Its tokens have something in common, which
# attention, a mean over tokens, would double in each layer: at depth all would choose alike.
BRANCH_SCALE = 0.1


@dataclass(frozen=True)
class RouterSkew:
    """In every layer the first `num_experts` experts take about `share` of all assignments, evenly; the others the
    rest. With EP these are the first ranks'."""

    share: float
    num_experts: int

    @classmethod
    def parse(cls, text: str, option: str) -> RouterSkew:
        """Of `SHARE/EXPERTS`, such as 0.9/8. Raises InputError."""
        if not re.fullmatch(r"0?\.\d+/[1-9]\d*", text):
            expected = "a share below 1 and a number of experts, such as 0.9/8"
            raise InputError(option, got=repr(text), expected=expected, remedy="write it so")
        share, _, num_experts = text.partition("/")
        return cls(float(share), int(num_experts))

    def __str__(self) -> str:
        return f"{self.share:g}/{self.num_experts}"

    def rates(self, num_experts: int, top_k: int) -> tuple[float, float]:
        """Of a model's experts: how many of all tokens choose a preferred one, and how many another one."""
        others = num_experts - self.num_experts
        return self.share * top_k / self.num_experts, (1.0 - self.share) * top_k / max(others, 1)

    def check(self, num_experts: int, top_k: int) -> None:
        """Raises InputError for a share that these experts do not take by choosing each at most once a token."""
        preferred, other = self.rates(num_experts, top_k)
        if not (self.num_experts < num_experts and 0.0 < other <= preferred < 1.0):
            least, most = self.num_experts / num_experts, min(1.0, self.num_experts / top_k)
            expected = f"fewer than {num_experts} experts, and a share from {least:.3g} to below {most:.3g}"
            raise InputError("router_skew", got=self, expected=expected, remedy="change the share or the experts")


@dataclass(frozen=True)
class RandomWeights:
    """A seed, and whether routers prefer some experts. Without a skew a decode step's tokens, of many sequences, route
    as evenly as by chance (benchmarks/random_routing.py)."""

    seed: int
    skew: RouterSkew | None = None

    def seed_of(self, name: str) -> int:
        """Of one tensor: a different stream for each name."""
        return (self.seed << 32) + zlib.crc32(name.encode())


@dataclass(frozen=True)
class ValueRange:
    """Uniform from `low` to `high` in the rows from `first` to `end` of a tensor; None: to the last."""

    low: float
    high: float
    first: int = 0
    end: int | None = None


def value_ranges(tensor: StoredTensor, skew: RouterSkew | None, top_k: int) -> list[ValueRange]:
    """Of all rows: norms around 1, embeddings with variance 1, other matrices with 1 / columns.

    With a skew, embeddings have the mean m, so that a router's row of mean d has logits around d * columns * m /
    sqrt(1 + m^2)."""
    if len(tensor.shape) == 1:
        return [_around(1.0, 0.1) if "norm" in tensor.name else _around(0.0, 0.1)]
    columns = tensor.shape[-1]
    # What attention adds is a mean over a sequence's tokens: next to small embeddings it would make them all alike, and
    # the router send them to the same few experts.
    half_width = math.sqrt(3.0 / (1 if "embed_tokens" in tensor.name else columns))
    if skew is None:
        return [_around(0.0, half_width)]
    common = math.sqrt(1.0 / PREFERENCE_VARIANCE / columns)
    if "embed_tokens" in tensor.name:
        return [_around(common, half_width)]
    if tensor.name.endswith(".mlp.gate.weight"):
        mean = preference(skew, tensor.shape[0], top_k) * math.sqrt(1.0 + common**2) / (columns * common)
        return [_around(mean, half_width, 0, skew.num_experts), _around(0.0, half_width, skew.num_experts)]
    return [_around(0.0, half_width * (BRANCH_SCALE if re.search(r"\.(o|down)_proj\.", tensor.name) else 1.0))]


def preference(skew: RouterSkew, num_experts: int, top_k: int, variance: float = PREFERENCE_VARIANCE) -> float:
    """What a preferred expert's logit is above the others', which have mean 0 and variance 1. Raises InputError.

    A token takes logits above some t, that which the others pass as often as the skew says. A preferred logit, with
    mean b and variance 1 + b^2 `variance`, passes it as often as it should where b = t + z sqrt(variance) for
    the normal quantile z of that rate. That t is the same for all tokens is not so: the share is met within 0.05."""
    skew.check(num_experts, top_k)
    preferred, other = skew.rates(num_experts, top_k)
    threshold, quantile = -NormalDist().inv_cdf(other), NormalDist().inv_cdf(preferred)
    mean = threshold
    for _ in range(50):  # a contraction by less than |quantile| sqrt(variance)
        mean = threshold + quantile * math.sqrt(1.0 + mean**2 * variance)
    return mean


def _around(mean: float, half_width: float, first: int = 0, end: int | None = None) -> ValueRange:
    return ValueRange(mean - half_width, mean + half_width, first, end)

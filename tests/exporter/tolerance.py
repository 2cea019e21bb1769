"""How far two stages may be apart, and why.

In fp32 two right implementations differ by the order of their sums only. Over the models of the tests, whose logits
reach 17, that is at most 2.0e-5; the bound leaves a factor of five. What breaks when one option of the architecture is
ignored is at least 1e-2 (test_reference measures it), a hundred times the bound.

In a 16-bit dtype a stage may lose what plain torch loses in that dtype against fp32, times a factor: its roundings are
others, but as many and as large. Errors are compared by token, at quantiles, not by their maximum or mean: where two
experts nearly tie, rounding decides which works, and a token whose expert changed is off by as much as the logits are
large (up to 6 here, in plain torch no less than in any other stage). Which tokens those are is chance; that the median
token and nine in ten fare no worse is not. Measured ratios are 0.5 to 1.0 at the median and 0.3 to 1.1 at nine in ten,
but 1.25 and 2.0 in one model, where an early token of the longest sequence changes its expert and later ones see it.
"""

from __future__ import annotations

from torch import Tensor

FP32_LOGITS = 1e-4
FACTORS = {0.5: 1.5, 0.9: 2.5}  # by quantile over tokens


def assert_close_fp32(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs().max().item()
    assert error <= FP32_LOGITS, f"max abs difference {error:.3g}"


def assert_within_dtype_loss(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """`plain`: the plain reference in the dtype of `found`; `truth`: in fp32."""
    assert found.shape == plain.shape == truth.shape
    ours, loss = ((logits.float() - truth).abs().amax(-1) for logits in (found, plain))
    for quantile, factor in FACTORS.items():
        ours_there, loss_there = ours.quantile(quantile).item(), loss.quantile(quantile).item()
        assert loss_there > FP32_LOGITS, "the dtype loses nothing: the comparison is idle"
        assert ours_there <= factor * loss_there, f"quantile {quantile}: {ours_there:.3g}, plain {loss_there:.3g}"

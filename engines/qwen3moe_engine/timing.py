"""How long a request waited and ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds. queue: from arrival to its first step; first_token, total: from arrival to its first and last token.

    per_token: the mean between one token and the next; 0 where there is one token only.
    """

    queue: float
    first_token: float
    per_token: float
    total: float

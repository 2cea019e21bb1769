"""The text of a sequence while it grows, and where a stop string cuts it.

Owns: one sequence's text. Tokens are bytes (byte-level BPE), and a character's bytes may lie in several of them, so
bytes wait until a character is whole. What is no UTF-8 becomes U+FFFD, as `tokenizers` has it.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class Vocabulary(Protocol):
    def token_bytes(self, token_id: int) -> bytes:
        """Nothing for a special token."""
        ...


class Detokenizer:
    """Cuts its text before the stop string that is whole first; of several that end together, before the longest."""

    def __init__(self, vocabulary: Vocabulary, stop: tuple[str, ...] = ()):
        self._vocabulary, self._stop = vocabulary, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_taken = 0
        self.text = ""
        self.stopped = False

    def append(self, token_id: int, may_stop: bool = True) -> None:
        """Takes the next token. Unless it may stop, a stop string that becomes whole here is text like any other."""
        self._grow(self._decoder.decode(self._vocabulary.token_bytes(token_id)), may_stop)

    def finish(self) -> None:
        """No token will follow: the bytes of a character that is not whole become U+FFFD."""
        self._grow(self._decoder.decode(b"", final=True), may_stop=True)

    def take(self, finished: bool = False) -> str:
        """The text since the last call, as far as no stop string can take it back."""
        end = len(self.text) - (0 if finished or self.stopped else self._num_in_doubt())
        taken, self._num_taken = self.text[self._num_taken : end], max(end, self._num_taken)
        return taken

    def _grow(self, piece: str, may_stop: bool) -> None:
        if self.stopped or not piece:
            return
        num_before = len(self.text)
        self.text += piece
        cut = self._find_stop(num_before) if may_stop else None
        if cut is not None:
            self.text, self.stopped = self.text[:cut], True

    def _find_stop(self, num_before: int) -> int | None:
        """Where the stop string starts that ends first behind `num_before` characters."""
        found = []
        for stop in self._stop:
            start = self.text.find(stop, max(0, num_before - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _num_in_doubt(self) -> int:
        """The length of the longest end of the text with which a stop string starts."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop):
                return length
        return 0

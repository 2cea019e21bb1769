"""What a server reports of its engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """A moment's queues and blocks, and totals since the start.

    num_blocks_cached: blocks that nobody holds and a prefix may find. num_prompt_tokens, num_prefix_hits: tokens of
    admitted prompts, and those of them that the prefix cache held. What a preempted request finds of its own when it
    comes back counts as neither. num_step_seqs, num_step_tokens: of all steps together.
    """

    num_waiting: int
    num_running: int
    num_blocks: int
    num_blocks_used: int
    num_blocks_cached: int
    num_prompt_tokens: int
    num_prefix_hits: int
    num_preemptions: int
    num_evictions: int
    num_steps: int
    num_step_seqs: int
    num_step_tokens: int

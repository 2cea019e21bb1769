"""Stages on the hosts of a Ray cluster.

Owns: what a stage asks of a host, and its actor's life. A stage is one bundle, which Ray never spreads over hosts; it
puts as many bundles on a host as go there. Needs the extra `ray`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from qwen3moe_engine.parallel.board import Patience
from qwen3moe_engine.parallel.rank import RankSpec
from qwen3moe_engine.parallel.ray_stage import WATCH, RayStage
from qwen3moe_plugins.errors import InputError

_CONNECTION_SECONDS = 5.0
_PLACEMENT_SECONDS = 60.0


def connect(address: str) -> None:
    """To a cluster that runs, unless this process is. Raises InputError."""
    if ray.is_initialized():
        return
    try:
        host, _, port = address.rpartition(":")
        if host:
            socket.create_connection((host, int(port)), _CONNECTION_SECONDS).close()  # Ray would try for a minute
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        got = str(error).splitlines()[0]
        remedy = "start one with `ray start`, or give its address"
        raise InputError(f"--ray {address}", got=got, expected="a Ray cluster", remedy=remedy) from None


class Placement:
    """actors: a `RayStage` for each of `stages`, on hosts with room for it. Raises InputError where there are none."""

    def __init__(self, stages: Sequence[Sequence[RankSpec]], num_gpus: int, patience: Patience):
        size = len(stages[0])
        bundle = {"CPU": 1.0, "GPU": float(num_gpus * size)} if num_gpus else {"CPU": float(size)}
        _check_room(bundle, len(stages))
        self._group = placement_group([bundle] * len(stages), strategy="PACK")
        try:
            ray.get(self._group.ready(), timeout=_PLACEMENT_SECONDS)
        except GetTimeoutError:
            remove_placement_group(self._group)
            raise _no_room(bundle, len(stages), "others have taken what it has") from None
        kind = ray.remote(concurrency_groups={WATCH: 1})(RayStage)  # type: ignore[call-overload]  # an undeclared option
        self.actors: list[Any] = [
            kind.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0.0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number),
            ).remote(stage, patience)
            for number, stage in enumerate(stages)
        ]

    def close(self) -> None:
        """Ends every stage, whatever it does; a second call does nothing."""
        for actor in self.actors:
            ray.kill(actor)
        with suppress(Exception):  # of a cluster that has ended itself
            remove_placement_group(self._group)


def _check_room(bundle: dict[str, float], num_stages: int) -> None:
    """Raises InputError if the hosts, were they empty, could not take so many bundles."""
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(int(min(host.get(kind, 0.0) // count for kind, count in bundle.items())) for host in hosts)
    if room < num_stages:
        sizes = "; ".join(", ".join(f"{host.get(kind, 0.0):g} {kind}" for kind in bundle) for host in hosts)
        raise _no_room(bundle, num_stages, f"hosts of {sizes}")


def _no_room(bundle: dict[str, float], num_stages: int, got: str) -> InputError:
    needed = ", ".join(f"{count:g} {kind}" for kind, count in bundle.items())
    expected = f"room for {num_stages} stages, each on one host with {needed}"
    return InputError("Ray cluster", got=got, expected=expected, remedy="add hosts, or export for smaller groups")

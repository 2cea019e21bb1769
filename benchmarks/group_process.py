"""A command that starts ranks, and what is left when it has ended, seen from outside. Linux.

Owns: its processes, their end, and what they held. Must not know what they compute.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS = 90.0
FREE_SECONDS = 3.0  # that a driver may take to free the memory of a process that was killed
MEBIBYTES_OF_NOBODY = 16  # that a driver itself may have or not; a process has hundreds
_LISTENING = "0A"  # as /proc/net/tcp has it


@dataclass(frozen=True)
class Leftovers:
    """processes: of the group. ports: listening now and not before. mebibytes: more than before, of each GPU."""

    processes: int
    ports: tuple[int, ...]
    mebibytes: tuple[int, ...]

    @property
    def is_nothing(self) -> bool:
        return not self.processes and not self.ports and max(self.mebibytes, default=0) <= MEBIBYTES_OF_NOBODY

    def __str__(self) -> str:
        return f"{self.processes}, {len(self.ports)}, {' '.join(map(str, self.mebibytes)) or 'none'}"


class GroupProcess:
    """`command`, started; rank 0 is its own process and the others are its children.

    output, errors, exit_code, ended_at (of time.perf_counter) hold once `wait` has returned.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None, has_gpus: bool = False):
        self._has_gpus = has_gpus
        self._ports, self._memory = listening_ports(), self._used_memory()
        self._folder = Path(tempfile.mkdtemp())
        with (self._folder / "output").open("wb") as output, (self._folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        self._family: set[int] = {self._process.pid}
        self.output, self.errors, self.exit_code, self.ended_at = "", "", 0, 0.0

    def wait_for_ranks(self) -> None:
        """Until rank 1 has been started."""
        deadline = time.perf_counter() + MOST_SECONDS
        while not self._ranks() and self._process.poll() is None and time.perf_counter() < deadline:
            time.sleep(0.01)

    def send(self, rank: int, number: signal.Signals) -> None:
        self._look()
        os.kill(self._ranks()[rank - 1] if rank else self._process.pid, number)

    def wait(self) -> Leftovers:
        """Until none of its processes is left, which are killed after MOST_SECONDS."""
        deadline = time.perf_counter() + MOST_SECONDS
        while (left := self._look()) and time.perf_counter() < deadline:
            time.sleep(0.005)
        self.ended_at = time.perf_counter()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.exit_code = self._process.wait()
        self.output, self.errors = ((self._folder / name).read_text() for name in ("output", "errors"))
        shutil.rmtree(self._folder)
        return Leftovers(len(left), tuple(sorted(listening_ports() - self._ports)), self._memory_left())

    def _look(self) -> set[int]:
        """The processes that still run; children that are seen once belong to the group, whoever they fall to."""
        self._process.poll()
        parents = {int(path.name): parent_of(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
        for _ in range(2):  # children, and theirs
            self._family |= {pid for pid, parent in parents.items() if parent in self._family}
        return {pid for pid in self._family if parents.get(pid)}

    def _ranks(self) -> list[int]:
        """Process ids of ranks 1 and on."""
        self._look()
        return [pid for pid in sorted(self._family) if "spawn_main" in command_of(pid)]

    def _used_memory(self) -> tuple[int, ...]:
        """MiB in use on each GPU."""
        if not self._has_gpus:
            return ()
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return tuple(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))

    def _memory_left(self) -> tuple[int, ...]:
        deadline = time.perf_counter() + FREE_SECONDS
        while True:
            left = tuple(after - before for after, before in zip(self._used_memory(), self._memory, strict=True))
            if max(left, default=0) <= MEBIBYTES_OF_NOBODY or time.perf_counter() > deadline:
                return left


def listening_ports() -> set[int]:
    """TCP ports of this host."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTENING}


def parent_of(process: Path) -> int:
    """0 for one that has ended, whether or not anybody waited for it."""
    try:
        state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(parent)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""

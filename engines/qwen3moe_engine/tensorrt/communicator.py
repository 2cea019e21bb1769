"""This process's membership in a group of ranks, through the C API of `include/qwen3moe/collective.h`.

Owns: where NCCL is, how large a sum goes from GPU to GPU, and the life of a communicator. Must not know TensorRT, how
processes are started, or how the unique id travels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_double, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from qwen3moe_plugins.errors import InputError

SYSTEM_NCCL = "libnccl.so.2"
UNIQUE_ID_BYTES = 128
MAX_ONE_SHOT_RANKS = 8
MEASURED_ONE_SHOT_BYTES = 4 << 20  # with two H200s: benchmarks/results/h200x2_collective.md


class CommunicatorError(RuntimeError):
    """The group cannot go on: a peer is missing, died or disagrees. Names this rank; the process has to end."""


@dataclass(frozen=True)
class CommunicatorConfig:
    """device: CUDA ordinal; every rank must see the GPUs of all. timeout_seconds: how long to wait for peers.

    one_shot_bytes: sums of at most so many bytes go from GPU to GPU in one kernel, larger ones by NCCL. Only for ranks
    of one host (`one_shot_limit`): 0 otherwise. The same on every rank, which is checked.
    """

    rank: int
    world_size: int
    device: int
    one_shot_bytes: int
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            expected = f"0 to {self.world_size - 1} in a group of {self.world_size}"
            raise InputError("rank", got=self.rank, expected=expected, remedy="number the ranks of a group from 0")
        if self.one_shot_bytes and self.world_size > MAX_ONE_SHOT_RANKS:
            expected = f"0 with more than {MAX_ONE_SHOT_RANKS} ranks"
            raise InputError("one_shot_bytes", got=self.one_shot_bytes, expected=expected, remedy="leave it out")


def one_shot_limit(world_size: int) -> int:
    """Bytes of the largest sum for one kernel, on one host.

    Each rank sends its whole message to every other, so the measured limit is divided among them: an estimate for more
    than two.
    """
    if not 1 < world_size <= MAX_ONE_SHOT_RANKS:
        return 0
    return MEASURED_ONE_SHOT_BYTES // (world_size - 1)


class _Config(ctypes.Structure):
    _fields_ = (
        ("one_shot_bytes", c_int64),
        ("timeout_seconds", c_double),
        ("rank", c_int32),
        ("world_size", c_int32),
        ("device", c_int32),
    )


def find_nccl() -> str:
    """pip's NCCL if it is installed, otherwise the name by which the system's loader finds its own."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        spec = None
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / "lib" / SYSTEM_NCCL for folder in folders or ()]
    return next((str(path) for path in paths if path.is_file()), SYSTEM_NCCL)


class CollectiveLibrary:
    """libqwen3moe_kernels at `kernels`, with the NCCL at `nccl` (a path, or a name for the loader) open in it.

    The same file as the plugins': they find it beside themselves. Raises InputError if `nccl` cannot be used.
    """

    def __init__(self, kernels: Path, nccl: str):
        self._library = _load(kernels)
        version = c_int32(0)
        if self._library.qwen3moe_nccl_open(nccl.encode(), ctypes.byref(version)) != 0:
            remedy = "pip install nvidia-nccl-cu13, or give the path of libnccl.so.2"
            raise InputError("NCCL", got=self._last_error(), expected="NCCL 2.14 or later", remedy=remedy)
        self.nccl_version = version.value

    def unique_id(self) -> bytes:
        """What rank 0 makes and every rank of its group joins by: 128 bytes."""
        unique_id = ctypes.create_string_buffer(UNIQUE_ID_BYTES)
        self._expect_success(self._library.qwen3moe_unique_id(unique_id))
        return unique_id.raw

    def join(self, config: CommunicatorConfig, unique_id: bytes) -> Communicator:
        """Makes this process a rank of the group, and its AllReduce and AllGather operators work in it.

        Returns once every rank has come, all agree on the configuration and a known sum came out right. Raises
        CommunicatorError, naming the rank and the reason; where peers did not come in time a thread still waits for
        them, so the process has to end.
        """
        assert len(unique_id) == UNIQUE_ID_BYTES, len(unique_id)
        handle = c_void_p()
        fields = {name: getattr(config, name) for name, _ in _Config._fields_}
        create = self._library.qwen3moe_communicator_create
        self._expect_success(create(ctypes.byref(_Config(**fields)), unique_id, ctypes.byref(handle)))
        communicator = Communicator(self, config, handle)
        communicator.use()
        return communicator

    def call(self, function: str, handle: c_void_p) -> None:
        """Raises CommunicatorError with the library's message."""
        self._expect_success(getattr(self._library, f"qwen3moe_communicator_{function}")(handle))

    def _expect_success(self, status: int) -> None:
        if status != 0:
            raise CommunicatorError(self._last_error())

    def _last_error(self) -> str:
        return self._library.qwen3moe_last_error().decode()


class Communicator:
    """A rank of a group, until `close`. To be closed after the engines and CUDA graphs that use it.

    As a context manager it leaves in order, together with its peers, or aborts if the block ends by an exception.
    """

    def __init__(self, library: CollectiveLibrary, config: CommunicatorConfig, handle: c_void_p):
        self.config = config
        self._library, self._handle = library, handle
        self._lock = threading.Lock()  # of the handle, which `abort` may use while `close` gives it up
        self._reason: str | None = None

    def use(self) -> None:
        """Makes this process's operators work in this group, as `join` did. Raises CommunicatorError if aborted."""
        self._library.call("use", self._handle)

    def abort(self, reason: str) -> None:
        """Ends what this rank's GPU waits for; from any thread, and without effect once closed.

        What was under way gives void results, and `check` and every later collective raise.
        """
        with self._lock:
            if self._handle and self._reason is None:
                self._reason = reason
                self._library.call("abort", self._handle)

    def check(self) -> None:
        """Raises CommunicatorError if the group was aborted, or NCCL noticed that a peer failed."""
        if self._reason is not None:
            raise CommunicatorError(f"rank {self.config.rank} of {self.config.world_size}: {self._reason}")
        self._library.call("check", self._handle)

    def close(self) -> None:
        """Waits for the GPU and the peers, and leaves the group. Raises CommunicatorError if they do not come."""
        with self._lock:
            handle, self._handle = self._handle, c_void_p()
        if handle:
            self._library.call("destroy", handle)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self.abort(f"{kind.__name__}: {error}")
        self.close()


@contextmanager
def skipped_collectives(kernels: Path) -> Iterator[None]:
    """Within it collectives succeed and do nothing: a builder with a GPU times plugins, and has no peers."""
    library = _load(kernels)
    library.qwen3moe_collectives_skip(1)
    try:
        yield
    finally:
        library.qwen3moe_collectives_skip(0)


def _load(kernels: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(kernels))
    library.qwen3moe_last_error.restype = c_char_p
    library.qwen3moe_nccl_open.argtypes = [c_char_p, c_void_p]
    library.qwen3moe_unique_id.argtypes = [c_char_p]
    library.qwen3moe_communicator_create.argtypes = [c_void_p, c_char_p, c_void_p]
    for function in ("abort", "check", "destroy", "use"):
        getattr(library, f"qwen3moe_communicator_{function}").argtypes = [c_void_p]
    return library

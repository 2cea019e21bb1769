"""Requests from many tasks, streamed back to them.

Owns: the thread that alone touches the engine from the first request on, and what happens to requests when it fails or
ends. Requests and cancellations reach it as commands between two steps; a step's outputs leave it in one call of the
event loop, which it does not wait for. Must not know who asks.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from qwen3moe_engine.engine import Engine
from qwen3moe_engine.output_stream import Mailbox, OutputStream, RequestOutput
from qwen3moe_engine.prompt import Prompt
from qwen3moe_engine.sampling_params import SamplingParams
from qwen3moe_engine.scheduler import QueueFullError
from qwen3moe_engine.stats import EngineStats
from qwen3moe_plugins.errors import InputError

logger = logging.getLogger(__name__)


class EngineDeadError(RuntimeError):
    """The executor failed, and with it every request; the engine has to be made anew."""

    def __init__(self, cause: BaseException):
        super().__init__(f"engine: got {type(cause).__name__}: {cause}, expected a step; start the engine again")


class EngineStoppedError(RuntimeError):
    """The engine takes no more requests, or did not wait for this one."""

    def __init__(self) -> None:
        super().__init__("engine: got a request while shutting down, expected none; send it to another or later")


Command = Callable[[], None]


class AsyncEngine:
    """Serves `engine`, which nobody else may use any more, to the tasks of one event loop: that of the first `submit`.

    As an async context manager it stops at the end, and fails what still runs."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._open: set[Mailbox] = set()  # the loop's: requests without an end
        self._live: dict[Mailbox, None] = {}  # the thread's: requests that the engine has
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._stopping = False  # the thread's, as are the next two: what it has to tell the loop
        self._settled: list[tuple[Mailbox, Exception | None]] = []
        self._aborted: list[Mailbox] = []
        self._refuse: Callable[[], Exception] | None = None
        self._is_dead = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._stats = engine.stats()

    @property
    def engine(self) -> Engine:
        """For what may be called from any thread, such as `encode`."""
        return self._engine

    @property
    def is_dead(self) -> bool:
        return self._is_dead

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self._refuse is None

    @property
    def num_open(self) -> int:
        """Requests that were submitted and have not ended."""
        return len(self._open)

    def stats(self) -> EngineStats:
        """As of the last step, or of the last request that came or went."""
        return self._stats

    async def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids. Text goes through the tokenizer beside the event loop. Raises InputError."""
        return await asyncio.to_thread(self._engine.encode, prompt)

    async def submit(self, prompt: Prompt, params: SamplingParams, priority: int = 0) -> OutputStream:
        """Queues a request. Raises InputError, QueueFullError, EngineStoppedError or EngineDeadError."""
        request = await asyncio.to_thread(self._engine.make_request, prompt, params, priority)
        if self._refuse is not None:
            raise self._refuse()
        self._start()
        mailbox = Mailbox(request)
        self._open.add(mailbox)
        self._idle.clear()
        self._commands.put(lambda: self._add(mailbox))
        stream = OutputStream(mailbox, self._cancel)
        try:
            await mailbox.accepted
        except BaseException:
            stream.cancel()
            raise
        return stream

    async def drain(self, grace_seconds: float) -> int:
        """Takes no more requests, waits for those it has, then fails the rest with EngineStoppedError and stops.

        Returns how many it failed."""
        self._refuse = self._refuse or EngineStoppedError
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        num_failed = self._fail_open(EngineStoppedError)
        self._commands.put(self._stop)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        return num_failed

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._thread.start()
        assert self._loop is loop, "an AsyncEngine serves one event loop"

    def _cancel(self, mailbox: Mailbox) -> None:
        """May be called from any thread, as a stream that nobody holds is deleted anywhere."""
        self._commands.put(lambda: self._abort(mailbox))

    # What the event loop does.

    def _end(self, mailbox: Mailbox) -> None:
        self._open.discard(mailbox)
        if not self._open:
            self._idle.set()

    def _hear(self, settled: list[tuple[Mailbox, Exception | None]], aborted: list[Mailbox]) -> None:
        for mailbox, error in settled:
            mailbox.settle(error)
            if error is not None:
                self._end(mailbox)
        for mailbox in aborted:
            mailbox.queue.put_nowait(None)  # whoever waits for more wakes
            self._end(mailbox)

    def _deliver(self, outputs: list[tuple[Mailbox, RequestOutput]]) -> None:
        for mailbox, output in outputs:
            mailbox.queue.put_nowait(output)
            if output.finish_reason is not None:
                self._end(mailbox)

    def _die(self, cause: BaseException) -> None:
        self._is_dead, self._refuse = True, lambda: EngineDeadError(cause)
        self._fail_open(self._refuse)

    def _fail_open(self, make_error: Callable[[], Exception]) -> int:
        """Each with an error of its own, since whoever raises one adds its traceback to it."""
        failed = list(self._open)
        for mailbox in failed:
            mailbox.fail(make_error())
            self._cancel(mailbox)
            self._end(mailbox)
        return len(failed)

    # What the thread does.

    def _work(self) -> None:
        try:
            while self._take_commands():
                if self._engine.has_work:
                    self._engine.step()
                    self._hand_over()
        except Exception as error:
            logger.exception("the engine failed")
            self._call_loop(self._die, error)

    def _take_commands(self) -> bool:
        """Waits for one if there is nothing to do, then takes all there are. False if the last was to stop."""
        if not self._engine.has_work:
            self._commands.get()()
        with suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()
        self._stats = self._engine.stats()
        if self._settled or self._aborted:
            self._call_loop(self._hear, self._settled, self._aborted)
            self._settled, self._aborted = [], []
        return not self._stopping

    def _add(self, mailbox: Mailbox) -> None:
        error: Exception | None = None
        try:
            self._engine.add(mailbox.request)
            self._live[mailbox] = None
        except (InputError, QueueFullError) as refused:
            error = refused
        self._settled.append((mailbox, error))

    def _abort(self, mailbox: Mailbox) -> None:
        if mailbox in self._live:
            del self._live[mailbox]
            self._engine.abort(mailbox.request)
        self._aborted.append(mailbox)

    def _stop(self) -> None:
        self._stopping = True

    def _hand_over(self) -> None:
        now = perf_counter()
        outputs = [(mailbox, mailbox.next_output(now)) for mailbox in self._live if mailbox.has_output]
        for mailbox, output in outputs:
            if output.finish_reason is not None:
                del self._live[mailbox]
        self._stats = self._engine.stats()
        if outputs:
            self._call_loop(self._deliver, outputs)

    def _call_loop(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: nobody is left to hear of it
            self._loop.call_soon_threadsafe(function, *args)

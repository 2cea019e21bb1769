"""Requests to an OpenAI-compatible server, and what comes back.

Owns: the HTTP and the kinds of errors. Must not know when requests are sent. aiohttp, since its streams cost a client
43 us a chunk where httpx2's cost 92: at 10,000 tokens a second the latter would measure itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from qwen3moe_engine.bench.arrivals import ClosedLoop, Poisson
from qwen3moe_engine.bench.event_stream import EventStream, StreamError, message_of
from qwen3moe_engine.bench.record import RequestRecord
from qwen3moe_engine.bench.target import Target
from qwen3moe_engine.bench.workload import WorkItem
from qwen3moe_plugins.errors import InputError

READ_BUFFER = 2**20  # bytes; the longest line of a stream is half of it


class Client:
    """Sends requests to `target` over the connections of `session`."""

    def __init__(self, target: Target, session: aiohttp.ClientSession):
        self._target, self._session = target, session

    async def send(self, item: WorkItem, due: float) -> RequestRecord:
        """Raises nothing: what fails is recorded as failed, with what came before."""
        stream, start = EventStream(), time.perf_counter()
        error, message = None, ""
        try:
            await self._read(item, stream)
        except StreamError as failure:
            error, message = failure.kind, str(failure)
        except asyncio.TimeoutError:
            error, message = "timeout", f"not over after {self._target.timeout} s"
        except aiohttp.ClientConnectorError as failure:
            error, message = "no connection", str(failure)
        except (aiohttp.ClientError, OSError) as failure:
            error, message = "disconnected", str(failure) or repr(failure)
        except ValueError as failure:
            error, message = "line too long", str(failure)
        return self._record(item, stream, (due, start, time.perf_counter()), error, message)

    async def _read(self, item: WorkItem, stream: EventStream) -> None:
        async with self._session.post(self._target.completions_url, json=self._target.body(item)) as response:
            if response.status != 200:
                raise StreamError(f"HTTP {response.status}", message_of(await response.text()))
            async for line in response.content:
                stream.feed(line, time.perf_counter())
        stream.check_whole()

    def _record(
        self, item: WorkItem, stream: EventStream, times: tuple[float, float, float], error: str | None, message: str
    ) -> RequestRecord:
        has_usage = stream.num_output is not None
        return RequestRecord(
            *times,
            chunk_times=tuple(stream.chunk_times),
            num_prompt=stream.num_prompt or 0,
            num_output=stream.num_output or 0 if has_usage else stream.num_counted or len(stream.chunk_times),
            num_counted=stream.num_counted if self._target.counts_tokens else None,
            num_expected=item.max_tokens if self._target.ignore_eos and has_usage else None,
            error=error,
            message=message,
        )


@asynccontextmanager
async def open_session(api_key: str | None, timeout: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Without a limit on connections: the load decides how many there are."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, 30.0)),
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        read_bufsize=READ_BUFFER,
    ) as session:
        yield session


async def find_model(url: str, api_key: str | None) -> str:
    """The first model that the server has. Raises InputError if it does not say."""
    try:
        async with open_session(api_key, timeout=30.0) as session, session.get(f"{url}/v1/models") as response:
            response.raise_for_status()
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, LookupError, TypeError) as error:
        got, expected = str(error) or repr(error), "an OpenAI-compatible server"
        raise InputError("--url", got=got, expected=expected, remedy="check that it runs, or give --model") from None


async def run_load(
    target: Target, arrivals: Poisson | ClosedLoop, items: Sequence[WorkItem], warmup: Sequence[WorkItem] = ()
) -> list[RequestRecord]:
    """Of `items`; those of `warmup` come before, one after the other, and are not recorded."""
    async with open_session(target.api_key, target.timeout) as session:
        client = Client(target, session)
        for failed in [record for record in await ClosedLoop(1).drive(client.send, warmup) if record.error]:
            got, expected = f"{failed.error}: {failed.message}", "a completion"
            raise InputError("warm-up", got=got, expected=expected, remedy="check the server and the options")
        return await arrivals.drive(client.send, items)

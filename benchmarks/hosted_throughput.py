"""How much of what the concurrency limit allows reaches a server, and whether memory stays flat.

A server of its own process answers each request after LATENCY seconds. Limited by concurrency alone, n requests take
n / concurrency * LATENCY seconds; the share of that which is reached is printed, as a run reaches it: with the ledger
of what is spent and every answer in the row store. Beside it stand the CPU time that a request costs here and in the
server, and the share that bare sockets reach, which send the same bytes and read nothing: what the machine allows.

    python benchmarks/hosted_throughput.py                      # 1,000 requests, 50 ms, concurrency 8, 16, 32
    python benchmarks/hosted_throughput.py --rows 100000 --latency 0.002    # memory on the way
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from semievol.answer_stream import AnswerStream
from semievol.artifacts import RowStore, content_hash
from semievol.backends.base import open_generator
from semievol.backends.openai_chat import Abilities, chat_body
from semievol.config import ModelConfig, OpenAIGeneratorConfig
from semievol.types import Message, ModelRef, Request, Result, Sampling

TOKENS = [
    {"token": "Answer:", "logprob": -0.1, "top_logprobs": []},
    {"token": " B", "logprob": -0.2, "top_logprobs": []},
]
HEAD_END = b"\r\n\r\n"


class Handler(asyncio.Protocol):
    """Answers everything after a while; as little work as a server can have."""

    def __init__(self, latency: float) -> None:
        self._latency, self._loop, self._read = latency, asyncio.get_running_loop(), b""
        self._answers = {n: _answer(n) for n in (1, 2)}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._read += data
        head, found, body = self._read.partition(HEAD_END)
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._read = b""
        n = 2 if b'"n":2' in body else 1
        self._loop.call_later(self._latency, self._transport.write, self._answers[n])


def _answer(n: int) -> bytes:
    choice = {"message": {"content": "Answer: B"}, "finish_reason": "stop", "logprobs": {"content": TOKENS}}
    usage = {"prompt_tokens": 80, "completion_tokens": 2 * n}
    body = json.dumps({"choices": [choice] * n, "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d%b%b" % (len(body), HEAD_END, body)


def serve(latency: float, port: "multiprocessing.Queue[int]") -> None:
    """Serve for ever on a free port."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Handler(latency), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def requests(n: int) -> Iterator[Request]:
    """Rows of about 80 tokens."""
    for i in range(n):
        yield Request(f"r{i}", (Message("user", f"row {i}: " + "where is my parcel? " * 15),), ModelRef("m"), i)


@contextmanager
def stored_answers(port: int, concurrency: int, n: int) -> Iterator[Iterator[Result]]:
    """Answers to `n` rows through row store and ledger, over connections that are open already."""
    address = f"http://127.0.0.1:{port}/v1"
    config = OpenAIGeneratorConfig(base_url=address, api_key_env=None, max_concurrency=concurrency)
    with (
        tempfile.TemporaryDirectory() as folder,
        RowStore(Path(folder) / "rows.sqlite") as store,
        open_generator(config, ModelConfig(path="m"), state_dir=Path(folder)) as generator,
    ):
        list(generator.generate(requests(2 * concurrency), Sampling()))
        keyed = ((content_hash(r.messages), r) for r in requests(n))
        look_ahead = generator.look_ahead or 0
        stream: AnswerStream[Result] = AnswerStream(
            keyed, store, TypeAdapter(Result), lambda _: None, look_ahead=look_ahead
        )
        yield stream.answers(lambda feed: generator.generate(feed, Sampling()), "benchmark")


async def send_bare(port: int, concurrency: int, n: int) -> float:
    """Seconds that bare sockets need for the same requests."""
    body = json.dumps(chat_body(next(requests(1)), Sampling(), Abilities(), {}, n=1)).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d%b%b" % (len(body), HEAD_END, body)
    left, size = n, len(_answer(1))

    async def work() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(request)
            await reader.readexactly(size)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.perf_counter() - start


def cpu_seconds(pid: int) -> float:
    """CPU time of another process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb() -> float:
    """Memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(port: int, server_pid: int, latency: float, concurrency: int, n: int) -> str:
    """One line on `n` requests at one concurrency."""
    with stored_answers(port, concurrency, n) as answers:
        start, cpu, server_cpu = time.perf_counter(), time.process_time(), cpu_seconds(server_pid)
        n_found = sum(1 for _ in answers)
        seconds, cpu, server_cpu = (
            time.perf_counter() - start,
            time.process_time() - cpu,
            cpu_seconds(server_pid) - server_cpu,
        )
    bare_seconds = asyncio.run(send_bare(port, concurrency, n))
    ideal = n / concurrency * latency
    return (
        f"{n_found:,} requests, {latency * 1000:g} ms, concurrency {concurrency}: {n / seconds:,.0f} a second, "
        f"{ideal / seconds:.0%} of {concurrency / latency:,.0f} (bare sockets {ideal / bare_seconds:.0%}); "
        f"{1000 * cpu / n:.2f} ms of CPU a request, {1000 * server_cpu / n:.2f} in the server"
    )


def measure_memory(port: int, n: int) -> Iterator[str]:
    """Lines on the memory of this process while `n` rows go through it."""
    with stored_answers(port, 64, n) as answers:
        start = time.perf_counter()
        for i, _ in enumerate(answers, 1):
            if i in (1000, 5000) or i % 10_000 == 0:
                speed = i / (time.perf_counter() - start)
                yield f"{i:,} rows: {resident_mb():.1f} MB resident, {speed:,.0f} rows a second"


def main() -> None:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rows", type=int, default=0, help="measure memory over so many rows")
    arguments = parser.parse_args()
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(arguments.latency, ports), daemon=True)
    server.start()
    port, pid = ports.get(), server.pid
    assert pid is not None
    if arguments.rows:
        for line in measure_memory(port, arguments.rows):
            print(line, flush=True)
    else:
        for concurrency in arguments.concurrency:
            print(measure(port, pid, arguments.latency, concurrency, arguments.n), flush=True)
    server.terminate()


if __name__ == "__main__":
    main()

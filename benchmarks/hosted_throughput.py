"""How much of what the concurrency limit allows reaches a server, and whether memory stays flat.

A server of its own process answers each request after LATENCY seconds. Limited by concurrency alone, n requests take
n / concurrency * LATENCY seconds; the share of that which is reached is printed, with the CPU time that a request costs
here. `--rows` sends rows through the row store, as a run does, and prints the memory of the process on the way.

    python benchmarks/hosted_throughput.py                      # 1,000 requests, 50 ms, concurrency 8, 16, 32
    python benchmarks/hosted_throughput.py --rows 100000 --latency 0.002

A request costs this process some milliseconds of CPU, most of it in the HTTP client, so one core carries a few hundred
a second, and more concurrency than that times LATENCY reaches no further.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter

from semievol.answer_stream import AnswerStream
from semievol.artifacts import RowStore, content_hash
from semievol.backends.base import open_generator
from semievol.config import ModelConfig, OpenAIGeneratorConfig
from semievol.types import Message, ModelRef, Request, Result, Sampling

TOKENS = [
    {"token": "Answer:", "logprob": -0.1, "top_logprobs": []},
    {"token": " B", "logprob": -0.2, "top_logprobs": []},
]


def serve(latency: float, port: "multiprocessing.Queue[int]") -> None:
    """Answer everything after `latency` seconds; as little work as a server can have."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x[:15] == b"content-length:"
                )
                n = json.loads(await reader.readexactly(length)).get("n", 1)
                await asyncio.sleep(latency)
                choice = {"message": {"content": "Answer: B"}, "finish_reason": "stop", "logprobs": {"content": TOKENS}}
                usage = {"prompt_tokens": 80, "completion_tokens": 2 * n}
                body = json.dumps({"choices": [choice] * n, "usage": usage}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def requests(n: int) -> Iterator[Request]:
    """Rows of about 80 tokens."""
    for i in range(n):
        yield Request(f"r{i}", (Message("user", f"row {i}: " + "where is my parcel? " * 15),), ModelRef("m"), i)


def measure(address: str, latency: float, concurrency: int, n: int) -> str:
    """One line on `n` requests at one concurrency."""
    config = OpenAIGeneratorConfig(base_url=address, api_key_env=None, max_concurrency=concurrency)
    with open_generator(config, ModelConfig(path="m")) as generator:
        list(generator.generate(requests(2 * concurrency), Sampling()))  # opens the connections
        start, cpu = time.perf_counter(), time.process_time()
        n_found = sum(1 for _ in generator.generate(requests(n), Sampling()))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ideal = n / concurrency * latency
    return (
        f"{n_found:,} requests, {latency * 1000:g} ms, concurrency {concurrency}: {n / seconds:,.0f} a second, "
        f"{100 * ideal / seconds:.0f}% of {concurrency / latency:,.0f}; {1000 * cpu / n:.2f} ms of CPU a request"
    )


def measure_memory(address: str, n: int) -> Iterator[str]:
    """Lines on the most memory that was in use while `n` rows went through the row store."""
    config = OpenAIGeneratorConfig(base_url=address, api_key_env=None, max_concurrency=64)
    with (
        tempfile.TemporaryDirectory() as folder,
        RowStore(Path(folder) / "rows.sqlite") as store,
        open_generator(config, ModelConfig(path="m"), state_dir=Path(folder)) as generator,
    ):
        keyed = ((content_hash(r.messages), r) for r in requests(n))
        adapter, look_ahead = TypeAdapter(Result), generator.look_ahead or 0
        stream: AnswerStream[Result] = AnswerStream(keyed, store, adapter, lambda _: None, look_ahead=look_ahead)
        start = time.perf_counter()
        for i, _ in enumerate(stream.answers(lambda feed: generator.generate(feed, Sampling()), "benchmark"), 1):
            if i in (1000, 10_000) or i % 25_000 == 0:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                yield f"{i:,} rows: {peak:.0f} MB at most, {i / (time.perf_counter() - start):,.0f} rows a second"


def main() -> None:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rows", type=int, default=0, help="measure memory over so many rows")
    arguments = parser.parse_args()
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(arguments.latency, port), daemon=True)
    server.start()
    address = f"http://127.0.0.1:{port.get()}/v1"
    if arguments.rows:
        for line in measure_memory(address, arguments.rows):
            print(line, flush=True)
    else:
        for concurrency in arguments.concurrency:
            print(measure(address, arguments.latency, concurrency, arguments.n), flush=True)
    server.terminate()


if __name__ == "__main__":
    main()

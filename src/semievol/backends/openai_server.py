"""What fine-tuning jobs and batches share: a client with its config, files uploaded once, faults told apart, waiting.

Both are told by a fingerprint that is part of the names of their files. What this machine lost track of (killed between
a request and its answer, an answer lost on the way) is found again on the server by these names.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, Literal

from semievol.backends.openai_client import Fault, MalformedAnswer, address, classify, open_client
from semievol.config import EndpointConfig
from semievol.errors import SemiEvolError

if TYPE_CHECKING:
    from openai import OpenAI

FILE_NOT_READY = ("pending", "running", "notRunning", "importing")
"""States of a file on Azure before it can be used."""
FILE_LOOKS = 120
FIRST_WAIT_SECONDS = 1.0
GROWTH = 1.5
"""Factor between two waits, up to the longest one."""


@dataclass(frozen=True)
class Server:
    """An open client."""

    client: "OpenAI"
    config: EndpointConfig
    sleep: Callable[[float], None] = time.sleep

    @property
    def address(self) -> str:
        """Where requests go."""
        return address(self.config)

    def fault(self, error: Exception, model: str) -> Fault:
        """What a failed call means; an exception that is not of the client is raised again."""
        if isinstance(error, JSONDecodeError):  # the client hands on what it cannot read
            error = MalformedAnswer(f"the answer from {self.address} is not whole JSON")
        return classify(error, self.config, model)

    def find_files(self, name: str, purpose: Literal["fine-tune", "batch"]) -> list[Any]:
        """Files on the server with this name."""
        return [file for file in self.client.files.list(purpose=purpose) if file.filename == name]

    def upload(self, name: str, data: bytes, purpose: Literal["fine-tune", "batch"]) -> str:
        """Id of the file, found where it was uploaded before; waits until the server can use it.

        Raises:
            SemiEvolError: If the server finds it faulty.
        """
        there = [f for f in self.find_files(name, purpose) if f.bytes == len(data) and f.status != "error"]
        file = there[0] if there else self.client.files.create(file=(name, data), purpose=purpose)
        for _ in range(FILE_LOOKS):
            if file.status not in FILE_NOT_READY:
                break
            self.sleep(FIRST_WAIT_SECONDS)
            file = self.client.files.retrieve(file.id)
        if file.status == "error":
            raise SemiEvolError(f"{self.address} refuses the file {name} ({file.id}): {file.status_details}")
        return str(file.id)


@contextmanager
def open_server(config: EndpointConfig, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Server]:
    """Open a client for slow calls."""
    with open_client(config) as client:
        yield Server(client, config, sleep)


def growing_waits(longest: float) -> Iterator[float]:
    """Seconds between looks: short ones first, then `longest` for ever."""
    wait = min(FIRST_WAIT_SECONDS, longest)
    while True:
        yield wait
        wait = min(longest, wait * GROWTH)

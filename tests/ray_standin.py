"""Ray's interface in this process, for tests of what stands above it: actors take calls in order, and can be killed.

Which actor gets on next is drawn by seed, so shards end in many orders. `kill_at` numbers calls of `answer`, from 1, at
which the actor that was to answer dies instead; `hang_at` those at which it stands still for good.
"""

import random
from collections import deque
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class RayTaskError(RayError):
    pass


class Ref:
    def __init__(self) -> None:
        self.is_done = False
        self.value: Any = None
        self.error: Exception | None = None


class Actor:
    def __init__(self, ray: "StandIn", instance: Any) -> None:
        self._ray, self._instance = ray, instance
        self._calls: deque[tuple[Ref, str, tuple]] = deque()
        self._is_dead = self._is_hung = False

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._call(method, arguments))

    def _call(self, method: str, arguments: tuple) -> Ref:
        ref = Ref()
        self._calls.append((ref, method, arguments))
        if self._is_dead:
            self._die()
        return ref

    def _work(self) -> None:
        ref, method, arguments = self._calls[0]
        if self._is_hung:
            return
        if method == "answer":
            self._ray.n_answers += 1
            if self._ray.n_answers in self._ray.kill_at:
                self._die()
                return
            self._is_hung = self._ray.n_answers in self._ray.hang_at
            if self._is_hung:
                return
        self._calls.popleft()
        try:
            ref.value = getattr(self._instance, method)(*arguments)
        except Exception as error:
            ref.error = RayTaskError(f"{type(error).__name__}: {error}")
        ref.is_done = True

    def _die(self) -> None:
        self._is_dead = True
        while self._calls:
            ref, _, _ = self._calls.popleft()
            ref.error, ref.is_done = RayActorError("The actor is dead because its worker process has died."), True


class StandIn:
    exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError)

    def __init__(self, *, kill_at: Collection[int] = (), hang_at: Collection[int] = (), seed: int = 0) -> None:
        self.kill_at, self.hang_at = kill_at, hang_at
        self.n_answers = 0
        self.actors: list[Actor] = []
        self.options: list[dict[str, Any]] = []
        self._random = random.Random(seed)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, kind: type) -> Any:
        def start(*arguments: Any) -> Actor:
            self.actors.append(Actor(self, kind(*arguments)))
            return self.actors[-1]

        def options(**given: Any) -> Any:
            self.options.append(given)
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def wait(self, refs: list[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        if timeout and not any(ref.is_done for ref in refs):
            busy = [actor for actor in self.actors if actor._calls]
            self._random.choice(busy)._work()
        ready = [ref for ref in refs if ref.is_done][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        actor._die()

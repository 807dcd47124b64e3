"""What goes on around the optimiser steps of a training: progress, the clock, the epoch, and a stop when asked to."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from semievol.backends.base import Progress
from semievol.backends.sft_batches import set_epoch
from semievol.backends.sft_processes import any_process


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Reports steps, keeps the clock over restarts, and ends the training after a step when asked to."""

    def __init__(self, partial_dir: Path, progress: Progress | None) -> None:
        self.interrupted = False
        self._clock = partial_dir / "seconds.json"
        self._progress = progress
        self._earlier_seconds = 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training time up to now, that of killed processes up to their last checkpoint included."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and tell of the steps that were done before."""
        if state.global_step and self._clock.exists():
            self._earlier_seconds = float(json.loads(self._clock.read_text(encoding="utf-8")))
        self._started = time.perf_counter()
        if state.global_step and self._progress is not None:
            self._progress(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Set the epoch of the order."""
        set_epoch(others["train_dataloader"], int(state.epoch or 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell of the step, and stop all processes after it where one was asked to."""
        if self._progress is not None:
            self._progress(1)
        if state.global_step >= state.max_steps:
            control.should_save = False  # the finished folder is written right after
        self.interrupted = any_process(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the clock beside the checkpoint."""
        if not state.is_world_process_zero:
            return
        written = self._clock.with_suffix(".tmp")
        written.write_text(json.dumps(self.seconds), encoding="utf-8")
        written.replace(self._clock)


@contextmanager
def finish_step_on_interrupt(steps: StepCallback) -> Iterator[None]:
    """Let the first Ctrl-C end the step at hand; a second one acts at once. Other handlers are left in place."""
    default: Callable[[int, FrameType | None], Any] = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return

    def ask(_: int, __: FrameType | None) -> None:
        steps.interrupted = True
        signal.signal(signal.SIGINT, default)

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)

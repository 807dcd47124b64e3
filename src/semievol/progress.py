"""What a person sees of a run: live bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 10.0
"""Seconds between two plain progress lines of one task."""


class ConsoleReporter:
    """Reports to standard error, so that standard output stays for results. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live = self.console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]:<18}"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._stage = ""
        self._task: TaskID | None = None

    def __enter__(self) -> "ConsoleReporter":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage(self, name: str, text: str) -> None:
        """Name the stage that starts."""
        self._stage = name
        if not self._live:
            self._print(f"[bold]{name:<20}[/bold] ...")

    def task(self, text: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Count rows or steps; shows rate and time left."""
        start, done, said = time.monotonic(), 0, time.monotonic()
        self._remove_task()
        if self._live:
            self._task = self._progress.add_task(text, total=total, stage=self._stage, rate="")

        def advance(n: int) -> None:
            nonlocal done, said
            done += n
            now = time.monotonic()
            rate = done / max(now - start, 1e-6)
            if self._live and self._task is not None:
                self._progress.update(self._task, completed=done, rate=f"{rate:,.1f} {unit}/s")
            elif not self._live and now - said >= LINE_SECONDS:
                said = now
                left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
                self._print(f"{'':<20} {text}: {done:,} of {total or 0:,} {unit}, {rate:,.1f} {unit}/s{left}")

        return advance

    def note(self, text: str) -> None:
        """Show a line."""
        self._print(f"{'':<20} {_escape(text)}")

    def done(self, name: str, text: str, seconds: float) -> None:
        """Show how a stage ended."""
        self._remove_task()
        took = f" [dim]{seconds:,.1f} s[/dim]" if seconds >= 0.05 else ""
        self._print(f"[bold green]{name:<20}[/bold green] {_escape(text)}{took}")

    def _remove_task(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)
        if not self._live:
            sys.stderr.flush()


def _escape(text: str) -> str:
    return text.replace("[", "\\[")

"""What a check found, as tables for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from semievol.checking import CheckResult, RenderedPrompt
from semievol.money import Money

MOST_TARGETS = 8


def render_check(found: CheckResult) -> Group:
    """Faults and warnings last, where they are seen."""
    parts: list[RenderableType] = []
    if found.rows is not None:
        parts += [_rows(found), *(Text(f"  {note}", style="dim") for note in found.rows.notes), Text()]
    if found.prompts:
        parts += [*(_prompt(p) for p in found.prompts), Text()]
    if found.lengths:
        parts += [_lengths(found), Text()]
    if found.plan:
        parts += [_plan(found), Text()]
    if found.money is not None:
        parts += [_money(found.money), Text()]
    parts += _needs(found)
    parts += [Text(f"note: {text}", style="dim") for text in found.notes]
    parts += [Text(f"warning: {text}", style="yellow") for text in found.warnings]
    parts += [Text(f"fault: {text}", style="bold red") for text in found.faults]
    if found.faults:
        n = len(found.faults)
        parts.append(Text(f"{n} fault{'s' if n > 1 else ''}: this run would stop", style="bold red"))
    else:
        parts.append(Text("ready to run", style="bold green"))
    return Group(*parts)


def size(n_bytes: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit in ("B", "kB") else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


def _count(n: int) -> str:
    """A number of tokens in k or M."""
    return f"{n / 1e6:,.1f} M" if n >= 1e6 else f"{n / 1e3:,.0f} k" if n >= 1e4 else f"{n:,}"


def duration(low: float, high: float) -> str:
    """A range of seconds, in a unit that suits its end."""
    scale, unit = (1, "s") if high < 120 else (60, "min") if high < 7200 else (3600, "h")
    digits = 1 if unit == "h" else 0
    return f"{low / scale:.{digits}f}-{high / scale:.{digits}f} {unit}"


def _table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", header_style="dim")
    return table


def _rows(found: CheckResult) -> Table:
    rows = found.rows
    assert rows is not None
    table = _table("data", ("", "rows", ""), left=1)
    table.columns[2].justify = "left"
    targets = sorted(rows.targets.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{target} {n}" for target, n in targets[:MOST_TARGETS])
    more = f", and {len(targets) - MOST_TARGETS} more" if len(targets) > MOST_TARGETS else ""
    sealed = f"{rows.gold_sealed:,} of them with a target, which is sealed" if rows.gold_sealed else ""
    table.add_row("labelled", f"{rows.labeled:,}", Text(shown + more))
    table.add_row("unlabelled", f"{rows.unlabeled:,}", sealed)
    table.add_row("test", f"{rows.test:,}", "")
    table.add_row("rejected", f"{rows.rejected:,}", "")
    table.add_row(
        "duplicates", f"{rows.duplicates:,}", f"{rows.duplicates_dropped:,} dropped" if rows.duplicates else ""
    )
    return table


def _prompt(prompt: RenderedPrompt) -> Panel:
    text = Text(_shorten(prompt.text))
    if prompt.completion is not None:
        text.append(f"⟦{prompt.completion}⟧", style="bold green")
    return Panel(text, title=f"{prompt.stage}: a prompt as the model sees it", title_align="left", border_style="dim")


def _shorten(text: str, most: int = 1600) -> str:
    """The start and the end of a long prompt; the JSON output has all of it."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}\n[... {len(text) - most:,} characters ...]\n{text[-most // 2 :]}"


def _lengths(found: CheckResult) -> Table:
    table = _table("tokens", ("prompt", "rows", "min", "median", "max", "limit"))
    for x in found.lengths:
        table.add_row(
            x.prompt, f"{x.n_rows:,}", f"{x.shortest:,}", f"{x.median:,.0f}", f"{x.longest:,}", f"{x.limit:,}"
        )
    return table


def _plan(found: CheckResult) -> Table:
    timing: dict[str, Any] = found.timing or {}
    seconds = {s["stage"]: s for s in timing.get("stages", [])}
    rounds = f", {found.config.rounds} rounds" if found.config.rounds > 1 else ""
    columns = ["stage", "", "rows", "tokens", "scored", "sampled", "steps"]
    table = _table(f"plan{rounds}", columns + (["time"] if timing else []), left=2)
    for i, column in enumerate(table.columns):
        column.no_wrap = i != 1  # a narrow terminal wraps the description alone
    for p in found.plan:
        bound = "≤ " if p.at_most else ""
        tokens = f"{bound}{_count(p.prompt_tokens or p.train_tokens)}" if p.prompt_tokens or p.train_tokens else ""
        counts = [tokens, *(f"{bound}{n:,}" if n else "" for n in (p.n_scored, p.n_sampled, p.optimizer_steps))]
        rows = f"{bound if p.stage == 'evolve' else ''}{p.rows:,}"
        row = [p.stage, p.what, rows, *counts]
        if timing:
            s = seconds[p.stage]
            row.append(duration(s["low"], s["high"]) if s["high"] >= 0.5 else "")
        table.add_row(*row)
    if timing:
        total = duration(timing["total_low"], timing["total_high"])
        table.add_row("total", *[""] * (len(columns) - 1), total, style="bold")
    return table


def dollars(low: float, high: float) -> str:
    """A range of US dollars."""
    digits = 2 if high >= 1 else 4
    return f"${low:,.{digits}f}-{high:,.{digits}f}"


def _money(money: Money) -> Table:
    source = "prices of the config" if money.as_of == "config" else f"prices of {money.as_of}"
    table = _table(f"money, {source}", ("stage", "requests", "input", "output", "training", "US dollars"))
    for s in money.stages:
        counts = [_count(n) if n else "" for n in (s.input_tokens, s.output_tokens, s.training_tokens)]
        cost = "unknown" if s.low is None or s.high is None else dollars(s.low, s.high)
        table.add_row(s.stage, f"{s.requests:,}" if s.requests else "", *counts, cost)
    total = dollars(money.low, money.high) + (" and unknown" if money.unknown else "")
    table.add_row("total", f"{money.requests:,}", "", "", "", total, style="bold")
    return table


def _needs(found: CheckResult) -> list[RenderableType]:
    """Model, memory and disk, a line each."""
    lines: list[str] = []
    if found.model is not None:
        m = found.model
        trained = "" if m.n_adapter == m.n_parameters else f", {m.n_adapter / 1e6:,.1f} M trained"
        lines.append(
            f"model    {found.config.model.path}: {m.architecture}, {m.n_parameters / 1e6:,.1f} M parameters{trained}"
        )
    if found.memory is not None:
        x = found.memory
        lines.append(
            f"memory   about {size(x.generation)} for generation, {size(x.training)} for training; "
            f"{x.device} has {size(x.available)}"
        )
    if found.disk is not None:
        d = found.disk
        parts = f"models {size(d.models)}, checkpoints {size(d.checkpoints)}, rows {size(d.rows)}"
        lines.append(f"disk     about {size(d.needed)} ({parts}); {size(d.free)} free")
    if found.finished:
        lines.append(
            f"folder   {found.config.output_dir} has {len(found.finished)} finished stages: {', '.join(found.finished)}"
        )
    return [*(Text(line) for line in lines), Text()] if lines else []

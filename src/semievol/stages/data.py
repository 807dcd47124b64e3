"""Read, check and split the rows; find duplicates; seal the targets of the unlabelled rows.

Reads   the files of the config
Writes  data/labeled, data/unlabeled, data/test, data/sealed_gold, data/rejected, data/duplicates, data/task,
data/counts

After this stage no artifact but data/sealed_gold holds a target of an unlabelled row, and only `evaluate` may open it.
"""

from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from semievol.answering import max_tokens
from semievol.artifacts import SEALED_GOLD, file_hash
from semievol.drafts import Rejected
from semievol.duplicates import Duplicate
from semievol.loading import LoadedData, load_examples
from semievol.prompts import PromptBuilder
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Example, Gold, TaskFacts


def load(ctx: StageContext) -> LoadedData:
    """Read the rows of the run; prompts without demonstrations have to fit."""
    config, tokens = ctx.config, ctx.backends.tokens
    limit = tokens.max_length - max_tokens(config, config.propagate.max_tokens)
    prompts = cache(lambda facts: PromptBuilder(config.task, facts))

    def count_prompt(example: Example, facts: TaskFacts) -> int:
        return tokens.count_prompt(prompts(facts).answer(example))

    return load_examples(config, count_prompt=count_prompt, max_prompt_tokens=limit, folder=ctx.run_dir.path)


def input_files(ctx: StageContext) -> list[Any]:
    """The seed of the draws; name and content hash of every local input file; other sources by name."""
    data = ctx.config.data
    sources = [s for s in (data.path, data.labeled, data.unlabeled, data.test) if s is not None]
    return [ctx.config.data_seed, *([s, _hash_once(Path(s)) if Path(s).is_file() else None] for s in sources)]


def _hash_once(path: Path) -> str:
    """The runs of a comparison read the same files: each is hashed again only if it was written to."""
    found = path.stat()
    return _hash_cached(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_cached(path: Path, size: int, modified: int) -> str:
    return file_hash(path)


def run(ctx: StageContext) -> StageStats:
    """Load, then write every row to exactly one place."""
    loaded = load(ctx)
    for note in loaded.notes:
        ctx.reporter.note(note)
    ctx.write("data/labeled", loaded.labeled, Example)
    ctx.write("data/unlabeled", loaded.unlabeled, Example)
    ctx.write("data/test", loaded.test, Example)
    ctx.write(SEALED_GOLD, loaded.gold, Gold)
    ctx.write("data/rejected", loaded.rejected, Rejected)
    ctx.write("data/duplicates", loaded.duplicates, Duplicate)
    ctx.write_json("data/task", asdict(loaded.facts))
    counts: dict[str, Any] = {
        "n_read": loaded.counts.read,
        "n_labeled": len(loaded.labeled),
        "n_unlabeled": len(loaded.unlabeled),
        "n_test": len(loaded.test),
        "n_rejected": loaded.counts.rejected,
        "n_duplicates_dropped": loaded.counts.duplicate,
        "n_not_drawn": loaded.counts.not_drawn,
        "n_gold_sealed": len(loaded.gold),
    }
    targets = {split: dict(counted) for split, counted in loaded.target_counts.items()}
    ctx.write_json("data/counts", counts | {"notes": list(loaded.notes), "targets": targets})
    return counts


STAGE = Stage(
    "data",
    reads=(),
    writes=(
        "data/labeled",
        "data/unlabeled",
        "data/test",
        SEALED_GOLD,
        "data/rejected",
        "data/duplicates",
        "data/task",
        "data/counts",
    ),
    sections=("task", "data", "model", "propagate.max_tokens"),
    run=run,
    fingerprint_extra=input_files,
)

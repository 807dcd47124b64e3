"""Read, check and split the rows; find duplicates; seal the targets of the unlabelled rows.

Reads   the files of the config
Writes  data/labeled, data/unlabeled, data/test, data/sealed_gold, data/rejected, data/duplicates, data/not_drawn,
data/task, data/counts

After this stage no artifact but data/sealed_gold holds a target of an unlabelled row. Of a run only `evaluate` may open
it, of a comparison with gold also `audit` and the two oracles.
"""

from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from semievol.answering import max_tokens
from semievol.artifacts import SEALED_GOLD, content_hash, file_hash
from semievol.drafts import Rejected
from semievol.duplicates import Duplicate
from semievol.loading import LoadedData, NotDrawn, load_examples
from semievol.prompts import PromptBuilder
from semievol.stage import Stage, StageContext, StageStats
from semievol.tables import DATASET_FILES, is_saved_dataset, locate_source
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
    """The seed of the draws; name and content hash of every local file and saved dataset; other sources by name."""
    data = ctx.config.data
    sources = [s for s in (data.path, data.labeled, data.unlabeled, data.test) if s is not None]
    return [ctx.config.data_seed, *([s, _hash_source(s)] for s in sources)]


def _hash_source(source: str) -> str | None:
    """Of a file its hash, of a saved dataset that of the names and bytes of its own files, of anything else None."""
    _, path, _ = locate_source(source)
    if path.is_file():
        return _hash_once(path)
    if not (path.is_dir() and is_saved_dataset(path)):
        return None
    # cache-*.arrow is what the library itself leaves there when somebody works with the dataset
    tables = (p for p in path.rglob("*.arrow") if p.is_file() and not p.match("cache-*"))
    files = sorted([*tables, *(p for name in DATASET_FILES for p in path.rglob(name))])
    return content_hash([(p.relative_to(path).as_posix(), _hash_once(p)) for p in files])


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
    ctx.write("data/not_drawn", loaded.not_drawn, NotDrawn)
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
    about: dict[str, Any] = {"notes": list(loaded.notes), "targets": targets}
    if loaded.counts_from_zero:
        about["counts_from_zero"] = list(loaded.counts_from_zero)
    ctx.write_json("data/counts", counts | about)
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
        "data/not_drawn",
        "data/task",
        "data/counts",
    ),
    sections=("task", "data", "model", "propagate.max_tokens"),
    run=run,
    fingerprint_extra=input_files,
)

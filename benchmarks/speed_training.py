"""Speed of LoRA training beside a bare PyTorch loop, and the padding of training batches, for benchmarks/speed.py."""

import gc
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import prepare_banking77
import torch
from speed_ceilings import matmul_ceiling, synchronize
from speed_generation import CHOICES, spread_lengths, ticket_texts
from speed_models import SHAPES, Shape, lora_training_flops, write_model
from speed_timing import Figure, Setting, median_ratio, padding_share
from torch.nn.functional import cross_entropy

from semievol.backends.hf import open_model, open_tokenizer
from semievol.backends.sft_batches import IGNORED, CompletionCollator, LengthGroupedEpochs
from semievol.backends.sft_rows import EncodedRow, encode_rows
from semievol.backends.trl import TrlTrainer
from semievol.config import ModelConfig, TaskConfig, TrlTrainerConfig, parse_config
from semievol.loading import load_examples
from semievol.prompts import PromptBuilder
from semievol.sft import build_sft_rows
from semievol.types import Example, ModelRef, SftRow, TaskFacts

BATCH = 8
RANK = 16
LEARNING_RATE = 1e-4
SEED = 0


class Job(NamedTuple):
    """A training that is timed."""

    model: ModelConfig
    rows: list[SftRow]
    encoded: list[EncodedRow]
    batch: int
    bf16: bool

    @property
    def batches(self) -> list[list[EncodedRow]]:
        """The batches of one epoch, in the order of the trainer."""
        lengths = [len(row.input_ids) for row in self.encoded]
        order = list(LengthGroupedEpochs(lengths, self.batch, seed=SEED))
        return [[self.encoded[i] for i in order[at : at + self.batch]] for at in range(0, len(order), self.batch)]


def make_job(model: ModelConfig, *, steps: int, batch: int, bf16: bool) -> Job:
    """`steps` batches of rows of 100 to 400 tokens that share no start, so no token is run for two rows at once."""
    builder = PromptBuilder(TaskConfig(type="choice", instruction=""), TaskFacts())
    texts = ticket_texts(model, spread_lengths(steps * batch, 65, 355))
    examples = [Example(str(i), text, choices=CHOICES, target="ABCD"[i % 4]) for i, text in enumerate(texts)]
    rows = build_sft_rows(examples, builder)
    return Job(model, rows, encode_rows(open_tokenizer(model), rows), batch, bf16)


def measure_training(setting: Setting) -> list[Figure]:
    """Tokens a second of the trainer over those of a bare loop over the same batches."""
    path = write_model(SHAPES["135M"], setting.folder / "135M", dtype=torch.float32)
    model = ModelConfig(path=str(path), dtype="float32", device=setting.device)
    job = make_job(model, steps=setting.rows(10, least=3), batch=setting.rows(BATCH, least=2), bf16=False)
    ours, bare = [], []
    for _ in range(setting.repeats):
        bare.append(time_bare_loop(job, setting))
        ours.append(time_trainer(job, setting))
    tokens = sum(len(row.input_ids) for batch in job.batches[1:] for row in batch)
    details = {
        "steps": len(job.batches) - 1,
        "batch": job.batch,
        "tokens": tokens,
        "tokens_per_second": round(tokens / statistics.median(ours), 1),
        "bare_tokens_per_second": round(tokens / statistics.median(bare), 1),
    }
    rates = f"{details['tokens_per_second']:,.0f} against {details['bare_tokens_per_second']:,.0f}"
    ratio = median_ratio(bare, ours)
    return [
        Figure(f"LoRA training (r = {RANK}), 135M: tokens/s over a bare loop", ratio, "", 0.9, False, rates, details)
    ]


def time_trainer(job: Job, setting: Setting) -> float:
    """Seconds of all steps but the first, which warms up, in `TrlTrainer.fit`."""
    config = TrlTrainerConfig(
        r=RANK,
        learning_rate=LEARNING_RATE,
        num_train_epochs=1,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        precision="bf16" if job.bf16 else "fp32",
        save_steps=10**6,
    )
    stamps: list[float] = []

    def note(_: int) -> None:
        synchronize(setting.device)
        stamps.append(setting.watch.clock())

    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        TrlTrainer(job.model).fit(
            ModelRef(job.model.path), job.rows, Path(folder) / "adapter", config=config, seed=SEED, progress=note
        )
    return stamps[-1] - stamps[0]


def time_bare_loop(job: Job, setting: Setting) -> float:
    """Seconds of all steps but the first in the shortest loop that trains the same adapter on the same batches.

    It knows our trick of projecting to the vocabulary behind the prompts alone, so what is compared are the loops.
    """
    from peft import LoraConfig, get_peft_model

    base = open_model(job.model, ModelRef(job.model.path), trainable=True)
    for weight in base.parameters():
        weight.requires_grad_(False)
    lora = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, lora)
    weights = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    collate = CompletionCollator(0, start_first=False)
    started = 0.0
    for step, rows in enumerate(job.batches):
        if step == 1:
            synchronize(setting.device)
            started = setting.watch.clock()
        batch = {name: value.to(base.device) for name, value in collate(as_records(rows)).items()}
        labels = batch.pop("labels")
        keep = labels.shape[1] - int((labels != IGNORED).any(dim=0).to(torch.uint8).argmax()) + 1
        logits = model(**batch, use_cache=False, logits_to_keep=keep).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1 - keep :].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    synchronize(setting.device)
    seconds = setting.watch.clock() - started
    del model, base, optimizer
    gc.collect()
    return seconds


def as_records(rows: Sequence[EncodedRow]) -> list[dict[str, Any]]:
    """Rows as the trainer's data set holds them."""
    return [
        {
            "input_ids": list(row.input_ids),
            "labels": [IGNORED] * row.n_prompt + list(row.input_ids[row.n_prompt :]),
        }
        for row in rows
    ]


def training_utilisation(
    setting: Setting, shape: Shape, model: ModelConfig, *, steps: int, batch: int
) -> tuple[float, dict[str, Any]]:
    """FLOP/s of LoRA training over those of the fastest bf16 matrix product, and what the share is made of."""
    job = make_job(model, steps=steps, batch=batch, bf16=True)
    timed = [row for rows in job.batches[1:] for row in rows]
    lengths = [len(row.input_ids) for row in timed]
    n_logits = sum(row.n_completion for row in timed)
    flops = lora_training_flops(shape, lengths, rank=RANK, logit_columns=n_logits)
    before = matmul_ceiling(torch.bfloat16, setting.device, clock=setting.watch.clock)
    torch.cuda.reset_peak_memory_stats()
    seconds = time_trainer(job, setting)
    peak = torch.cuda.max_memory_allocated()
    after = matmul_ceiling(torch.bfloat16, setting.device, clock=setting.watch.clock)
    return flops / seconds / ((before + after) / 2), {
        "tokens_per_second": round(sum(lengths) / seconds),
        "batch": batch,
        "peak_memory_bytes": peak,
    }


def measure_padding(setting: Setting) -> list[Figure]:
    """Share of padding in one epoch of training batches, with the Pocket LM's tokenizer."""
    names = {"FPB": "fpb", "banking77": "banking77"}
    if setting.data is None:
        return [Figure(f"padding of training tokens, {n}", None, "", 0.05, True, "no --data") for n in names]
    found = []
    for name, sections in (("FPB", fpb_sections(setting)), ("banking77", banking_sections(setting))):
        config = parse_config({"output_dir": str(setting.folder / name), "model": {"path": "pocket"}, **sections})
        loaded = load_examples(config)
        rows = build_sft_rows(loaded.labeled, PromptBuilder(config.task, loaded.facts))
        job = Job(config.model, rows, encode_rows(open_tokenizer(config.model), rows), BATCH, bf16=False)
        masks = [
            CompletionCollator(0, start_first=False)(as_records(b))["attention_mask"].tolist() for b in job.batches
        ]
        after_start = [_behind_start(batch) for batch in job.batches]
        details = {"rows": len(rows), "behind_the_shared_start": padding_share(after_start)}
        note = f"{len(rows)} rows, {BATCH} a batch; {100 * details['behind_the_shared_start']:.1f}% of what is run"
        share = padding_share(masks)
        found.append(Figure(f"padding of training tokens, {name}", share, "", 0.05, True, note, details))
    return found


def _behind_start(batch: Sequence[EncodedRow]) -> list[list[int]]:
    """The mask of the columns that are run row by row where the common start is run once; and that start as one row."""
    records = as_records(batch)
    mask = CompletionCollator(0, start_first=True)(records)["attention_mask"]
    n_start = int((mask == 1).all(dim=0).to(torch.int64).cumprod(dim=0).sum())
    ids = [row.input_ids for row in batch]
    shared = next((i for i in range(n_start) if len({row[i] for row in ids}) > 1), n_start)
    return [*mask[:, shared:].tolist(), [1] * shared]


def fpb_sections(setting: Setting) -> dict[str, Any]:
    """The authors' split of FPB."""
    assert setting.data is not None
    folder = setting.data / "semievol" / "fpb"
    return {"data": {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}}


def banking_sections(setting: Setting) -> dict[str, Any]:
    """All 77 intents as one label set; 2,000 labelled rows, drawn as benchmarks/quality.py does."""
    assert setting.data is not None
    folder, n = setting.folder / "banking77", setting.rows(2000, least=400)
    rows = prepare_banking77.read(setting.data / "banking77" / "train.csv")
    random.Random(0).shuffle(rows)
    records = [(row["text"], prepare_banking77.name_of(row["category"])) for row in rows]
    for name, part in {"labeled": records[:n], "unlabeled": records[n : n + 20]}.items():
        prepare_banking77.write(folder / f"{name}.csv", ("question", "answer"), part)
    files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled")}
    return {"task": {"type": "label"}, "data": files}

"""Measures the Pocket LM, as users get it, and writes `src/semievol/demo/pocket/card.json`.

    python tools/measure_pocket.py --shared FOLDER
    python tools/measure_pocket.py --shared FOLDER --only base --limit 150     # a quick look, writes nothing

Each number comes from the folder that `pocket_lm_dir` puts together from the exported delta, after quantisation. Two
sets that training never sees: Financial PhraseBank (3 options; the SemiEvol release) and banking77 restricted to the
10 intents with most training rows. 60 labelled rows are drawn by seed; every accuracy is over all test rows.
"""

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pocket_tasks
import torch
import transformers
from safetensors import safe_open

from semievol.config import TaskConfig
from semievol.demo import pocket
from semievol.prompts import PromptBuilder
from semievol.types import Example, TaskFacts, choice_letter

K = 3
N_LABELED = 60
N_INTENTS = 10
SFT = {
    "full": {"learning_rate": 3e-4, "max_steps": 60, "batch_size": 16},
    "lora": {
        "learning_rate": 2e-3,
        "max_steps": 60,
        "batch_size": 16,
        "r": 16,
        "lora_alpha": 32,
        "target_modules": "all-linear",
    },
}


class Task:
    """Labelled rows, test rows, their neighbours among the labelled, and the product's prompts for them."""

    def __init__(self, name: str, labeled: list[Example], test: list[Example]) -> None:
        self.name, self.labeled, self.test = name, labeled, test
        self.builder = PromptBuilder(TaskConfig(type="choice"), TaskFacts(shared_choices=labeled[0].choices))
        self.letters = [choice_letter(i) for i in range(len(labeled[0].choices))]


def load_fpb(shared: Path, seed: int) -> Task:
    """Financial PhraseBank: 60 labelled rows of 452, all 453 test rows."""
    parts = []
    for split in ("labeled", "test"):
        frame = pandas.read_csv(shared / "data" / "semievol" / "fpb" / f"{split}.csv")
        parts.append(
            [
                Example(f"{split}-{i}", row.question, choices=tuple(json.loads(row.options)), target=row.answer)
                for i, row in enumerate(frame.itertuples())
            ]
        )
    return Task("fpb", random.Random(seed).sample(parts[0], N_LABELED), parts[1])


def load_banking(shared: Path, seed: int) -> Task:
    """banking77: the 10 intents with most training rows (ties by name), as lettered options in order of name."""
    frames = [pandas.read_csv(shared / "data" / "banking77" / f"{split}.csv") for split in ("train", "test")]
    ranked = sorted(Counter(frames[0].category).items(), key=lambda item: (-item[1], item[0]))
    intents = sorted(name for name, _ in ranked[:N_INTENTS])
    choices = tuple(name.replace("_", " ") for name in intents)
    parts = [
        [
            Example(f"{i}", row.text, choices=choices, target=choice_letter(intents.index(row.category)))
            for i, row in enumerate(frame.itertuples())
            if row.category in intents
        ]
        for frame in frames
    ]
    return Task("banking77_10way", random.Random(seed).sample(parts[0], N_LABELED), parts[1])


# -- demonstrations ---------------------------------------------------------------------------------------------------

Neighbours = Callable[[Task, Sequence[Example]], list[list[Example]]]


def no_demonstrations(task: Task, rows: Sequence[Example]) -> list[list[Example]]:
    """Zero-shot."""
    return [[] for _ in rows]


def random_demonstrations(task: Task, rows: Sequence[Example]) -> list[list[Example]]:
    """K labelled rows by chance."""
    rng = random.Random(7)
    return [rng.sample(task.labeled, K) for _ in rows]


def dense_neighbours(task: Task, rows: Sequence[Example]) -> list[list[Example]]:
    """The K labelled rows nearest by MiniLM sentence embeddings, nearest first."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(pocket.minilm_dir()), device="cpu")
    vectors = [
        encoder.encode([e.question for e in part], normalize_embeddings=True, show_progress_bar=False)
        for part in (task.labeled, rows)
    ]
    order = np.argsort(-(vectors[1] @ vectors[0].T), axis=1, kind="stable")
    return [[task.labeled[j] for j in ranks[:K]] for ranks in order]


def bm25_neighbours(task: Task, rows: Sequence[Example]) -> list[list[Example]]:
    """The K labelled rows nearest by BM25, nearest first."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize([e.question for e in task.labeled], show_progress=False), show_progress=False)
    queries = bm25s.tokenize([e.question for e in rows], show_progress=False)
    found, _ = retriever.retrieve(queries, k=K, show_progress=False)
    return [[task.labeled[int(j)] for j in ranks] for ranks in found]


DEMONSTRATIONS: dict[str, Neighbours] = {
    "zero_shot": no_demonstrations,
    "random_3_shot": random_demonstrations,
    "dense_3_shot": dense_neighbours,
    "bm25_3_shot": bm25_neighbours,
}


# -- measures ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def accuracy(
    model: Any, tokenizer: Any, task: Task, rows: Sequence[Example], demonstrations: list[list[Example]]
) -> dict[str, float]:
    """Share of rows whose most likely letter is right, and share where greedy decoding keeps to the format."""
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in task.letters]
    lead = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
    prompts = []
    for example, shown in zip(rows, demonstrations, strict=True):
        messages = [{"role": m.role, "content": m.content} for m in task.builder.answer(example, shown)]
        prompts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    right = formatted = 0
    by_length = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    model.eval()
    for start in range(0, len(rows), 16):
        batch = by_length[start : start + 16]
        texts = [[*prompts[i], *lead, letters[task.letters.index(rows[i].target or "")]] for i in batch]
        length = max(map(len, texts))
        ids = torch.tensor(
            [t + [pocket.PAD] * (length - len(t)) for t in texts]
        )  # causal: padding behind is never seen
        ends = torch.tensor([len(t) for t in texts])[:, None] + torch.arange(-len(lead) - 2, 0)
        hidden = model.get_base_model() if hasattr(model, "get_base_model") else model
        states = hidden.bert(input_ids=ids).last_hidden_state
        logits = hidden.cls(states[torch.arange(len(batch))[:, None], ends])
        for row, i in enumerate(batch):
            best = logits[row].argmax(-1).tolist()
            right += int(logits[row, -2, letters].argmax()) == task.letters.index(rows[i].target or "")
            formatted += best[: len(lead)] == lead and best[-2] in letters and best[-1] == pocket.EOS
    return {"accuracy": round(right / len(rows), 4), "format": round(formatted / len(rows), 4)}


def fine_tune(folder: Path, task: Task, method: str, settings: dict[str, Any], seed: int) -> tuple[Any, float]:
    """Trains on the completions of the zero-shot prompts of the labelled rows; the model and the seconds taken."""
    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        keys = ("r", "lora_alpha", "target_modules")
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{key: settings[key] for key in keys}))
    rows = []
    for example in task.labeled:
        messages = [{"role": m.role, "content": m.content} for m in task.builder.answer(example)]
        answer = {"role": "assistant", "content": task.builder.completion(example.target or "", example)}
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        rows.append((len(prompt), tokenizer.apply_chat_template([*messages, answer], return_dict=False)))
    base = model.get_base_model() if method == "lora" else model
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.0)
    n_steps, size, rng = settings["max_steps"], settings["batch_size"], random.Random(seed)
    queue: list[tuple[int, list[int]]] = []
    began = time.monotonic()
    model.train()
    for step in range(n_steps):
        if len(queue) < size:
            queue += rng.sample(rows, len(rows))
        batch, queue = queue[:size], queue[size:]
        length = max(len(ids) for _, ids in batch)
        ids = torch.tensor([row + [pocket.PAD] * (length - len(row)) for _, row in batch])
        places = torch.arange(length)[None]
        starts, ends = (torch.tensor(x)[:, None] for x in ([n for n, _ in batch], [len(row) for _, row in batch]))
        trained = ((places >= starts) & (places < ends))[:, 1:]
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * min(1.0, 10 * (step + 1) / n_steps) * (1 - step / n_steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = base.cls(base.bert(input_ids=ids).last_hidden_state[:, :-1][trained])
        torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][trained]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, time.monotonic() - began


@torch.inference_mode()
def prose_loss(model: Any, tokenizer: Any, shared: Path, cache: Path, corpus_chars: int) -> dict[str, float]:
    """Mean loss in nats a token on documents held out of training, windows of 256 tokens, by corpus."""
    losses = {}
    for name in pocket_tasks.CORPORA:
        held_out = pocket_tasks.load_prose(shared, cache, name, tokenizer, corpus_chars)[3]
        windows = []
        for row in range(len(held_out)):
            ids = held_out.row(row, 2550)
            windows += [[pocket.BOS, *ids[i : i + 255]] for i in range(0, len(ids) - 254, 255)]
        if windows:
            ids = torch.tensor(windows[:8])
            total = sum(float(model(input_ids=part, labels=part).loss) * len(part) for part in ids.split(8))
            losses[name] = round(total / len(ids), 3)
    return losses


def main() -> None:
    """Parses the command line, measures, writes the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/semievol/fpb and data/banking77")
    parser.add_argument(
        "--cache-dir", type=Path, help="where the folder and the tokens of prose are kept; default: a temporary one"
    )
    parser.add_argument(
        "--corpus-chars", type=int, default=8_000_000, help="of each corpus, in the search for held-out prose"
    )
    parser.add_argument("--only", choices=("base", "full", "lora"), help="measure one thing and write nothing")
    parser.add_argument(
        "--finished-only", action="store_true", help="write the card from what --cache-dir already holds"
    )
    parser.add_argument("--task", choices=("fpb", "banking77_10way"), help="measure one set and write nothing")
    parser.add_argument("--limit", type=int, help="test rows of each set; writes nothing")
    parser.add_argument("--lora-learning-rate", type=float)
    parser.add_argument("--lora-steps", type=int)
    parser.add_argument("--lora-r", type=int)
    parser.add_argument("--full-learning-rate", type=float)
    parser.add_argument("--seeds", type=int, default=1, help="draws of the 60 labelled rows; means are reported")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    for key, value in (("learning_rate", args.lora_learning_rate), ("max_steps", args.lora_steps), ("r", args.lora_r)):
        SFT["lora"][key] = value or SFT["lora"][key]
    SFT["full"]["learning_rate"] = args.full_learning_rate or SFT["full"]["learning_rate"]
    card_path = pocket.DATA_DIR / "card.json"
    if not card_path.exists():
        card_path.write_text("{}\n", encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache_dir or Path(temporary)
        folder = pocket.pocket_lm_dir(cache)
        card = measure(folder, cache, args)
    print(json.dumps(card, indent=2))
    if args.only is None and args.limit is None and args.task is None:
        card_path.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, cache: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of the card."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    delta = pocket.DATA_DIR / "delta.safetensors"
    with safe_open(delta, "np") as file:
        run = file.metadata()
    card: dict[str, Any] = {
        "model": {
            "parameters": sum(p.numel() for p in model.parameters()),
            "delta_megabytes": round(delta.stat().st_size / 1e6, 2),
            "base": f"all-MiniLM-L6-v2 from {pocket.MINILM_PACKAGE}",
            "max_length_tokens": pocket.MAX_LENGTH,
        },
        "training": {
            "tokens": int(run["tokens"]),
            "optimizer_steps": int(run["steps"]),
            "mixture": run.get("mixture", "focused"),
            "data": list(pocket_tasks.SOURCES[run.get("mixture", "focused")]),
            "next_token_prose_share": float(run.get("prose_share", 0.0)),
            "kept_share_of_difference": float(run.get("kept_share", 1.0)),
        },
    }
    if args.only is None and args.task is None:
        card["held_out_prose_loss_nats_per_token"] = prose_loss(model, tokenizer, args.shared, cache, args.corpus_chars)
    card["evaluation"] = {
        "labeled_rows": N_LABELED,
        "demonstrations": K,
        "draws_of_labeled_rows": args.seeds,
        "answer": "the most likely option letter",
        "precision": "bfloat16",
        "format": "share of test rows where greedy decoding gives 'Answer: LETTER' and stops",
    }
    for load in (load_fpb, load_banking):
        measured: dict[str, list[dict[str, float]]] = {}
        for seed in range(args.seeds):
            task = load(args.shared, seed)
            if args.task in (None, task.name):
                rows = task.test if args.limit is None else random.Random(0).sample(task.test, args.limit)
                for name, result in _measure_task(folder, cache, task, rows, seed, args).items():
                    measured.setdefault(name, []).append(result)
        if measured:
            card[task.name] = {
                "test_rows": len(rows),
                "majority_class": round(max(Counter(e.target for e in rows).values()) / len(rows), 4),
                **{
                    name: {key: round(float(np.mean([r[key] for r in results])), 4) for key in results[0]}
                    for name, results in measured.items()
                },
            }
    if args.only != "base":
        done = {name for section in card.values() for name in section}
        card["fine_tuning"] = {method: settings for method, settings in SFT.items() if f"sft_{method}" in done}
        for settings in card["fine_tuning"].values():
            settings |= {
                "optimizer": "AdamW",
                "lr_scheduler_type": "linear, 10 % warm-up",
                "device": f"CPU, {args.threads} thread(s), bfloat16 autocast, shared with other work",
            }
    return card


def _delta_hash() -> str:
    return hashlib.sha256((pocket.DATA_DIR / "delta.safetensors").read_bytes()).hexdigest()[:12]


def _measure_task(
    folder: Path, cache: Path, task: Task, rows: Sequence[Example], seed: int, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Results by name. Each is kept under `cache`, so that a second run goes on, and two may share the work."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    parts: dict[str, dict[str, dict[str, float]]] = {}
    for method in ("base", *SFT):
        if args.only not in (None, method):
            continue
        settings = SFT.get(method, {})
        key = "-".join(map(str, (_delta_hash(), task.name, len(rows), seed, method, *settings.values())))
        path = cache / f"measured-{key}.json"
        if args.finished_only and not path.exists():
            continue
        if not path.exists():
            shown = {name: find(task, rows) for name, find in DEMONSTRATIONS.items()}
            part = {}
            if method == "base":
                model = transformers.AutoModelForCausalLM.from_pretrained(folder)
                prefix, names = "base", list(shown)
            else:
                model, seconds = fine_tune(folder, task, method, settings, seed)
                prefix, names = f"sft_{method}", ["zero_shot", "dense_3_shot"]
                part[prefix] = {"seconds": round(seconds, 1)}
            model = model.to(torch.bfloat16)
            for name in names:
                part[f"{prefix}_{name}"] = accuracy(model, tokenizer, task, rows, shown[name])
                print(task.name, f"{prefix}_{name}", part[f"{prefix}_{name}"], flush=True)
            path.write_text(json.dumps(part), encoding="utf-8")
        parts[method] = json.loads(path.read_text(encoding="utf-8"))
    return {name: result for part in parts.values() for name, result in part.items()}


if __name__ == "__main__":
    main()

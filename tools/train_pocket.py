r"""Trains the Pocket LM: all-MiniLM-L6-v2 opened as a causal decoder, and writes the difference as `delta.safetensors`.

    python tools/train_pocket.py train --shared FOLDER --output-dir build/pocket --minutes 40
    python tools/train_pocket.py train --shared FOLDER --output-dir build/pocket --max-tokens 3e8 --device cuda \
        --batch-tokens 131072 --workers 14 --compile
    python tools/train_pocket.py export --output-dir build/pocket

Under `torchrun --nproc-per-node N` the processes average their gradients. On a CPU whose cores are shared with other
work, two processes of one thread are much faster than one of two: threads meet after every operation.

`train` continues from `checkpoint.pt` of the output folder; a budget counts from where it stopped. The learning rate
warms up, stays, and falls linearly to a tenth over the last 40 % of the budget. Weights are kept in float32 and used in
bfloat16. The word embeddings stay those of MiniLM; the LM head is tied to them.

Training reads `corpora/*.txt.xz` and `data/pretrain_tasks/*.jsonl` under `--shared`, nothing else.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pocket_tasks
import torch
import torch.distributed as dist
import transformers
from pocket_tasks import Episode, EpisodeSource, Tasks
from torch.nn import functional

from semievol.demo import pocket

PROSE_TOKENS = 192
PROSE_TRAINED_SHARE = 0.125  # of the positions of prose: the output matrix costs as much as the rest of the model
PROSE_WEIGHT = 0.5  # of a prose token in the loss, against 1 of an answer token
EPISODES_SORTED = 512
LETTER_IDS = (1037, 1062)  # a to z
FROZEN = "bert.embeddings.word_embeddings.weight"


class Batches(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """(input ids, targets with -100, weights), each (n, length): rows of like length, about `batch_tokens` in all."""

    def __init__(
        self, tasks: Tasks, tokenizer: Any, batch_tokens: int, prose_share: float, seed: int, mixture: str
    ) -> None:
        self.mixture = mixture
        self.tasks, self.tokenizer = tasks, tokenizer
        self.batch_tokens, self.prose_share, self.seed = batch_tokens, prose_share, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        source = EpisodeSource(
            self.tasks, self.tokenizer, self.seed * 1000 + (worker.id if worker else 0), self.mixture
        )
        rng = source.random
        episodes = iter(source)
        n_sorted = max(EPISODES_SORTED, 4 * self.batch_tokens // 200)
        while True:
            drawn: list[tuple[Episode, float]] = []
            prose_tokens = task_tokens = 0
            while len(drawn) < n_sorted:
                if prose_tokens < self.prose_share * (prose_tokens + task_tokens):
                    drawn.append(
                        (source.prose(rng.randint(PROSE_TOKENS // 3, PROSE_TOKENS), PROSE_TRAINED_SHARE), PROSE_WEIGHT)
                    )
                    prose_tokens += len(drawn[-1][0].ids)
                else:
                    drawn.append((next(episodes), 1.0))
                    task_tokens += len(drawn[-1][0].ids)
            drawn.sort(key=lambda item: len(item[0].ids))
            groups: list[list[tuple[Episode, float]]] = [[]]
            for item in drawn:
                if len(groups[-1]) and (len(groups[-1]) + 1) * len(item[0].ids) > self.batch_tokens:
                    groups.append([])
                groups[-1].append(item)
            rng.shuffle(groups)
            for group in groups:
                yield _collate(group)


def _collate(group: list[tuple[Episode, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = max(len(e.ids) for e, _ in group)
    length = -(-length // 32) * 32  # few shapes: compiled kernels and the allocator like that
    ids = np.zeros((len(group), length), dtype=np.int64)
    targets = np.full((len(group), length), -100, dtype=np.int64)
    weights = np.zeros((len(group), length), dtype=np.float32)
    for row, (episode, weight) in enumerate(group):
        n = len(episode.ids)
        ids[row, :n] = episode.ids
        trained = np.array(episode.trained[1:], dtype=bool)
        targets[row, : n - 1][trained] = np.array(episode.ids[1:])[trained]
        weights[row, : n - 1][trained] = weight
    return torch.from_numpy(ids[:, :MAX]), torch.from_numpy(targets[:, :MAX]), torch.from_numpy(weights[:, :MAX])


MAX = pocket_tasks.MAX_LENGTH


def load_model(device: str, seed: int) -> tuple[Any, Any]:
    """MiniLM as a causal decoder with a new LM head, and its tokenizer."""
    torch.manual_seed(seed)
    folder = pocket.minilm_dir()
    attention = "eager" if device == "cpu" else "sdpa"  # sdpa's backward is slow on CPU for short rows
    model = transformers.BertLMHeadModel.from_pretrained(
        folder,
        is_decoder=True,
        attn_implementation=attention,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def train(args: argparse.Namespace) -> None:
    """Trains within the budget, then leaves a checkpoint."""
    torch.set_num_threads(args.threads)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    n_processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if n_processes > 1:
        dist.init_process_group("gloo" if args.device == "cpu" else "nccl")
        if args.device != "cpu":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    model, tokenizer = load_model(args.device, args.seed)
    word_vectors = model.get_input_embeddings().weight.detach().numpy()
    tasks = pocket_tasks.load_tasks(args.shared, args.output_dir / "tokens", tokenizer, word_vectors, args.corpus_chars)
    pocket_tasks.check_layout(EpisodeSource(tasks, tokenizer, 0, args.mixture), tokenizer)

    named = {name: p for name, p in model.named_parameters() if name != FROZEN}
    model.get_input_embeddings().weight.requires_grad_(False)
    masters = {name: p.detach().float().clone().to(args.device) for name, p in named.items()}
    decayed = [m for m in masters.values() if m.dim() > 1]
    plain = [m for m in masters.values() if m.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
    checkpoint = args.output_dir / "checkpoint.pt"
    if checkpoint.exists():
        stored = torch.load(checkpoint, map_location=args.device)
        for name, master in masters.items():
            master.copy_(stored["weights"][name])
        optimizer.load_state_dict(stored["optimizer"])
        state = stored["state"]
    state |= {"mixture": args.mixture, "prose_share": args.prose_share}
    if n_processes > 1:
        for master in masters.values():
            dist.broadcast(master, 0)
    model.to(args.device, torch.bfloat16).train()
    with torch.no_grad():
        torch._foreach_copy_(list(named.values()), list(masters.values()))
    forward = torch.compile(model.bert, dynamic=True) if args.compile else model.bert

    batches = torch.utils.data.DataLoader(
        Batches(
            tasks,
            tokenizer,
            args.batch_tokens,
            args.prose_share,
            args.seed + int(state["step"]) + 100_003 * rank,
            args.mixture,
        ),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=8 if args.workers else None,
        pin_memory=args.device != "cpu",
    )
    began, first_tokens, first_step = time.monotonic(), state["tokens"], state["step"]
    saved = logged = began
    sums = torch.zeros(6, device=args.device)
    with (args.output_dir / "log.jsonl").open("a", encoding="utf-8") as log:
        for ids, targets, weights in batches:
            now = time.monotonic()
            progress = max((now - began) / (60 * args.minutes), (state["tokens"] - first_tokens) / args.max_tokens)
            tokens = int((ids != 0).sum())
            if n_processes > 1:
                shared_counts = torch.tensor([progress, tokens], dtype=torch.float64, device=args.device)
                dist.all_reduce(shared_counts)
                progress, tokens = float(shared_counts[0]) / n_processes, int(shared_counts[1])
            if progress >= 1:
                break
            rate = args.learning_rate * min(1.0, (state["step"] - first_step + 1) / args.warmup_steps)
            rate *= 1 - 0.9 * max(0.0, (progress - 0.6) / 0.4)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, targets, weights = (x.to(args.device, non_blocking=True) for x in (ids, targets, weights))
            chosen = targets.flatten() != -100
            hidden = forward(input_ids=ids).last_hidden_state.flatten(0, 1)[chosen]
            losses = functional.cross_entropy(model.cls(hidden).float(), targets.flatten()[chosen], reduction="none")
            chosen_weights = weights.flatten()[chosen]
            ((losses * chosen_weights).sum() / chosen_weights.sum()).backward()
            for name, p in named.items():
                masters[name].grad = None if p.grad is None else p.grad.float()
                p.grad = None
            if n_processes > 1:
                _average([m.grad for m in masters.values() if m.grad is not None], n_processes)
            torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(list(named.values()), list(masters.values()))
                answer = chosen_weights == 1
                letters = (
                    answer & (targets.flatten()[chosen] >= LETTER_IDS[0]) & (targets.flatten()[chosen] <= LETTER_IDS[1])
                )
                parts = [total for kind in (answer, letters, ~answer) for total in (losses[kind].sum(), kind.sum())]
                sums += torch.stack([part.float() for part in parts])
            state["step"] += 1
            state["tokens"] += tokens
            if rank == 0 and now - logged > args.log_seconds:
                totals = sums.tolist()
                elapsed = state["seconds"] + time.monotonic() - began
                row = {
                    "step": state["step"],
                    "tokens": state["tokens"],
                    "seconds": round(elapsed, 1),
                    **{
                        name: round(totals[2 * i] / max(totals[2 * i + 1], 1), 4)
                        for i, name in enumerate(("answer_loss", "letter_loss", "prose_loss"))
                    },
                    "learning_rate": rate,
                }
                print(json.dumps(row), file=log, flush=True)
                print(json.dumps(row), flush=True)
                sums.zero_()
                logged = now
            if rank == 0 and now - saved > 60 * args.checkpoint_minutes:
                _save(checkpoint, masters, optimizer, state | {"seconds": state["seconds"] + now - began})
                saved = now
    state["seconds"] += time.monotonic() - began
    if n_processes > 1:
        dist.destroy_process_group()
    if rank:
        return
    _save(checkpoint, masters, optimizer, state)
    print(f"{state['step']} steps, {state['tokens']} tokens, {state['seconds']:.0f} s in all")


def _average(gradients: list[torch.Tensor], n_processes: int) -> None:
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, (flat / n_processes).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _save(
    path: Path, masters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    part = path.with_suffix(".part")
    torch.save({"weights": masters, "optimizer": optimizer.state_dict(), "state": dict(state)}, part)
    part.replace(path)


def export(args: argparse.Namespace) -> None:
    """Writes the trained difference to MiniLM as `delta.safetensors`, with a summary of the run in its metadata."""
    from safetensors.numpy import load_file, save_file

    stored = torch.load(args.output_dir / "checkpoint.pt", map_location="cpu")
    base = load_file(pocket.minilm_dir() / "model.safetensors")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, weight in stored["weights"].items():
        trained = weight.numpy().astype(np.float32)
        old = base.get(name.removeprefix("bert."))
        if old is not None:
            trained = old + args.keep * (trained - old)
        arrays.update(_pack(name, trained, old))
    state = stored["state"]
    metadata = {"tokens": str(state["tokens"]), "steps": str(state["step"]), "seconds": str(round(state["seconds"]))}
    metadata |= {"kept_share": str(args.keep)}
    metadata |= {key: str(state[key]) for key in ("mixture", "prose_share") if key in state}
    part = args.delta.with_suffix(".part")
    args.delta.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, part, metadata=metadata)
    part.chmod(0o644)  # safetensors makes it private
    part.replace(args.delta)
    print(f"{args.delta}: {args.delta.stat().st_size / 1e6:.2f} MB, {metadata}")


def _pack(
    name: str, trained: np.ndarray[Any, Any], old: np.ndarray[Any, Any] | None
) -> dict[str, np.ndarray[Any, Any]]:
    """A tensor in the format that `semievol.demo.pocket` describes."""
    if old is None:
        return {f"{name}.new": trained.astype(np.float16)}
    difference = trained - old
    if difference.ndim == 1:
        return {f"{name}.add": difference.astype(np.float16)}
    scale = np.maximum(np.abs(difference).max(axis=1), 1e-12) / 127
    return {name: np.rint(difference / scale[:, None]).astype(np.int8), f"{name}.scale": scale.astype(np.float32)}


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="train, or go on")
    one.add_argument("--shared", type=Path, required=True, help="folder with corpora/ and data/pretrain_tasks/")
    one.add_argument("--output-dir", type=Path, default=Path("build/pocket"))
    one.add_argument("--minutes", type=float, default=1e9, help="budget of this call")
    one.add_argument("--max-tokens", type=float, default=1e18, help="budget of this call; padding does not count")
    one.add_argument("--device", default="cpu")
    one.add_argument("--threads", type=int, default=os.cpu_count())
    one.add_argument("--workers", type=int, default=0, help="processes that make batches")
    one.add_argument("--compile", action="store_true")
    one.add_argument("--batch-tokens", type=int, default=4096)
    one.add_argument("--prose-share", type=float, default=0.25, help="of the tokens")
    one.add_argument("--mixture", choices=pocket_tasks.MIXTURES, default="broad")
    one.add_argument("--corpus-chars", type=int, default=0, help="of each corpus; 0: all")
    one.add_argument("--learning-rate", type=float, default=5e-4)
    one.add_argument("--weight-decay", type=float, default=0.01)
    one.add_argument("--warmup-steps", type=int, default=50)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--log-seconds", type=float, default=20)
    one.add_argument("--checkpoint-minutes", type=float, default=3)
    one.set_defaults(run=train)
    two = commands.add_parser("export", help="write the delta of the last checkpoint")
    two.add_argument("--output-dir", type=Path, default=Path("build/pocket"))
    two.add_argument(
        "--keep",
        type=float,
        default=0.5,
        help="share of the way from MiniLM to the trained weights (arXiv:2109.01903): the rest keeps what MiniLM knows",
    )
    two.add_argument("--delta", type=Path, default=Path(pocket.__file__).parent / "pocket" / "delta.safetensors")
    two.set_defaults(run=export)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

"""The one training loop: TRL's SFTTrainer fed with token ids, with the model's own head for the loss.

Apart from `trl` because importing TRL takes seconds that a plan or a finished stage need not pay.

Four things differ from SFTTrainer as it comes. Rows are padded so that all completions end in the last column, and the
vocabulary projection runs over those few columns alone. What all prompts of a batch start with (instruction, labels,
options) stands before the padding and is run once; its keys and values are shown to every row, and their gradients
add up: the same loss and gradient for less work. Rows of like length share a batch. And the loss goes through the
model's own forward unless TRL's fused head is shown to give the same log-probabilities: the fused head multiplies the
last hidden states with the output embedding, which leaves out what some models (BERT's, for one) put in between.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from semievol.backends.base import Progress
from semievol.backends.caches import CACHE_NAMES, SharedPrefix, find_cache_name, has_full_attention
from semievol.backends.last_layer import LastLayer
from semievol.backends.sft_batches import (
    IGNORED,
    CompletionCollator,
    LengthGroupedEpochs,
    RowsInOrder,
    ShuffledEpochs,
    make_dataset,
)
from semievol.backends.sft_processes import check_strategy, distributed_arguments
from semievol.backends.sft_rows import EncodedRow
from semievol.backends.sft_steps import StepCallback, finish_step_on_interrupt
from semievol.backends.shared_starts import MIN_SHARED_START
from semievol.config import TrlTrainerConfig
from semievol.errors import ConfigError, TrainingError

FUSED_TOLERANCE = 0.02
"""Most nats by which the fused head's mean log-probability may differ from the model's own; bf16 stays well below."""

MIN_SAVED_FRACTION = 0.1
"""Share of a batch's tokens from which a common start is run once for all rows."""

CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")
"""Names of the setting, the newer first; the older one still works in newer versions, with a warning."""


class StoppedAfterStep(KeyboardInterrupt):
    """A training that was interrupted and has saved its last step, in all of its processes."""


@dataclass(frozen=True)
class SftJob:
    """All that one training needs, checked and opened."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[EncodedRow]
    held_out: Sequence[EncodedRow]
    config: TrlTrainerConfig
    seed: int
    device: torch.device
    bf16: bool
    partial_dir: Path
    checkpoint: Path | None
    progress: Progress | None


@dataclass(frozen=True)
class SftOutcome:
    """The trained model and what the loop counted, over all the processes that worked on it."""

    model: PreTrainedModel
    optimizer_steps: int
    train_seconds: float
    n_tokens: int
    losses: tuple[tuple[int, float], ...]
    held_out_loss: float | None
    state_dict: dict[str, torch.Tensor] | None
    """All weights, in the first process of a training that cuts them into shares; else the model holds them."""
    is_first_process: bool


def train_job(job: SftJob) -> SftOutcome:
    """Run the job to its last step, from its checkpoint where it has one.

    Raises:
        ConfigError: If PEFT or TRL refuse the settings (target modules that are not there, for example), or if the
            processes are not those that `trainer.launch` asks for.
        TrainingError: On a loss or weight that is not finite, and on lack of memory.
        StoppedAfterStep: On Ctrl-C, after the step at hand is done and saved.
    """
    steps = StepCallback(job.partial_dir, job.progress)
    arguments = _training_arguments(job)
    empty = job.tokenizer.pad_token_id if job.config.num_processes > 1 else None
    try:
        trainer = CompletionTrainer(
            model=job.model,
            args=arguments,
            train_dataset=make_dataset(job.train, pad_token_id=empty),
            eval_dataset=make_dataset(job.held_out, pad_token_id=empty) if job.held_out else None,
            data_collator=CompletionCollator(job.tokenizer.pad_token_id, can_share_start(job.model, arguments)),
            processing_class=job.tokenizer,
            peft_config=_peft_config(job),
            callbacks=[steps],
        )
    except ValueError as error:
        raise ConfigError(f"trainer: {error}") from error
    check_strategy(trainer.accelerator, job.config)
    trainer.remove_callback(PrinterCallback)
    try:
        with finish_step_on_interrupt(steps):
            trainer.train(resume_from_checkpoint=None if job.checkpoint is None else str(job.checkpoint))
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory at batch size {job.config.per_device_train_batch_size}: lower "
            "trainer.per_device_train_batch_size and raise trainer.gradient_accumulation_steps by the same factor, "
            "set trainer.activation_checkpointing: true, or use trainer.method: qlora"
        ) from error
    if steps.interrupted:
        raise StoppedAfterStep
    _check_weights(trainer.model, trainer.state.global_step)
    history = trainer.state.log_history
    held_out = [float(entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    return SftOutcome(
        model=trainer.model,
        optimizer_steps=trainer.state.global_step,
        train_seconds=steps.seconds,
        n_tokens=int(trainer.state.num_input_tokens_seen),
        losses=tuple((int(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry),
        held_out_loss=held_out[-1] if held_out else None,
        state_dict=trainer.accelerator.get_state_dict(trainer.model) if job.config.is_sharded else None,
        is_first_process=trainer.is_world_process_zero(),
    )


class Float32Attention(TorchFunctionMode):
    """Within, attention runs in float32 whatever autocast says: torch's bf16 gradient of it is slow on a CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, with floating-point tensors converted where it is the attention."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*map(_to_float32, args), **{name: _to_float32(value) for name, value in (kwargs or {}).items()})


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]  # trl carries no types
    """SFTTrainer whose loss is the mean NLL of the completion tokens of the whole accumulated batch.

    Where rows carry weights, each token's NLL is multiplied by the weight of its row over the mean weight of the set.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # makes transformers count the tokens of all micro-batches for `_scale`
        self._base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        # A layer that is run again for its gradient, or whose weights are shares, is left as it is.
        self._last_layer = None if checkpoints(self.args) or self.args.fsdp else LastLayer(self._base)
        # What TRL put over the forward hides the signature of the model.
        self._accepted = frozenset(inspect.signature(type(self._base).forward).parameters)
        self._takes_columns = "logits_to_keep" in self._accepted
        self._cache_name = find_cache_name(self._accepted) or CACHE_NAMES[0]
        # TRL's fused loss gathers figures at every batch: all processes would have to take it for the same batches.
        alone_on_gpu = self.args.device.type == "cuda" and self.accelerator.num_processes == 1
        self._use_fused: bool | None = None if alone_on_gpu else False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RowsInOrder:
        rows = self.train_dataset if train_dataset is None else train_dataset
        n_processes, seed = self.accelerator.num_processes, self.args.seed
        size = self.args.train_batch_size * n_processes
        lengths = [len(ids) for ids in rows["input_ids"]][: len(rows) - (n_processes > 1)]  # the empty row apart
        if self.args.train_sampling_strategy != "group_by_length":
            return ShuffledEpochs(len(lengths), seed=seed, multiple_of=size if n_processes > 1 else 1)
        group = size * self.args.gradient_accumulation_steps
        return LengthGroupedEpochs(lengths, group, seed=seed, multiple_of=size if n_processes > 1 else 1)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> RowsInOrder:
        n_processes = self.accelerator.num_processes
        size = self.args.eval_batch_size * n_processes
        return RowsInOrder(len(eval_dataset) - (n_processes > 1), multiple_of=size if n_processes > 1 else 1)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean NLL over the completion tokens of all held-out rows, whatever the batches and the processes."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        n_rows = 0
        for batch in dataloader:
            inputs, weights = self._split_weights(self._prepare_inputs(batch))
            with self.compute_loss_context_manager():
                total, n_tokens = self._own_nll(self.model, inputs, 0, weights)
            sums += torch.stack([total.double(), n_tokens.double()])
            n_rows += len(inputs["input_ids"])
        total, n_tokens = self.accelerator.gather(sums[None]).sum(dim=0).tolist()
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": total / n_tokens}, n_rows)

    def compute_loss_context_manager(self) -> ExitStack:
        """What a forward pass runs in: on a CPU one autocast for a batch, so a trained weight is converted once."""
        stack: ExitStack = super().compute_loss_context_manager()
        if self.args.bf16 and self.args.device.type == "cpu":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            # torch hides the mode from layers that are run again in the backward pass: they would differ.
            if not checkpoints(self.args):
                stack.enter_context(Float32Attention())
        return stack

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean NLL over the completion tokens. Raises TrainingError at once where it is not finite."""
        inputs, weights = self._split_weights(inputs)
        n_shared = self._count_shared(inputs)
        needs_own_head = n_shared > 0 or weights is not None
        if self._use_fused is None and not needs_own_head:
            self._use_fused = self._fused_head_agrees(model, inputs)
        if self._use_fused and not needs_own_head:
            loss: torch.Tensor = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        else:
            total, n_tokens = self._own_nll(model, inputs, n_shared, weights)
            scale = n_tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
            # The tokens are those of all processes, and the gradients of the processes are averaged, not added.
            loss = total / scale.clamp(min=1) * self.accelerator.num_processes
        # Our check in the place of transformers' NaN filter, which would put the mean of earlier losses there.
        if not torch.isfinite(loss.detach()):
            raise TrainingError(
                f"the loss is {loss.item()} at optimiser step {self.state.global_step + 1} (learning rate "
                f"{self._get_learning_rate():.3g}): lower the learning rate, raise trainer.warmup_steps, "
                "or set trainer.precision: fp32"
            )
        return loss

    def _split_weights(self, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the model takes, and the weights of the rows where they have one."""
        left_out = {"weights"} if "position_ids" in self._accepted else {"weights", "position_ids"}
        return {name: value for name, value in inputs.items() if name not in left_out}, inputs.get("weights")

    def _own_nll(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        n_shared: int,
        weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed NLL of the labelled tokens, times the `weights` (n,) of their rows, and the number of tokens.

        It goes through the model's own head; the first `n_shared` columns are run for one row and shown to all.
        """
        labels = inputs["labels"]
        has_loss = labels != IGNORED
        first = _first_label(has_loss)
        n_keep = labels.shape[1] - first + 1  # the column before the first label predicts it
        arguments: dict[str, Any] = {name: value for name, value in inputs.items() if name != "labels"}
        arguments["use_cache"] = False
        if n_shared:
            arguments |= self._run_shared(model, inputs, n_shared)
        n_columns = labels.shape[1] - n_shared
        if self._takes_columns:
            # From the end: the last layer may have left out columns in front.
            arguments["logits_to_keep"] = torch.arange(-n_keep, -1, device=labels.device)
        with self._only_last(n_keep, n_columns):
            logits = model(**arguments).logits
        if not self._takes_columns:
            logits = logits[:, -n_keep:-1]
        kept = has_loss[:, first:]
        targets = labels[:, first:][kept]
        if weights is None:
            return cross_entropy(logits[kept].float(), targets, reduction="sum"), kept.sum()
        nll = cross_entropy(logits[kept].float(), targets, reduction="none")
        return (nll * weights[:, None].expand_as(kept)[kept]).sum(), kept.sum()

    def _run_shared(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], n_shared: int) -> dict[str, Any]:
        """Run the first `n_shared` columns of one row; what the forward pass over the others of all rows takes.

        Both passes take the embeddings of one lookup: its gradient is as large as the embedding matrix.
        """
        ids, positions = inputs["input_ids"], inputs["position_ids"]
        looked_up = self._base.get_input_embeddings()(torch.cat([ids[0, :n_shared], ids[:, n_shared:].flatten()]))
        start, rest = looked_up[:n_shared][None], looked_up[n_shared:].unflatten(0, (len(ids), -1))
        keep = {"logits_to_keep": torch.arange(0, device=ids.device)} if self._takes_columns else {}
        with self._only_last(1, n_shared):
            out = model(
                inputs_embeds=start,
                attention_mask=inputs["attention_mask"][:1, :n_shared],
                position_ids=positions[:1, :n_shared],
                use_cache=True,
                **keep,
            )
        prefix = SharedPrefix(ids[0, :n_shared].tolist(), out[self._cache_name])
        return {
            "input_ids": None,
            "inputs_embeds": rest,
            "position_ids": positions[:, n_shared:],
            self._cache_name: prefix.expand(len(ids)),
            "use_cache": True,
        }

    def _only_last(self, n_keep: int, n_columns: int) -> AbstractContextManager[None]:
        """Within, the last layer may leave out all but the last `n_keep` of `n_columns` columns."""
        return nullcontext() if self._last_layer is None or n_keep >= n_columns else self._last_layer.only(n_keep)

    def _count_shared(self, inputs: dict[str, torch.Tensor]) -> int:
        """Leading columns in which all rows are equal, if running them once is worth a pass of its own, else 0."""
        ids = inputs["input_ids"]
        if not self.data_collator.start_first or len(ids) < 2 or not self.model.training:
            return 0
        mask = inputs["attention_mask"]
        equal = ((ids == ids[:1]) & (mask == 1)).all(dim=0)
        n_equal = int(equal.to(torch.int64).cumprod(dim=0).sum())
        # The column that predicts the first label belongs to the rows.
        n_shared = min(n_equal, _first_label(inputs["labels"] != IGNORED) - 1)
        saved = n_shared * (len(ids) - 1) / max(1, int(mask.sum()))
        return n_shared if n_shared >= MIN_SHARED_START and saved >= MIN_SAVED_FRACTION else 0

    @torch.no_grad()
    def _fused_head_agrees(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> bool:
        was_training = model.training
        model.eval()
        try:
            with self.compute_loss_context_manager():
                total, n_tokens = self._own_nll(model, inputs, 0)
                fused = model(**inputs, fused_lm_head=True, use_cache=False)
        except (AttributeError, TypeError, NotImplementedError):
            return False
        finally:
            model.train(was_training)
        difference = (total + fused.log_probs.float().sum()) / n_tokens.clamp(min=1)
        return bool(difference.abs() < FUSED_TOLERANCE)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: the finished folder gets one of ours, and a checkpoint needs none."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The first process writes the file that makes the checkpoint whole right after: the others must be done.
        self.accelerator.wait_for_everyone()

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Not counted: it walks over all weights at every step."""
        return 0

    def _send_telemetry(self) -> None:
        """Send nothing."""


def _training_arguments(job: SftJob) -> SFTConfig:
    config = job.config
    arguments = SFTConfig(
        output_dir=str(job.partial_dir),
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        train_sampling_strategy=config.train_sampling_strategy,
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps or -1,
        max_length=None,  # lengths are checked before; nothing is ever cut
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        use_cpu=job.device.type == "cpu",
        bf16=job.bf16,
        seed=job.seed,
        data_seed=job.seed,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=1,
        eval_strategy="epoch" if job.held_out else "no",
        prediction_loss_only=True,
        dataloader_pin_memory=job.device.type == "cuda",
        # Shares have their own way to it (`fsdp_config`).
        **{name_checkpointing(): config.activation_checkpointing and not config.is_sharded},
        **distributed_arguments(config, job.device),
    )
    if config.num_processes == 1:
        _pin_device(arguments, job.device)
    return arguments


def _pin_device(arguments: SFTConfig, device: torch.device) -> None:
    """Train on the one device asked for: by itself transformers takes all visible GPUs and nn.DataParallel."""
    if arguments.device.type != "cuda":
        return
    index = device.index or 0
    torch.cuda.set_device(index)
    arguments._n_gpu = 1
    arguments.__dict__["_setup_devices"] = torch.device("cuda", index)  # a cached property


def _peft_config(job: SftJob) -> LoraConfig | None:
    if job.config.method == "full" or isinstance(job.model, PeftModel):
        return None
    modules = job.config.target_modules
    return LoraConfig(
        r=job.config.r,
        lora_alpha=job.config.lora_alpha,
        lora_dropout=job.config.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def _first_label(has_loss: torch.Tensor) -> int:
    """First column with a label, (n, columns); 1 where there is none, as no token predicts the first one."""
    return max(1, int(has_loss.any(dim=0).to(torch.uint8).argmax()))


def can_share_start(model: PreTrainedModel | PeftModel, arguments: SFTConfig) -> bool:
    """Whether a start that is run once gives every row what it would get alone: full attention, and no dropout."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    drops = any(isinstance(layer, torch.nn.Dropout) and layer.p > 0 for layer in model.modules())
    drops = drops or (getattr(base.config, "attention_dropout", None) or 0.0) > 0
    accepted = inspect.signature(type(base).forward).parameters
    takes_all = {"position_ids", "inputs_embeds"} <= set(accepted) and find_cache_name(accepted) is not None
    shares = bool(arguments.fsdp)  # embeddings cannot be looked up outside of the forward pass then
    return takes_all and has_full_attention(base) and not drops and not checkpoints(arguments) and not shares


def checkpoints(arguments: SFTConfig) -> bool:
    """Whether activations are computed again for the backward pass."""
    return bool(getattr(arguments, name_checkpointing()))


def name_checkpointing() -> str:
    """What the installed transformers call the setting that has activations computed again."""
    known = {field.name for field in fields(SFTConfig)}
    return next(name for name in CHECKPOINTING if name in known)


def _check_weights(model: torch.nn.Module, step: int) -> None:
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        largest = weight.detach().abs().max()
        if isinstance(largest, DTensor):
            largest = largest.full_tensor()
        if not math.isfinite(float(largest)):
            raise TrainingError(f"weight {name} is not finite after optimiser step {step}: lower the learning rate")

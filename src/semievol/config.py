"""The run's configuration: one frozen pydantic section per stage, and the recipes that fill every method choice.

YAML in, `config.resolved.json` out. Keys use the word of the library underneath. Defaults live here and nowhere else.
Where the paper (arXiv:2410.14745) and the authors' released code differ, the docstring of the key gives both values.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from semievol.errors import ConfigError

AnswerType = Literal["choice", "label", "number", "span", "text"]
Signal = Literal["mean_nll", "entropy", "max_probability", "agreement", "sample_entropy"]

PAPER_CONFIGURATIONS: list[dict[str, Any]] = [
    {"model": "warm", "k": 0},
    {"model": "warm", "k": 1},
    {"model": "warm", "k": 3},
    {"model": "base", "k": 3},
]

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "propagate.configurations": PAPER_CONFIGURATIONS,
        "justify.when": "disagree",
        "select.signal": "mean_nll",
        "select.apply_to": "all",
        "select.keep_fraction": 0.5,
        "select.prompt": "plain",
        "evolve.init": "base",
        "evolve.train_on": "labeled+selected",
        "evolve.learning_rate": None,
        "trainer.eval_fraction": 0.0,
    },
    "released": {
        "propagate.configurations": [{"model": "warm", "k": 0}] * 4,
        "justify.when": "disagree",
        "select.signal": "mean_nll",
        "select.apply_to": "justified",
        "select.keep_fraction": 0.3,
        "select.prompt": "justify",
        "evolve.init": "warm",
        "evolve.train_on": "selected",
        "evolve.learning_rate": 1e-6,
        "trainer.eval_fraction": 0.05,
    },
}
"""Method choices that the two recipes fill; every other key has one default (method.md says where each comes from)."""


DEFAULT_BACKENDS = {"generator.type": "transformers", "trainer.type": "trl", "embedder.type": "bm25"}


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    operational: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how the work is done and never its result, so that a change of them runs no stage again."""

    def lasting(self) -> dict[str, Any]:
        """The keys that results depend on, as plain values; of sections within it, too."""
        found = {k: v for k, v in self.model_dump(mode="json").items() if k not in self.operational}
        inner = {k: section.lasting() for k in found if isinstance(section := getattr(self, k), Section)}
        return found | inner


class TaskConfig(Section):
    """What a row asks for, how it is put to the model and how an answer is judged."""

    type: AnswerType = "choice"
    """choice: options on every row; label: one fixed set for all rows; number; span: short text; text: free
    response."""
    labels: tuple[str, ...] | None = None
    """The fixed set of a `label` task. None: the set of targets found among the labelled rows, sorted."""
    instruction: str | None = None
    """First line of every prompt. None: the default of the answer type; an empty string: none at all."""
    prompt_template: str | None = None
    """Jinja template of the user turn. None: the default of the answer type (docs/configuration.md prints it)."""
    completion_template: str | None = None
    """Jinja template of the text the model is trained to give. None: `Answer: {{ answer }}` (`text`: the answer
    alone)."""
    justify_template: str | None = None
    """Jinja template of the self-justification turn. None: the default."""
    system: str | None = None
    """System turn put before every prompt. None: no system turn."""
    number_tolerance: float = Field(1e-6, ge=0)
    """Largest relative difference at which two numbers count as equal."""
    metric: Literal["accuracy", "exact_match", "token_f1", "rouge_l"] | None = None
    """None: accuracy for choice, label and number; exact_match for span; rouge_l for text."""

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Labels that differ in case alone are fine: what a model writes is first compared as it is written."""
        if value is None:
            return value
        if len(value) < 2:
            raise ValueError(
                "a fixed set has at least two labels; list all of them, or leave the key out: they are then those "
                "of the labelled rows"
            )
        first: dict[str, str] = {}
        for label in value:
            if not label.strip():
                raise ValueError("a label is empty; remove it, or give it a name such as none")
            if label.strip() in first:
                raise ValueError(
                    f"the labels {first[label.strip()]!r} and {label!r} are one and the same (spaces around a label "
                    "do not count), so no answer could be told to be one of them; remove or rename one"
                )
            first[label.strip()] = label
        return value


class ColumnsConfig(Section):
    """Which column holds what. None: found by its usual names (docs/configuration.md lists them)."""

    id: str | None = None
    question: str | None = None
    context: str | None = None
    choices: str | None = None
    target: str | None = None
    group: str | None = None
    messages: str | None = None
    """Chat rows: a list of {role, content}; the last assistant turn is the target."""


class SplitConfig(Section):
    """How one file is cut, stratified by target and keeping groups whole. Fractions (sum 1) or row counts."""

    labeled: float = Field(0.2, gt=0)
    unlabeled: float = Field(0.6, gt=0)
    test: float = Field(0.2, ge=0)


class DataConfig(Section):
    """Where the rows are and what is done about bad and repeated ones."""

    path: str | None = None
    """One CSV, JSONL or Parquet file, `datasets` folder or hub dataset id, to be split (rows without a target go to the
    unlabelled part first); or None with `labeled` and `unlabeled`."""
    labeled: str | None = None
    unlabeled: str | None = None
    test: str | None = None
    hub_split: str = "train"
    """Split read from a hub dataset or a `datasets` folder; `id:split` in a path overrides it."""
    columns: ColumnsConfig = ColumnsConfig()
    split: SplitConfig = SplitConfig()
    max_bad_fraction: float = Field(0.0, ge=0, le=1)
    """Share of unusable rows that a run puts up with; the others land in data/rejected.jsonl with their reason."""
    seed: int | None = Field(None, ge=0)
    """Seed of splits and draws, so that runs of several seeds can share their rows. None: the run's seed."""
    max_rows: int | None = Field(None, gt=0)
    """At most this many rows of each file, drawn by seed. None: all."""
    max_labeled: int | None = Field(None, gt=0)
    """At most this many labelled rows, drawn by seed, in the shares of their targets. None: all."""
    max_unlabeled: int | None = Field(None, gt=0)
    """At most this many unlabelled rows, drawn by seed. None: all."""
    max_test: int | None = Field(None, gt=0)
    """At most this many test rows, drawn by seed. None: all."""
    duplicates: Literal["drop", "keep"] = "drop"
    """drop: rows that stand in several splits leave the training side (unlabelled first, then labelled); keep:
    only report."""
    near_duplicate_similarity: float = Field(0.9, gt=0, le=1)
    """Token Jaccard similarity from which two questions count as near duplicates; 1 finds exact ones only."""

    @model_validator(mode="after")
    def _check_sources(self) -> "DataConfig":
        if self.path is None and (self.labeled is None or self.unlabeled is None):
            raise ValueError("data: give `path` (one file to be split) or both `labeled` and `unlabeled` files")
        if self.path is not None and (self.labeled or self.unlabeled or self.test):
            raise ValueError("data: `path` is for one file to be split; leave it out when separate files are given")
        return self


class ModelConfig(Section):
    """The base model."""

    path: str = "pocket"
    """Hub id or folder of a causal LM; `pocket` is the embedded Pocket LM."""
    revision: str | None = None
    """Git revision on the hub. None: the newest."""
    chat_template: str | None = None
    """Jinja chat template, or a file that holds one, in the place of the tokenizer's own. None: the tokenizer's."""
    max_length: int | None = Field(None, gt=0)
    """Most tokens of prompt and completion together. None: what the model's config says, at most 4096."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on a CPU, bfloat16 on a GPU that has it."""
    device: str = "auto"
    """auto: cuda where there is one, else cpu; or a torch device such as cuda:1."""

    @field_validator("path")
    @classmethod
    def _expand_path(cls, value: str) -> str:
        return _expand_home(value)


class TransformersGeneratorConfig(Section):
    """Local generation with transformers."""

    type: Literal["transformers"] = "transformers"
    batch_tokens: int = Field(16384, gt=0)
    """Most tokens (padding included) of a batch; halves itself on out-of-memory."""
    max_loaded_models: int = Field(2, gt=0)
    """Whole models in memory at once, when base and warm model are not one base with adapters; the second one leaves on
    out-of-memory."""
    threads: int | None = Field(None, gt=0)
    """CPU threads of torch. None: torch's own choice."""


class VllmGeneratorConfig(Section):
    """Local generation by a `vllm serve` of the run's own: started when first needed, ended before each training."""

    type: Literal["vllm"] = "vllm"
    python: str | None = None
    """Interpreter of the environment that vLLM is installed in, such as `vllm-env/bin/python`. None: this one."""
    tensor_parallel_size: int = Field(1, gt=0)
    """GPUs that the model is cut over."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes, weights and key-value cache together."""
    max_loras: int = Field(1, ge=0)
    """Adapters that one batch may use. 0: none is loaded (`trainer.method: full`)."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Largest rank of an adapter; `trainer.r` at least."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of `vllm serve`, such as [--quantization, fp8]. No place for secrets: they are stored."""
    max_concurrency: int = Field(256, gt=0, le=4096)
    """Most requests under way at once; vLLM makes its batches of them."""
    timeout_seconds: float = Field(600, gt=0)
    """Longest time for one request, its repetitions included; starts of the server in between do not count."""
    startup_timeout_seconds: float = Field(900, gt=0)
    """Longest time until the server answers: it loads the weights and compiles first."""
    max_restarts: int = Field(2, ge=0)
    """Times that a server which has crashed is started again, until the run stops; what is answered is kept."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "python",
            "tensor_parallel_size",
            "gpu_memory_utilization",
            "max_loras",
            "max_lora_rank",
            "max_concurrency",
            "timeout_seconds",
            "startup_timeout_seconds",
            "max_restarts",
        }
    )
    reserved: ClassVar[tuple[str, ...]] = (
        "host", "port", "uds", "api-key", "served-model-name", "model", "revision", "dtype", "max-model-len",
        "tensor-parallel-size", "gpu-memory-utilization", "enable-lora", "no-enable-lora", "max-loras",
        "max-lora-rank", "lora-modules", "api-server-count", "logprobs-mode", "generation-config", "trust-remote-code",
        "hf-token", "config",
    )  # fmt: skip
    """Arguments that the run itself sets, or that it never gives."""

    @field_validator("extra_args")
    @classmethod
    def _check_reserved(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            name = argument.partition("=")[0].lstrip("-").replace("_", "-")
            if argument.startswith("-") and (name in cls.reserved or name == "tp"):
                raise ValueError(f"{argument}: the run sets this itself, or never does; see the keys of this section")
        return value


class FakeGeneratorConfig(Section):
    """A generator without a model: it answers from the question's hash. For tests of what stands above it."""

    type: Literal["fake"] = "fake"
    accuracy: float = Field(0.7, ge=0, le=1)
    """Share of rows on which the base answers right, where the truth can be read off the question (`#B`)."""


class AzureConfig(Section):
    """An Azure OpenAI resource.

    `generator.model` (or `embedder.model`) names the deployment; `model.path` stays the model's name.
    """

    endpoint: str
    """`https://NAME.openai.azure.com`"""
    api_version: str = "2024-10-21"


class EndpointConfig(Section):
    """A server that speaks the OpenAI protocol."""

    base_url: str | None = None
    """Address up to and with `/v1`, such as `http://localhost:8000/v1`. None: OpenAI's."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; a key itself never stands in a config. None: the server wants none."""
    azure: AzureConfig | None = None
    """Use an Azure OpenAI resource, in the place of `base_url`."""
    max_concurrency: int = Field(64, gt=0, le=4096)
    """Most requests under way at once. Fewer are sent while the server says that it is busy."""
    timeout_seconds: float = Field(600, gt=0)
    """Longest time for one request, its repetitions after passing faults included."""

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        if self.azure is not None and self.base_url is not None:
            raise ValueError("give `base_url` or `azure`, not both")
        address = self.base_url if self.azure is None else self.azure.endpoint
        if address is not None:
            parts = urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{address!r} is no address of the form http(s)://HOST/v1")
            if parts.username or parts.password or parts.query:
                raise ValueError("an address holds no user, key or query: name the key's variable in `api_key_env`")
        return self


class PricesConfig(Section):
    """US dollars for a million tokens, in the place of the table in prices.py."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    tuned_input: float | None = Field(None, ge=0)
    """Of a fine-tuned model. None: as `input`."""
    tuned_output: float | None = Field(None, ge=0)
    training: float | None = Field(None, ge=0)
    """Of a token of training, for each epoch. None: unknown."""


class ChatGeneratorConfig(EndpointConfig):
    """What both ways to ask a server for chat completions have in common."""

    type: Literal["openai", "openai_batch"]
    model: str | None = None
    """What the server calls the base, such as the name of an Azure deployment. None: `model.path`."""
    logprobs: Literal["auto", "require", "off"] = "auto"
    """auto: asked for where the server gives them; require: stop at the start where it does not; off: never asked."""
    adapters: Literal["by_name", "load"] = "by_name"
    """What is done about a model that was trained on this machine. by_name: the run stops and says under which name the
    server has to serve it, and goes on when it does; load: vLLM is asked to load the LoRA adapter."""
    max_requests: int | None = Field(None, gt=0)
    """Most requests that the run may send in all; it stops before one more and keeps all answers. None: no limit."""
    max_cost: float | None = Field(None, gt=0)
    """Most US dollars that the generator may spend in all; it stops before that. None: no limit."""
    confirm_above_cost: float | None = Field(10.0, ge=0)
    """`run`, `compare` and `sweep` want `--yes` where the estimate is above this many US dollars. None: never."""
    prices: PricesConfig | None = None
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Sent with every request as it is, such as `{reasoning_effort: none}`. No place for secrets: it is stored."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "adapters",
            "api_key_env",
            "max_concurrency",
            "timeout_seconds",
            "max_requests",
            "max_cost",
            "confirm_above_cost",
            "prices",
        }
    )

    @field_validator("extra_body")
    @classmethod
    def _check_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in value:
            if key.lower().replace("-", "_") in ("api_key", "key", "authorization", "token", "password", "secret"):
                raise ValueError(f"extra_body.{key}: a key goes into the variable that `api_key_env` names")
        return value


class OpenAIGeneratorConfig(ChatGeneratorConfig):
    """Answers from a server that speaks the OpenAI chat protocol: OpenAI, Azure, vLLM, Ollama, llama.cpp, SGLang."""

    type: Literal["openai"] = "openai"


class OpenAIBatchGeneratorConfig(ChatGeneratorConfig):
    """Answers from the Batch API of such a server: half the price at OpenAI, and up to a day's wait for each step."""

    type: Literal["openai_batch"] = "openai_batch"
    window: int = Field(20_000, gt=0)
    """Requests that are collected, sent and stored together; what comes after them waits for their answers."""
    max_requests_per_batch: int = Field(50_000, gt=0, le=50_000)
    """Most lines of one batch file (the API takes 50,000)."""
    max_file_bytes: int = Field(200_000_000, gt=0, le=200_000_000)
    """Largest batch file (the API takes 200 MB)."""
    max_attempts: int = Field(3, gt=0)
    """Times that a request is sent before it counts as failed: lines that expired, failed or are missing go again."""
    poll_seconds: float = Field(30.0, gt=0)
    """Longest wait between two looks at a batch; the first looks come sooner."""
    deadline_hours: float = Field(48.0, gt=0)
    """Longest wait for the batches of a window. They go on on the server, and a further run waits on."""

    operational: ClassVar[frozenset[str]] = ChatGeneratorConfig.operational | frozenset(
        {"window", "max_requests_per_batch", "max_file_bytes", "max_attempts", "poll_seconds", "deadline_hours"}
    )


LocalGeneratorConfig = Annotated[TransformersGeneratorConfig | FakeGeneratorConfig, Field(discriminator="type")]
"""Generators that hold a model themselves."""

LARGEST_SHARD = 512
"""Rows that stages batch together and store together; a shard is one such window or a part of it."""


class RayGeneratorConfig(Section):
    """Replicas of a local generator on a Ray cluster, or side by side on one machine."""

    type: Literal["ray"] = "ray"
    inner: LocalGeneratorConfig = TransformersGeneratorConfig()
    """Section of the local generator that each replica opens, as it would stand under `generator` alone."""
    address: str | None = None
    """`auto`: the cluster that this machine is part of (or `RAY_ADDRESS`); `HOST:6379` or `ray://HOST:10001`: that one.
    None: one of its own on this machine, for as long as it is needed."""
    replicas: int = Field(1, gt=0)
    """Models loaded side by side. They go to work one by one as the cluster finds room for them."""
    gpus_per_replica: float = Field(0, ge=0)
    """GPUs of each replica; a part such as 0.5 lets two share one, and they then share its memory too."""
    cpus_per_replica: float = Field(1, gt=0)
    """CPU cores of each replica. Ray lets torch have so many threads where `inner.threads` does not say."""
    shard_rows: int = Field(LARGEST_SHARD, gt=0, le=LARGEST_SHARD)
    """Rows that a replica is given at once, and loses at most when it dies. With 512, rows are batched as without Ray,
    and the bytes are the same; fewer keep more replicas busy on few rows, and change log-probabilities in the last
    digits."""
    storage: str | None = None
    """Folder or fsspec URL (`s3://BUCKET/FOLDER`) for shards and answers, which every node sees. None: in the run
    folder, which then every node has to see."""
    max_attempts: int = Field(3, gt=0)
    """Times that a shard is given to a replica, or that the start of one is tried in a row, before the run stops."""
    start_timeout_seconds: float = Field(600, gt=0)
    """Longest wait without a single replica at work, for room on the cluster and for its model to be loaded."""
    shard_timeout_seconds: float = Field(3600, gt=0)
    """Longest time that a replica may work on one shard before it counts as hung: it is ended, and another one gets the
    shard (see `max_attempts`)."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "address",
            "replicas",
            "gpus_per_replica",
            "cpus_per_replica",
            "storage",
            "max_attempts",
            "start_timeout_seconds",
            "shard_timeout_seconds",
        }
    )

    def lasting(self) -> dict[str, Any]:
        """Those of `inner`: where the work is done changes no result, so a run can move to a cluster half-way."""
        batches = {} if self.shard_rows == LARGEST_SHARD else {"shard_rows": self.shard_rows}
        return self.inner.lasting() | batches

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if (
            value is None
            or value == "auto"
            or re.fullmatch(r"(ray://)?[\w.-]+:\d+|(ray://)?\[[\da-fA-F:]+\]:\d+", value)
        ):
            return value
        raise ValueError("an address is auto, HOST:6379 or ray://HOST:10001")

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not value.strip():
            raise ValueError("name a folder or a URL such as s3://BUCKET/FOLDER, or leave it out")
        parts = urlsplit(value)
        if "://" in value and (parts.username or parts.password or parts.query):
            raise ValueError("a URL holds no user, key or query: nodes take keys from their environment")
        return value


GeneratorConfig = Annotated[
    TransformersGeneratorConfig
    | VllmGeneratorConfig
    | OpenAIGeneratorConfig
    | OpenAIBatchGeneratorConfig
    | RayGeneratorConfig
    | FakeGeneratorConfig,
    Field(discriminator="type"),
]


def local_generator(config: GeneratorConfig) -> GeneratorConfig:
    """The section of the generator that opens the model: `inner` of a ray one, else `config` itself."""
    return config.inner if isinstance(config, RayGeneratorConfig) else config


def answer_settings(config: GeneratorConfig) -> list[Any]:
    """What of a generator's section gives other answers: its type, and the keys that do more than move rounding."""
    local = local_generator(config)
    return [local.type, local.model_dump(mode="json", include={"extra_args", "accuracy"}, exclude_defaults=True)]


class LaunchConfig(Section):
    """Training in several processes, one for each device, started by torchrun (docs/scaling.md).

    Names are those of accelerate. An optimiser step sees `per_device_train_batch_size` x `gradient_accumulation_steps`
    x `num_processes` rows.
    """

    num_processes: int = Field(gt=0)
    """Processes over all machines, one for each GPU. 1: the training stays in the process of the run."""
    num_machines: int = Field(1, gt=0)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every process holds the whole model; fsdp: weights, gradients and optimiser are cut into shares (FSDP2)."""
    launcher: tuple[str, ...] | None = None
    """Command that starts the command behind it once on every machine, on this one too. None: `srun` with one task a
    machine. For `num_machines` above 1."""
    main_process_ip: str | None = None
    """Name or address of this machine, at which the others meet. None: its host name. For `num_machines` above 1."""
    main_process_port: int | None = Field(None, gt=0, lt=65536)
    """None: a free one. For `num_machines` above 1."""
    num_cpu_threads_per_process: int | None = Field(None, gt=0)
    """`OMP_NUM_THREADS` of each process. None: torch's threads in the run, shared out over the processes of a machine.
    """

    operational: ClassVar[frozenset[str]] = frozenset(
        {"num_machines", "launcher", "main_process_ip", "main_process_port", "num_cpu_threads_per_process"}
    )

    @property
    def num_processes_per_machine(self) -> int:
        """Processes on each machine."""
        return self.num_processes // self.num_machines

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.num_processes % self.num_machines:
            raise ValueError(
                f"num_processes counts all machines: {self.num_processes} cannot be shared out over "
                f"{self.num_machines} machines; make it a multiple"
            )
        if self.strategy == "fsdp" and self.num_processes == 1:
            raise ValueError("strategy: fsdp cuts the model into shares, but num_processes is 1; use ddp, or more")
        for name in ("launcher", "main_process_ip", "main_process_port"):
            if self.num_machines == 1 and getattr(self, name) is not None:
                raise ValueError(f"{name} is for several machines; set num_machines, or leave it out")
        return self


class TrlTrainerConfig(Section):
    """Fine-tuning with TRL's SFTTrainer and PEFT. The defaults are the paper's where it gives one."""

    type: Literal["trl"] = "trl"
    method: Literal["lora", "qlora", "full"] = "lora"
    r: int = Field(16, gt=0)
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate: float = Field(1e-4, gt=0)
    num_train_epochs: float = Field(2, gt=0)
    max_steps: int | None = Field(None, gt=0)
    """Optimiser steps, in the place of epochs. None: epochs count."""
    per_device_train_batch_size: int = Field(1, gt=0)
    gradient_accumulation_steps: int = Field(8, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.1, ge=0)
    """Below 1 a share of all steps, from 1 on a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optim: str = "adamw_torch_fused"
    """Optimiser, by its name in transformers."""
    train_sampling_strategy: Literal["random", "group_by_length"] = "group_by_length"
    """group_by_length: rows of like length share a batch, in an order drawn by seed; random: any rows do."""
    max_length: int = Field(1024, gt=0)
    """Longest training example in tokens; longer ones are refused before the first step, never cut silently."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU or CPU that has instructions for it, else fp32. What is trained stays in fp32."""
    activation_checkpointing: bool = False
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows held out (paper: 0, released code: 0.05)."""
    save_steps: int = Field(50, gt=0)
    """Optimiser steps between checkpoints from which a killed training goes on."""
    logging_steps: int = Field(5, gt=0)
    report_to: tuple[str, ...] = ()
    """Trackers, passed to transformers: wandb, trackio, mlflow, tensorboard, ..."""
    launch: LaunchConfig | None = None
    """Train in several processes. None: in the process of the run, on one device."""

    operational: ClassVar[frozenset[str]] = frozenset({"save_steps", "report_to"})

    @property
    def num_processes(self) -> int:
        """Processes that share a training."""
        return 1 if self.launch is None else self.launch.num_processes

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are cut into shares over the processes."""
        return self.launch is not None and self.launch.strategy == "fsdp"

    @property
    def rows_a_step(self) -> int:
        """Rows that one optimiser step sees, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.num_processes

    @model_validator(mode="after")
    def _check_launch(self) -> Self:
        if self.is_sharded and self.method == "qlora":
            raise ValueError(
                "launch.strategy: fsdp does not cut 4-bit weights into shares; use method: lora with fsdp, or "
                "qlora with strategy: ddp"
            )
        return self


class OpenAITrainerConfig(EndpointConfig):
    """Fine-tuning jobs of a server that speaks OpenAI's protocol; the model stays there.

    A server trains for whole epochs over batches. So that the control can take as many optimiser steps as evolve, the
    batch size is a number by default.
    """

    type: Literal["openai"] = "openai"
    method: Literal["supervised"] = "supervised"
    num_train_epochs: float | Literal["auto"] = 2.0
    """`n_epochs` of the job, a whole number; auto: the server chooses (paper 2)."""
    batch_size: int | Literal["auto"] = 8
    """Rows an optimiser step (paper 8). auto: the server chooses; the control cannot be matched then."""
    learning_rate_multiplier: float | Literal["auto"] = "auto"
    """Factor on the server's own learning rate; auto: the server chooses."""
    max_steps: int | None = Field(None, gt=0)
    """Optimiser steps, in the place of epochs: the training file holds that many batches. None: epochs count."""
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the training rows that become the validation file (paper: 0, released code: 0.05)."""
    suffix: str | None = Field(None, max_length=64)
    """Part of the tuned model's name. None: `semievol-` and the start of the training's fingerprint."""
    max_length: int = Field(65_536, gt=0)
    """Longest training example in tokens, estimated at 4 bytes each; longer ones are refused before the upload."""
    poll_seconds: float = Field(30.0, gt=0)
    """Longest wait between two looks at a job; the first looks come sooner."""
    deadline_hours: float = Field(72.0, gt=0)
    """Longest wait for a job. It goes on on the server, and a further run waits on."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "max_concurrency", "timeout_seconds", "suffix", "poll_seconds", "deadline_hours", "max_length"}
    )

    @field_validator("num_train_epochs", "batch_size", "learning_rate_multiplier", mode="before")
    @classmethod
    def _check_number_or_auto(cls, value: Any, field: ValidationInfo) -> Any:
        whole = field.field_name != "learning_rate_multiplier"
        text = "a whole number from 1 on, or auto" if whole else "a number above 0, or auto"
        if value == "auto":
            return value
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(text) from None
        if not math.isfinite(number) or number <= 0 or (whole and number != int(number)):
            raise ValueError(text)
        return int(number) if field.field_name == "batch_size" else number


class FakeTrainerConfig(Section):
    """A trainer that writes down what it saw. For tests of what stands above it."""

    type: Literal["fake"] = "fake"
    learning_rate: float = 1e-4
    num_train_epochs: float = 2
    max_steps: int | None = None
    eval_fraction: float = 0.0


TrainerConfig = Annotated[TrlTrainerConfig | OpenAITrainerConfig | FakeTrainerConfig, Field(discriminator="type")]


class Bm25EmbedderConfig(Section):
    """BM25 over the words of the question (bm25s). No model, no download."""

    type: Literal["bm25"] = "bm25"


class SentenceTransformersEmbedderConfig(Section):
    """Any sentence-transformers model."""

    type: Literal["sentence_transformers"] = "sentence_transformers"
    model: str = "minilm"
    """Hub id or folder; `minilm` is the copy of all-MiniLM-L6-v2 in the extra [demo]."""
    batch_size: int = Field(64, gt=0)


class ModelEmbedderConfig(Section):
    """Mean-pooled last hidden states of the base model."""

    type: Literal["model"] = "model"
    batch_size: int = Field(32, gt=0)


class OpenAIEmbedderConfig(EndpointConfig):
    """Embeddings from a server that speaks the OpenAI protocol; each text is asked for once in a run."""

    type: Literal["openai"] = "openai"
    model: str = "text-embedding-3-small"
    dimensions: int | None = Field(None, gt=0)
    """Length of the rows, where the model can shorten them. None: the model's own."""
    batch_size: int = Field(128, gt=0, le=2048)
    """Texts a request."""
    max_concurrency: int = Field(8, gt=0)

    operational: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "max_concurrency", "timeout_seconds", "batch_size"}
    )


class FakeEmbedderConfig(Section):
    """Hashed bag of words. For tests."""

    type: Literal["fake"] = "fake"
    dimension: int = Field(64, gt=0)


EmbedderConfig = Annotated[
    Bm25EmbedderConfig
    | SentenceTransformersEmbedderConfig
    | ModelEmbedderConfig
    | OpenAIEmbedderConfig
    | FakeEmbedderConfig,
    Field(discriminator="type"),
]


class StageTrainingConfig(Section):
    """How a stage trains; None takes the trainer's value."""

    learning_rate: float | None = Field(None, gt=0)
    num_train_epochs: float | None = Field(None, gt=0)
    """Where it is set, the trainer's `max_steps` does not count."""
    max_steps: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _has_one_length(self) -> "StageTrainingConfig":
        if self.num_train_epochs is not None and self.max_steps is not None:
            raise ValueError(
                f"num_train_epochs {self.num_train_epochs:g} and max_steps {self.max_steps} are both set, and only one "
                "can say how long to train: set the other to null"
            )
        return self


class WarmupConfig(StageTrainingConfig):
    """In-weight propagation: SFT of the base on L gives M_warm. None takes the trainer's value."""


class AdaptConfig(StageTrainingConfig):
    """Task-adaptive pretraining (arXiv:2004.10964): language modelling of the questions of L and U before the warm-up.

    The warm-up then goes on from there. None takes the trainer's value.
    """

    enabled: bool = False


class RetrieveConfig(Section):
    """In-context propagation: which labelled rows are shown with a row."""

    k: int = Field(3, ge=0)
    """Nearest labelled rows kept for a row; a configuration may use fewer (paper: 3; released: retrieval switched
    off)."""
    index: Literal["exact", "faiss"] = "exact"
    """exact: every row is compared with every labelled one; faiss: an index of the extra [faiss], for hundreds of
    thousands of labelled rows (or rows kept in earlier rounds). Not for `embedder.type: bm25`."""
    faiss_factory: str = "HNSW32"
    """What `faiss.index_factory` makes: Flat (exact), HNSW32, IVF1024,Flat, ..."""
    faiss_parameters: str | None = None
    """For `faiss.ParameterSpace`, such as `efSearch=256`: higher finds more of the nearest rows and takes longer.
    None: efSearch=128 for HNSW, nprobe=32 for IVF."""


class ConfigurationConfig(Section):
    """One configuration of the model: a member of {base, warm} x {0..k demonstrations}."""

    model: Literal["base", "warm"]
    k: int = Field(ge=0)

    @property
    def name(self) -> str:
        """Short name, such as `warm-3`."""
        return f"{self.model}-{self.k}"


class CascadeConfig(Section):
    """Rows that one exact answer distribution settles are asked no further (docs/method.md); closed sets only."""

    min_confidence: float = Field(0.95, gt=0, lt=1)
    """Rows whose most likely answer has at least this exact probability, under the model without demonstrations, are
    settled; the others are open."""
    audit_fraction: float = Field(0.05, ge=0, le=1)
    """Share of the settled rows, drawn by seed and row id, that all configurations answer as well, to say how many
    final answers the cascade changed. 0: that is not measured."""


class PropagateConfig(Section):
    """Collaborative learning: what answers the unlabelled rows and how."""

    configurations: tuple[ConfigurationConfig, ...] = ()
    """Paper: n = 4 out of {base, warm} x {0..3}; released: four times warm without demonstrations. Filled by the
    recipe."""
    draw: int | None = Field(None, gt=0)
    """Draw this many configurations from {base, warm} x {0..k} with the run's seed, in the place of the list.
    None: the list."""
    answer_with: Literal["samples", "scores"] = "samples"
    """samples: a sampled completion a configuration; scores: the most likely answer of the exact distribution."""
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0)
    """Most tokens of a sampled answer. None: 16 for choice, 32 for label and number, 64 for span, 512 for text."""
    max_failed_fraction: float = Field(0.01, ge=0, le=1)
    """Share of requests that may fail before the stage stops."""
    cascade: CascadeConfig | None = None
    """Cheap exact scores first. None: all configurations answer every row, as in the paper."""


class JustifyConfig(Section):
    """Self-justification: a model sees the question and all answers, gives the final one and says how sure it is."""

    model: Literal["warm", "base"] = "warm"
    """Model that justifies and whose confidence in the final answers is taken (paper and released code: warm).
    base, with configurations of the base alone, needs no warm-up (ablation of in-weight propagation)."""
    when: Literal["disagree", "always", "never"] = "disagree"
    """disagree: rows without consensus (the paper's stress and the released code); always: the paper's equation;
    never: majority of the answers, ties to the earlier configuration."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy (over closed sets: the most likely answer)."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0)


class SelectConfig(Section):
    """Adaptive selection: which pseudo-labels become training data."""

    signal: Signal = "mean_nll"
    """mean_nll is the paper's H (and the released code's); the others are ours to compare with. agreement and
    sample_entropy (entropy of the answers of the configurations) need no log-probabilities."""
    keep_fraction: float = Field(0.5, gt=0, le=1)
    """theta: share of the rows that the threshold is taken over which is kept (paper 0.5, released 0.3)."""
    per_answer: bool = False
    """Whether theta is kept of the rows of each predicted answer, by thresholds of their own, as in class-balanced
    self-training (arXiv:1810.07911): for classes that are unbalanced or of unequal difficulty. Closed answer sets only.
    false: one threshold for all (paper and released)."""
    apply_to: Literal["all", "justified"] = "all"
    """all: the threshold is over U (paper, Eq. 7); justified: consensus rows are all kept, the threshold is over
    the rest (released)."""
    min_confidence: float | None = Field(None, gt=0, lt=1)
    """Rows whose answer has a smaller exact probability are dropped, consensus rows too, before the threshold is taken
    over those that are left (with `keep_fraction: 1` this alone decides). Closed answer sets only; a label that has no
    probability, as some have at a server, is dropped too. None: no minimum."""
    min_agreement: float | None = Field(None, gt=0, le=1)
    """Rows whose final answer is that of a smaller share of the candidates are dropped in the same way. None: no
    minimum."""
    prompt: Literal["plain", "justify"] = "plain"
    """Prompt under which mean_nll is taken: the question alone (paper) or the justification prompt (released). The
    other signals and `min_confidence` are always of the question alone."""

    def lasting(self) -> dict[str, Any]:
        """`per_answer` only where it is set: it came later, and selections without it are what they were."""
        found = super().lasting()
        return found if self.per_answer else {name: value for name, value in found.items() if name != "per_answer"}


class EvolveConfig(StageTrainingConfig):
    """The last fine-tuning. None takes the trainer's value (learning rate in the paper 1e-4; released 1e-6)."""

    init: Literal["base", "warm"] = "base"
    """Weights to start from (paper: base; released: the warm-up adapter)."""
    train_on: Literal["labeled+selected", "selected"] = "labeled+selected"
    """Paper, Eq. 9: both; released (and the paper's Algorithm 1): the pseudo-labelled rows alone."""
    kept_by: Literal["select", "oracle_select", "oracle_full"] = "select"
    """Stage whose kept rows are trained on. The oracles look at the sealed targets, so they are bounds and no methods;
    arms of a comparison set them."""


class ControlConfig(Section):
    """SFT on the labelled rows alone with as many optimiser steps as evolve, from the same weights."""

    enabled: bool = True
    steps_of: Literal["evolve", "distill"] = "evolve"
    """Training whose steps, start and learning rate are those of the control. Arms of a comparison set it."""


class EvaluateConfig(Section):
    """How models are measured on the test rows."""

    answer_with: Literal["auto", "greedy"] = "auto"
    """auto: exact scores for closed answer sets, greedy completions for open ones; greedy: completions for all."""
    max_tokens: int | None = Field(None, gt=0)
    n_bootstrap: int = Field(2000, ge=200)
    """Draws of the paired bootstrap."""


class DistillConfig(StageTrainingConfig):
    """Context distillation, an arm of comparisons: a teacher with demonstrations trains a student without.

    The number of demonstrations is `retrieve.k`. None takes the trainer's value; an epoch sees every answer that has a
    probability of at least 0.01, so it is longer than one of evolve. `semievol run` does not use this section.
    """

    teacher: Literal["base", "warm"] = "base"
    """Model whose exact answer distribution over each unlabelled row is the target; the student starts from the base.
    """


class MeasureConfig(Section):
    """How the arms of a comparison are measured on the test rows: one model each. `semievol run` does not use it.

    Arms set `model` and `k` themselves, whatever stands here, and `n_samples` is that of self_consistency alone.
    """

    model: Literal["base", "adapted", "warm", "control", "evolved", "distilled"] = "evolved"
    """The model that answers; it has to be among those that the arm trains."""
    k: int = Field(0, ge=0)
    """Nearest labelled rows shown with each test row (few-shot inference), found by the `embedder`; 0: none."""
    n_samples: int = Field(1, ge=1)
    """Above 1: the majority of so many sampled answers (self-consistency), ties to the one sampled first.
    1: exact scores or greedy completions, as `evaluate.answer_with` says; the arm self_consistency takes 4 then."""
    temperature: float = Field(1.0, gt=0)
    """Of the samples; without effect where `n_samples` is 1."""


class ReportConfig(Section):
    """What the report shows."""

    n_examples: int = Field(40, ge=0)
    """Kept and dropped rows that can be browsed."""
    title: str | None = None


class RunConfig(Section):
    """Everything a run depends on."""

    recipe: Literal["paper", "released"] = "paper"
    """Fills every method choice; any key can still be set, and the report prints what differs."""
    output_dir: str = "runs/semievol"
    seed: int = Field(0, ge=0)
    rounds: int = Field(1, ge=1, le=20)
    """Times that retrieve..evolve is done; each further round takes the kept rows as labelled and looks at the
    dropped ones."""
    task: TaskConfig = TaskConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    generator: GeneratorConfig = TransformersGeneratorConfig()
    trainer: TrainerConfig = TrlTrainerConfig()
    embedder: EmbedderConfig = Bm25EmbedderConfig()
    adapt: AdaptConfig = AdaptConfig()
    warmup: WarmupConfig = WarmupConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    propagate: PropagateConfig = PropagateConfig()
    justify: JustifyConfig = JustifyConfig()
    select: SelectConfig = SelectConfig()
    evolve: EvolveConfig = EvolveConfig()
    control: ControlConfig = ControlConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    distill: DistillConfig = DistillConfig()
    measure: MeasureConfig = MeasureConfig()
    report: ReportConfig = ReportConfig()

    @property
    def data_seed(self) -> int:
        """Seed of splits and draws."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def can_score(self) -> bool:
        """Whether each answer of a row can be given its exact probability: a closed set, a generator that scores."""
        return self.task.type in ("choice", "label") and self.generator.type not in ("openai", "openai_batch")

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        recipe = RECIPES.get(str(raw.get("recipe", "paper")))
        if recipe is None:
            return raw  # the field's own check names the allowed values
        filled = json.loads(json.dumps(raw, default=_plain))
        for key, value in (DEFAULT_BACKENDS | recipe).items():
            _set_missing(filled, key.split("."), value)
        return filled

    @model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        if not self.propagate.configurations and self.propagate.draw is None:
            raise ValueError("propagate.configurations is empty: list at least one {model, k}, or set propagate.draw")
        most = max((c.k for c in self.propagate.configurations), default=0)
        if self.propagate.draw is None and most > self.retrieve.k:
            raise ValueError(
                f"propagate.configurations asks for {most} demonstrations, but retrieve.k is {self.retrieve.k}"
            )
        if self.propagate.answer_with == "scores" and self.task.type not in ("choice", "label"):
            raise ValueError(
                f"propagate.answer_with: scores needs a closed answer set, but task.type is {self.task.type}"
            )
        if self.propagate.answer_with == "scores" and self.generator.type in ("openai", "openai_batch"):
            raise ValueError(
                f"propagate.answer_with: scores needs exact scores, which generator.type: {self.generator.type} "
                "cannot give; use samples"
            )
        if self.propagate.cascade is not None and self.task.type not in ("choice", "label"):
            raise ValueError(
                f"propagate.cascade needs a closed answer set (choice or label), but task.type is {self.task.type}"
            )
        if self.propagate.cascade is not None and self.generator.type in ("openai", "openai_batch"):
            raise ValueError(
                f"propagate.cascade needs exact scores, which generator.type: {self.generator.type} cannot give; "
                "leave it out, or use a local generator"
            )
        if self.select.signal in ("entropy", "max_probability") and self.task.type not in ("choice", "label"):
            raise ValueError(
                f"select.signal: {self.select.signal} needs a closed answer set, but task.type is {self.task.type}"
            )
        if self.select.min_confidence is not None and self.task.type not in ("choice", "label"):
            raise ValueError(f"select.min_confidence needs a closed answer set, but task.type is {self.task.type}")
        if self.select.per_answer and self.task.type not in ("choice", "label"):
            raise ValueError(f"select.per_answer needs a closed answer set, but task.type is {self.task.type}")
        if self.generator.type == "ray" and self.model.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"model.device: {self.model.device} names one device, but generator.type: ray gives each replica its "
                "own; set auto, cpu or cuda"
            )
        if self.generator.type == "ray" and self.model.device == "cuda" and not self.generator.gpus_per_replica:
            raise ValueError("model.device: cuda needs generator.gpus_per_replica above 0")
        if self.evolve.kept_by != "select" and self.rounds > 1:
            raise ValueError(f"evolve.kept_by: {self.evolve.kept_by} works on one round; set rounds: 1")
        self._check_hosted_training()
        if self.retrieve.index == "faiss" and self.embedder.type == "bm25":
            raise ValueError(
                "retrieve.index: faiss compares embeddings, but embedder.type is bm25, which compares words; "
                "choose another embedder, or retrieve.index: exact"
            )
        self._check_vllm()
        ranked_unjustified = self.select.apply_to == "all" and self.justify.when != "always"
        if self.select.prompt == "justify" and (self.justify.when == "never" or ranked_unjustified):
            raise ValueError(
                "select.prompt: justify ranks rows by their justification; set justify.when: always, "
                "or justify.when: disagree with select.apply_to: justified"
            )
        return self

    def _check_hosted_training(self) -> None:
        if self.trainer.type != "openai":
            return
        for name in ("warmup", "evolve"):
            section: WarmupConfig | EvolveConfig = getattr(self, name)
            if section.learning_rate is not None:
                raise ValueError(
                    f"{name}.learning_rate: a server takes no learning rate; set {name}.learning_rate: null, and "
                    "trainer.learning_rate_multiplier where its choice does not suit"
                )
            if section.num_train_epochs is not None and section.num_train_epochs != int(section.num_train_epochs):
                raise ValueError(f"{name}.num_train_epochs: a server trains for whole epochs")
            if section.max_steps is not None and self.trainer.batch_size == "auto":
                raise ValueError(f"{name}.max_steps needs trainer.batch_size as a number, not auto")
        if self.control.enabled and self.trainer.batch_size == "auto":
            raise ValueError(
                "the control has to take as many optimiser steps as evolve, which a server cannot promise with "
                "trainer.batch_size: auto; set a number, or control.enabled: false"
            )

    def _check_vllm(self) -> None:
        """VLLM serves what the trainer makes."""
        generator, trainer = self.generator, self.trainer
        if generator.type != "vllm":
            return
        if trainer.type == "openai":
            raise ValueError("generator.type: vllm cannot ask a model that a server has trained; use trainer.type: trl")
        if trainer.type != "trl" or trainer.method == "full":
            return
        if generator.max_loras == 0:
            raise ValueError(f"trainer.method: {trainer.method} makes adapters; set generator.max_loras: 1 or more")
        if trainer.r > generator.max_lora_rank:
            raise ValueError(
                f"generator.max_lora_rank: {generator.max_lora_rank} is below trainer.r: {trainer.r}; raise it"
            )

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("output_dir is empty")
        return _expand_home(value)


def _expand_home(value: str) -> str:
    """`~/models` as the path that it stands for; others as they are."""
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("there is no such home folder; put ./ before a name that begins with ~") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config and apply `key=value` overrides (dotted keys, values in YAML).

    Relative paths of data files, of a local model and of `output_dir` are taken from the working directory,
    as transformers and TRL do.

    Raises:
        ConfigError: If the file is missing or not YAML, names a key twice, or a key or value does not fit; one line a
        fault, with the remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read config {path}: {error.strerror}. `semievol init FILES... -o {path}` writes one"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        raw = _load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Check a plain mapping with `key=value` overrides.

    Raises:
        ConfigError: If a key or value does not fit; one line a fault, which names the override it comes from, or
        `source`.
    """
    merged = apply_overrides(raw, overrides)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        lines = _blame(_find_faults(error), _faults_of(raw) if overrides else [], overrides, source)
        raise ConfigError("\n".join(lines)) from error


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `raw` with each dotted `key=value` set. Raises ConfigError for one without `=`."""
    merged: dict[str, Any] = json.loads(json.dumps(raw, default=_plain))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"override {override!r}: expected key=value, for example select.keep_fraction=0.3")
        try:
            value = _load_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
        node = merged
        *parents, last = key.strip().split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
            node = child
        node[last] = value
    return merged


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice; of such keys, YAML libraries silently take the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            other = first.setdefault((key.tag, key.value), key)
            if other is not key:
                lines = dict.fromkeys(str(found.start_mark.line + 1) for found in (other, key))
                raise yaml.YAMLError(
                    f"the key {key.value} stands twice (line {' and line '.join(lines)}); put what belongs to it in "
                    "one place"
                )
        return node


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def recipe_differences(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Method choices that the config sets otherwise than its recipe: (key, value in use, recipe's value)."""
    reference = parse_config({"recipe": config.recipe, "data": config.data.model_dump(), **_backend_types(config)})
    ours, theirs = dict(_flatten(config)), dict(_flatten(reference))
    sections = (
        "adapt",
        "warmup",
        "retrieve",
        "propagate",
        "justify",
        "select",
        "evolve",
        "trainer",
        "rounds",
        "evaluate",
    )
    skipped = {f"trainer.{name}" for name in (*config.trainer.operational, "base_url", "azure")}
    skipped |= {f"trainer.launch.{name}" for name in LaunchConfig.operational}
    found = [k for k in ours if k.split(".")[0] in sections and k not in skipped]
    return [(k, ours[k], theirs.get(k)) for k in found if ours[k] != theirs.get(k)]


def _backend_types(config: RunConfig) -> dict[str, Any]:
    return {"trainer": {"type": config.trainer.type}, "generator": {"type": config.generator.type}}


def _flatten(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{prefix}{name}", [item.model_dump() for item in value]
        else:
            yield f"{prefix}{name}", value


def _set_missing(node: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            return
        node = child
    node.setdefault(last, value)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


class _Fault(NamedTuple):
    key: str
    """Dotted, as in an override; empty for what concerns several sections."""
    text: str


def _faults_of(raw: Mapping[str, Any]) -> list[_Fault]:
    try:
        RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        return list(_find_faults(error))
    return []


def _blame(faults: Iterable[_Fault], own: Sequence[_Fault], overrides: Sequence[str], path: str) -> Iterator[str]:
    """Lines that name the overrides a fault comes from, and the file for the faults that are its `own`."""
    keys = [(override, override.partition("=")[0].strip()) for override in overrides]
    for fault in faults:
        setting = [o for o, key in keys if fault.key == key or fault.key.startswith(f"{key}.")]
        inside = [o for o, key in keys if not fault.key or key.startswith(f"{fault.key}.")]
        if setting:
            yield f"override {setting[-1]!r}: {fault.text}"
        elif inside and fault not in own:
            yield f"{path} with override {', '.join(map(repr, inside))}: {fault.text}"
        else:
            yield f"{path}: {fault.text}"


def _find_faults(error: ValidationError) -> Iterator[_Fault]:
    for fault in error.errors():
        place = _find_place(fault["loc"])
        key = place.key
        if fault["type"] == "extra_forbidden":
            yield _Fault(key, f"unknown key {key}; {_key_hint(place)}")
        elif fault["type"] == "missing":
            yield _Fault(key, f"{key} is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "string_type":
                message += _quote_hint(fault["input"])
            shown = "" if isinstance(fault["input"], dict | BaseModel) else f" (got {fault['input']!r})"
            yield _Fault(key, f"{key}: {message}{shown}" if key else message)


def _quote_hint(value: object) -> str:
    if isinstance(value, bool):
        return ": YAML reads yes, no, on, off, true and false as true or false; put the word in quotes"
    return ": YAML reads this as a number; put it in quotes" if isinstance(value, int | float) else ""


class _Place(NamedTuple):
    """Where in the config a fault is."""

    keys: tuple[str, ...]
    """As the user writes them, without the tags of unions."""
    sections: list[type[BaseModel]]
    """What can stand there, or hold a key that is unknown; the one in use comes first. Empty for a plain value."""

    @property
    def key(self) -> str:
        return ".".join(self.keys)


def _find_place(location: Sequence[int | str]) -> _Place:
    """Follow pydantic's location, which names the member of each union on its way (`generator, fake, accuracy`)."""
    keys: list[str] = []
    sections: list[type[BaseModel]] = [RunConfig]
    is_tag = False
    for part in location:
        if is_tag:
            sections.sort(key=lambda section: section.model_fields["type"].default != part)
            is_tag = False
        elif isinstance(part, int):
            keys.append(str(part))
        elif sections:
            keys.append(part)
            field = sections[0].model_fields.get(part)
            if field is not None:
                sections = _models_in(field.annotation)
                is_tag = field.discriminator is not None
    return _Place(tuple(keys), sections)


def _key_hint(place: _Place) -> str:
    *parents, name = place.keys
    section, *others = place.sections
    types = [other.model_fields["type"].default for other in others if name in other.model_fields]
    if types:
        switch, used = ".".join((*parents, "type")), section.model_fields["type"].default
        return f"it is a key of {switch}: {' or '.join(types)}, and yours is {used}; remove it, or change {switch}"
    near = difflib.get_close_matches(name, section.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(section.model_fields))}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]

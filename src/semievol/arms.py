"""What a comparison can run: every arm is a tuple of stages and the config keys that it sets.

No arm has code of its own. Arms that agree in a step's inputs share it, so an arm sets as few keys as it needs; the
rest is the user's config. Where a paper stands behind an arm its description names it.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from semievol.answers import GRADED, default_metric
from semievol.config import RECIPES, ConfigurationConfig, RunConfig, TrainerConfig, parse_config
from semievol.errors import ConfigError
from semievol.pipeline import STAGES, Step
from semievol.sft import stage_trainer_config
from semievol.stage import ROUND_STAGES, Stage
from semievol.stages import audit, distill, measure, oracle_full, oracle_select

Overrides = dict[str, Any]
"""Dotted config key -> value."""

ARM_STAGES: dict[str, Stage] = {
    s.name: s for s in (*STAGES, distill.STAGE, oracle_select.STAGE, oracle_full.STAGE, measure.STAGE, audit.STAGE)
}

DEFAULTS: Overrides = {
    "measure.model": "evolved",
    "measure.k": 0,
    "measure.n_samples": 1,
    "evolve.kept_by": "select",
    "control.steps_of": "evolve",
}
"""What an arm measures and trains on unless it says otherwise, whatever the config says."""

ONE_THRESHOLD: Overrides = {"select.per_answer": False, "select.min_confidence": None, "select.min_agreement": None}
"""Selection as both recipes have it: what a config adds to it is no part of the other methods."""
EVERY_LABEL: Overrides = {**ONE_THRESHOLD, "select.keep_fraction": 1.0}

ONCE = ("data", "adapt", "warmup", "measure")
"""Stages of which the number of rounds changes nothing by itself; of the evolved models measure names the last."""
LABELING = ("retrieve", "propagate", "justify", "select")
METHOD = ("data", "warmup", *LABELING, "evolve")

METHOD_ARM = "semievol"
"""The arm that the verdict of a comparison is about, where it ran."""
N_SAMPLES = 4
"""Answers of self-consistency where `measure.n_samples` asks for one."""
DEMONSTRATIONS = 3
"""Of arms that are nothing without, where `retrieve.k` is 0."""
MATCHED = "sft_matched"
CONTROL_OF = "@"
"""Stands between MATCHED and the name of the arm in the name of its control."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to use the labelled and the unlabelled rows, or one of them, or none."""

    name: str
    description: str
    stages: tuple[str, ...]
    """What it runs before it is measured; those that rounds repeat stand together."""
    overrides: Callable[[RunConfig], Overrides]
    """Keys that it sets, given the user's config."""
    uses_gold: bool = False
    """Whether it reads the sealed targets of the unlabelled rows."""
    needs_scores: bool = False
    """Whether it needs the exact probability of an answer: a task of type choice or label, and a generator that scores
    answers."""

    def misfit(self, config: RunConfig) -> str:
        """Why it cannot be made of a config; empty where it can."""
        if self.needs_scores and not config.can_score:
            return (
                f"it needs the exact probability of an answer, which task.type: {config.task.type} with "
                f"generator.type: {config.generator.type} does not give"
            )
        try:
            return self._misfit_of_trainer(configure(self, config)) or self._misfit_of_metric(config)
        except ConfigError as error:
            return str(error)

    def _misfit_of_trainer(self, config: RunConfig) -> str:
        trainer = config.trainer
        if trainer.type != "openai":
            return ""
        if config.adapt.enabled and "warmup" in self.stages:
            return "it trains on plain text, and trainer.type: openai on chats alone"
        if "distill" in self.stages:
            return "its rows have weights, which trainer.type: openai does not take"
        if "control" in self.stages and trainer.batch_size == "auto":
            return (
                "with trainer.batch_size: auto the server chooses how many optimiser steps a training has; set it to a "
                "number"
            )
        return ""

    def _misfit_of_metric(self, config: RunConfig) -> str:
        metric = default_metric(config.task)
        if "oracle_select" in self.stages and metric in GRADED:
            return f"it keeps the right answers, and task.metric: {metric} calls none simply right or wrong"
        return ""


def configure(arm: Arm, config: RunConfig) -> RunConfig:
    """The config of an arm.

    Raises:
        ConfigError: If the arm cannot be made of this config.
    """
    return override(config, DEFAULTS | arm.overrides(config), source=f"arm {arm.name}")


def override(config: RunConfig, values: Mapping[str, Any], *, source: str) -> RunConfig:
    """A copy of `config` with dotted keys set. Raises ConfigError, which names `source`, if the result is invalid."""
    raw = config.model_dump(mode="json")
    for key, value in values.items():
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{source}: {key}: {parent} is a value, not a section")
        node[last] = value
    return parse_config(raw, source=source)


def plan_arm(arm: Arm, config: RunConfig, *, use_gold: bool) -> list[Step]:
    """All steps of an arm, in order; `config` is its own. With `use_gold` an audit of its pseudo-labels is the last."""
    names = [*arm.stages, "measure"]
    if config.adapt.enabled and "warmup" in names:
        names.insert(names.index("warmup"), "adapt")
    if use_gold and "select" in arm.stages and "control" not in arm.stages:  # the control only counts them
        names.append("audit")
    repeated = [ARM_STAGES[n] for n in names if n in ROUND_STAGES]
    steps: list[Step] = []
    for name in names:
        if name not in ROUND_STAGES:
            steps.append(Step(ARM_STAGES[name], 1 if name in ONCE else config.rounds))
        elif ARM_STAGES[name] is repeated[0]:
            steps += [Step(stage, r) for r in range(1, config.rounds + 1) for stage in repeated]
    return steps


def choose_arms(
    names: Sequence[str], config: RunConfig, *, use_gold: bool, note: Callable[[str], None] = lambda _: None
) -> list[Arm]:
    """Arms by name, in the order of ARMS; `all` stands for all that may run, and `note` gets why others may not.

    Raises:
        ConfigError: If there is no such arm, or it does not fit the config, or reads sealed targets without `use_gold`.
    """
    for name in names:
        if name not in (*ARMS, "all"):
            near = difflib.get_close_matches(name, ARMS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"arms: {', '.join(ARMS)}, or all"
            raise ConfigError(f"no arm {name!r}; {hint}")
    if "all" in names:
        fitting = []
        for arm in (arm for arm in ARMS.values() if use_gold or not arm.uses_gold):
            if misfit := arm.misfit(config):
                note(f"{arm.name} is left out: {misfit}")
            else:
                fitting.append(arm)
        return fitting
    for name in names:
        if ARMS[name].uses_gold and not use_gold:
            raise ConfigError(
                f"arm {name} reads the targets of the unlabelled rows, which stay sealed; add --use-gold to open them"
            )
        if misfit := ARMS[name].misfit(config):
            raise ConfigError(f"arm {name} does not fit the config: {misfit}; leave it out")
    if not names:
        raise ConfigError(f"no arms given; arms: {', '.join(ARMS)}, or all")
    return [arm for name, arm in ARMS.items() if name in names]


def find_arm(name: str) -> Arm:
    """An arm by name, also the control of one. Raises KeyError if there is none."""
    matched, _, controlled = name.partition(CONTROL_OF)
    return ARMS[name] if matched == name else make_control(ARMS[controlled])


def make_control(arm: Arm) -> Arm:
    """SFT on the labelled rows for as many steps as an arm, from the weights and at the rate of its last training."""
    overrides: Overrides = {"measure.model": "control", "control.steps_of": _last_training(arm)}
    return Arm(
        f"{MATCHED}{CONTROL_OF}{arm.name}",
        f"fine-tuned on the labelled rows for as many steps as {arm.name}",
        (*arm.stages, "control"),
        lambda config: {**arm.overrides(config), **overrides},
        needs_scores=arm.needs_scores,
    )


def choose_controls(arms: Sequence[Arm], config: RunConfig) -> list[Arm]:
    """Controls that arms need beside MATCHED, which is as long as METHOD_ARM alone.

    Arms that learn from labelled and unlabelled rows without gold have one, but where the config says before anything
    runs that MATCHED itself is it: as many `max_steps`, from the same weights and with the same settings.
    """
    matched = _length_of(ARMS[METHOD_ARM], config)
    return [
        make_control(arm)
        for arm in arms
        if {"evolve", "distill"} & set(arm.stages) and "control" not in arm.stages
        if not arm.uses_gold and arm.name not in (METHOD_ARM, "reflection")
        if matched is None or _length_of(arm, config) != matched
    ]


def _last_training(arm: Arm) -> str:
    return "distill" if "distill" in arm.stages else "evolve"


def _length_of(arm: Arm, config: RunConfig) -> tuple[TrainerConfig, str, int] | None:
    """Settings, start and number of the trainings that a control repeats; None where their steps hang on the rows."""
    own = configure(arm, config)
    distils = _last_training(arm) == "distill"
    settings = stage_trainer_config(own.trainer, own.distill if distils else own.evolve)
    init = "base" if distils else own.evolve.init
    return None if settings.max_steps is None else (settings, init, own.rounds if init == "warm" else 1)


def _set(**values: Any) -> Callable[[RunConfig], Overrides]:
    """The same values whatever the config; `a__b` stands for the key a.b."""
    return lambda _: {key.replace("__", "."): value for key, value in values.items()}


def _few_shot(config: RunConfig, *, embedder: str) -> Overrides:
    """The base sees the k nearest labelled rows. Dense: the config's own embedder, MiniLM where that is BM25."""
    values: Overrides = {"measure.model": "base", "measure.k": config.retrieve.k or DEMONSTRATIONS}
    if embedder == "bm25":
        return values | {"embedder": {"type": "bm25"}, "retrieve.index": "exact"}
    if config.embedder.type == "bm25":
        return values | {"embedder": {"type": "sentence_transformers"}}
    return values


def _self_consistency(config: RunConfig) -> Overrides:
    n_samples = config.measure.n_samples
    return {"measure.model": "warm", "measure.n_samples": n_samples if n_samples > 1 else N_SAMPLES}


def _distillation(config: RunConfig) -> Overrides:
    """The teacher sees demonstrations whatever the method does."""
    values: Overrides = {"measure.model": "distilled", "distill.teacher": "base", "rounds": 1}
    return values if config.retrieve.k else values | {"retrieve.k": DEMONSTRATIONS}


def _best_answer_of(model: str, config: RunConfig) -> Overrides:
    """One configuration gives its most likely answer to every row, and all answers are kept after one round."""
    values: Overrides = {
        "propagate.configurations": [{"model": model, "k": 0}],
        "propagate.draw": None,
        "propagate.cascade": None,
        "justify.model": model,
        "select.apply_to": "all",
        "select.prompt": "plain",
        **EVERY_LABEL,
        "rounds": 1,
    }
    if config.can_score:
        return values | {"propagate.answer_with": "scores"}
    return values | {"propagate.answer_with": "samples", "propagate.temperature": 0.0}


def _pseudo_all(config: RunConfig) -> Overrides:
    return _best_answer_of("warm", config) | {"justify.when": "never", "evolve.train_on": "labeled+selected"}


def _pseudo_confident(config: RunConfig) -> Overrides:
    return _pseudo_all(config) | {"select.min_confidence": 0.9}


def _reflection(config: RunConfig) -> Overrides:
    kept = {"select.min_agreement": 1.0, "evolve.train_on": "selected"}
    return _best_answer_of("base", config) | {"justify.when": "always"} | kept | _from_base(config)


def _from_base(config: RunConfig) -> Overrides:
    """Training afresh: a rate for going on from the warm-up (released: 1e-6) would teach the base nothing."""
    if config.evolve.init == "base":
        return {}
    return {"evolve.init": "base", "evolve.learning_rate": config.warmup.learning_rate}


def _released(config: RunConfig) -> Overrides:
    """The recipe, and what the released code does besides, whatever the config says."""
    values: Overrides = {
        "recipe": "released",
        **ONE_THRESHOLD,
        **RECIPES["released"],
        "propagate.draw": None,
        "propagate.cascade": None,
        "propagate.answer_with": "samples",
        "propagate.temperature": 1.0,
        "propagate.top_p": 1.0,
        "justify.model": "warm",
    }
    if config.trainer.type == "openai":  # the server sets the rate
        values["evolve.learning_rate"] = None
    return values


def _configurations(config: RunConfig) -> tuple[ConfigurationConfig, ...]:
    if config.propagate.draw is not None:
        raise ConfigError(
            "propagate.draw: the ablations change the list of configurations; set propagate.configurations instead"
        )
    return config.propagate.configurations


def _without_warmup(config: RunConfig) -> Overrides:
    listed = [{"model": "base", "k": c.k} for c in _configurations(config)]
    return {"propagate.configurations": listed, "justify.model": "base"} | _from_base(config)


def _without_demonstrations(config: RunConfig) -> Overrides:
    return {"propagate.configurations": [{"model": c.model, "k": 0} for c in _configurations(config)]}


def _without_collaboration(config: RunConfig) -> Overrides:
    """The warm model with most demonstrations: what is left of the other two parts of the method stays.

    A single answer agrees with itself. Where rows that all agree on are kept as they are, the percentile is therefore
    taken over all rows, or selection would go with collaboration.

    Raises:
        ConfigError: If rows are ranked by agreement, which all have then.
    """
    if config.select.signal in ("agreement", "sample_entropy"):
        raise ConfigError(
            f"select.signal: {config.select.signal} is the same for all rows where a single configuration answers, so "
            "nothing could be selected by it; set select.signal: mean_nll"
        )
    one = max(_configurations(config), key=lambda c: (c.model == "warm", c.k))
    values: Overrides = {"propagate.configurations": [one.model_dump()]}
    if config.select.apply_to == "justified":
        values |= {"select.apply_to": "all", "select.prompt": "plain"}
    return values


_ARMS = (
    Arm("zero_shot", "base model as it is", ("data",), _set(measure__model="base")),
    Arm(
        "few_shot_bm25",
        "base model, k nearest labelled rows by BM25 in the prompt",
        ("data",),
        partial(_few_shot, embedder="bm25"),
    ),
    Arm(
        "few_shot_dense",
        "base model, k nearest labelled rows by embedding in the prompt",
        ("data",),
        partial(_few_shot, embedder="dense"),
    ),
    Arm(
        "self_consistency",
        "SFT model, majority of measure.n_samples sampled answers, 4 where that is 1 (arXiv:2203.11171)",
        ("data", "warmup"),
        _self_consistency,
    ),
    Arm("sft", "fine-tuned on the labelled rows", ("data", "warmup"), _set(measure__model="warm")),
    Arm(
        "sft_matched",
        "fine-tuned on the labelled rows for as many steps as semievol",
        (*METHOD, "control"),
        _set(measure__model="control"),
    ),
    Arm(
        "tapt_sft",
        "language modelling of all questions, then fine-tuned on the labelled rows (arXiv:2004.10964)",
        ("data", "warmup"),
        _set(measure__model="warm", adapt__enabled=True),
    ),
    Arm(
        "pseudo_all",
        "labelled rows and the SFT model's best answer to every unlabelled row",
        METHOD,
        _pseudo_all,
    ),
    Arm(
        "pseudo_confident",
        "the same, answers of probability 0.9 and more alone",
        METHOD,
        _pseudo_confident,
        needs_scores=True,
    ),
    Arm(
        "icl_distill",
        "base model that learns what it answers with demonstrations (arXiv:2209.15189)",
        ("data", "retrieve", "distill"),
        _distillation,
        needs_scores=True,
    ),
    Arm(
        "reflection",
        "no labels: the base answers, looks at its answers again and trains on those it stands by",
        ("data", *LABELING, "evolve"),
        _reflection,
    ),
    Arm("semievol", "the method, as the config has it (arXiv:2410.14745)", METHOD, _set()),
    Arm(
        "semievol_released",
        "the method as the authors' released code does it",
        METHOD,
        _released,
    ),
    Arm(
        "semievol-iwp",
        "without in-weight propagation: the base in the place of the SFT model",
        ("data", *LABELING, "evolve"),
        _without_warmup,
    ),
    Arm("semievol-icp", "without in-context propagation: no demonstrations", METHOD, _without_demonstrations),
    Arm("semievol-cl", "without collaborative learning: one configuration", METHOD, _without_collaboration),
    Arm(
        "semievol-as",
        "without adaptive selection: all pseudo-labels",
        METHOD,
        lambda _: {**EVERY_LABEL, "rounds": 1},
    ),
    Arm(
        "oracle_select",
        "bound: as many pseudo-labels as semievol keeps, all of them right",
        ("data", "warmup", *LABELING, "oracle_select", "evolve"),
        _set(evolve__kept_by="oracle_select", rounds=1),
        uses_gold=True,
    ),
    Arm(
        "oracle_full",
        "bound: fine-tuned on the labelled rows and the targets of all unlabelled ones",
        ("data", "oracle_full", "evolve"),
        lambda config: {
            "evolve.kept_by": "oracle_full",
            "evolve.train_on": "labeled+selected",
            "rounds": 1,
            **_from_base(config),
        },
        uses_gold=True,
    ),
)

ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}
"""Every arm by name, in the order of tables: what trains nothing, then supervised, semi-supervised, ablations and
bounds."""

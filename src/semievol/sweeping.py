"""Plans a sweep: values of a few keys, each point a comparison of its own that shares all it can with the others.

Keys are those of the config, and these, which stand for several keys or for numbers that only the data know:

    n                 number of configurations that answer (paper: 1 to 5)
    theta             select.keep_fraction
    k                 demonstrations: retrieve.k, and as many in the configurations that had all
    unlabeled_ratio   |U| / |L|: as many unlabelled rows are drawn
    rewordings=N      the first N wordings of the instruction
"""

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cache, partial
from typing import Any

import yaml

from semievol.arms import Overrides, override
from semievol.comparison import format_setting
from semievol.config import ConfigurationConfig, RunConfig
from semievol.errors import ConfigError
from semievol.loading import load_examples
from semievol.rewordings import N_WORDINGS, reword

Axes = dict[str, list[Any]]
"""Values by key, in the order given."""

ALIASES = {
    "n": "propagate.configurations",
    "theta": "select.keep_fraction",
    "k": "retrieve.k",
    "unlabeled_ratio": "data.max_unlabeled",
    "rewording": "task.instruction",
}
"""Keys of a sweep, and the key of the config that each sets first of all."""

ARMS = ("sft_matched", "semievol")
"""Arms of a sweep that names none."""

ROUND_RATIO = 1.05
"""A ratio that asks for so many times the unlabelled rows there are is met by all of them: a file cut in whole parts
lacks a few once its duplicates are out."""


def split_arguments(texts: Sequence[str]) -> tuple[list[str], Axes]:
    """Read `key=v1,v2,...`: plain overrides of the config, and what is swept.

    Values are YAML, so `null`, `[a, b]` and numbers are what they look like. A key of the config with a single value is
    an override, which holds at every point.

    Raises:
        ConfigError: If one has no `=` or no value, a key comes twice, or two stand for the same.
    """
    overrides: list[str] = []
    axes: Axes = {}
    for text in texts:
        key, separator, listed = (part.strip() for part in text.partition("="))
        if not separator or not key or not listed:
            raise ConfigError(f"sweep {text!r}: expected key=v1,v2,..., for example theta=0.3,0.5,0.8")
        if key in axes or (key == "rewordings" and "rewording" in axes):
            raise ConfigError(f"sweep {text!r}: {key} is given twice; list all its values once")
        if key == "recipe" and "," in listed:
            raise ConfigError(
                f"sweep {text!r}: a recipe is the defaults of other keys, which the config has by then; name the arms "
                "semievol and semievol_released, or compare with recipe=paper and recipe=released in two folders"
            )
        if "." not in key and key not in (*DERIVED, "rewordings", *RunConfig.model_fields):
            near = difflib.get_close_matches(key, (*DERIVED, "rewordings", *RunConfig.model_fields), n=1)
            hint = f"did you mean {near[0]}?" if near else f"sweep keys: {', '.join((*DERIVED, 'rewordings'))}"
            raise ConfigError(f"sweep {text!r}: unknown key {key}; {hint}, or a key of the config such as rounds")
        try:
            values = yaml.safe_load(f"[{listed}]")
        except yaml.YAMLError as error:
            raise ConfigError(f"sweep {text!r}: the values are not valid YAML") from error
        if key == "rewordings":
            if len(values) > 1:
                raise ConfigError(
                    f"sweep {text!r}: rewordings takes one number, how many wordings (the first {N_WORDINGS} at most); "
                    f"rewording={listed} lists them by their numbers from 0"
                )
            axes["rewording"] = list(range(_whole(key, values[0], 1, N_WORDINGS)))
        elif len(values) == 1 and ("." in key or key not in DERIVED):
            overrides.append(text)
        else:
            values = [_plain(value) for value in values]
            axes[key] = [value for i, value in enumerate(values) if value not in values[:i]]
    for key, config_key in ALIASES.items():
        if key in axes and config_key in axes:
            raise ConfigError(f"sweep {key} and {config_key}: {key} stands for {config_key}; sweep one of them")
    fixed = {text.partition("=")[0].strip() for text in overrides}
    for key in axes:
        if (config_key := ALIASES.get(key, key)) in fixed:
            raise ConfigError(f"sweep {key}: {config_key} is given as well, with one value; leave one of them out")
    return overrides, axes


def plan_points(axes: Axes, *, cartesian: bool) -> list[dict[str, Any]]:
    """Points: every combination of the values, or one key at a time with the others as the config has them."""
    if cartesian:
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [{key: value} for key, values in axes.items() for value in values]


def point_settings(points: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[RunConfig], RunConfig]]:
    """What each point makes of a config, by its `key=value,...`."""
    return {format_setting(point): partial(apply_point, point=point) for point in points}


def apply_point(config: RunConfig, point: Mapping[str, Any]) -> RunConfig:
    """The config at a point of a sweep.

    Raises:
        ConfigError: If there is no such key, or the value does not fit it.
    """
    source = f"sweep {format_setting(point)}"
    # Which configurations there are follows from k, and the number of unlabelled rows from that of the labelled ones.
    for key in sorted(point, key=lambda key: {"k": 0, "retrieve.k": 0, "unlabeled_ratio": 2}.get(key, 1)):
        values = DERIVED[key](config, point[key]) if key in DERIVED else {key: point[key]}
        config = override(config, values, source=source)
    return config


def _plain(value: Any) -> Any:
    """1.0 as 1, so that a point has one name; a date as its text."""
    if isinstance(value, date):
        return value.isoformat()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _set_n(config: RunConfig, value: Any) -> Overrides:
    """The first n of the config's list; where it is shorter, of all members of {warm, base} x {0..k} that it lacks."""
    n = _whole("n", value, 1, 20)
    listed = config.propagate.configurations if config.propagate.draw is None else ()
    others = [ConfigurationConfig(model=model, k=k) for k in range(config.retrieve.k + 1) for model in ("warm", "base")]
    pool = [*listed, *(c for c in others if c not in listed)]
    if n > len(pool):
        raise ConfigError(
            f"sweep n={n}: there are {len(pool)} configurations with up to {config.retrieve.k} demonstrations; "
            f"raise retrieve.k"
        )
    return {"propagate.configurations": [c.model_dump() for c in pool[:n]], "propagate.draw": None}


def _set_theta(config: RunConfig, value: Any) -> Overrides:
    return {"select.keep_fraction": value}


def _set_k(config: RunConfig, value: Any) -> Overrides:
    """Configurations with all demonstrations keep all; the others are capped."""
    k, before = _whole("k", value, 0, 1000), config.retrieve.k
    listed = [
        c.model_copy(update={"k": k if c.k == before and c.k > 0 else min(c.k, k)}).model_dump()
        for c in config.propagate.configurations
    ]
    return {"retrieve.k": k, "propagate.configurations": listed}


def _set_unlabeled_ratio(config: RunConfig, value: Any) -> Overrides:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"sweep unlabeled_ratio={value}: expected a number above 0, such as 0.5")
    n_labeled, n_unlabeled = _count_rows(config.model_copy(update={"seed": config.data_seed}).model_dump_json())
    wanted = round(value * n_labeled)
    if not 1 <= wanted <= ROUND_RATIO * n_unlabeled:  # a little above all there are: all, which loading says
        raise ConfigError(
            f"sweep unlabeled_ratio={value}: that would be {wanted} unlabelled rows for {n_labeled} labelled ones, "
            f"but there are {n_unlabeled}; choose values from {1 / n_labeled:.2g} to {n_unlabeled / n_labeled:.2g}"
        )
    return {"data.max_unlabeled": wanted}


def _set_rewording(config: RunConfig, value: Any) -> Overrides:
    template = config.task.prompt_template
    if template is not None and "instruction" not in template:
        raise ConfigError(
            f"sweep rewording={value}: task.prompt_template has no {{{{ instruction }}}} in it, so no wording would "
            "reach the model; put it there, or leave rewording out"
        )
    return {"task.instruction": reword(config.task, _whole("rewording", value, 0, N_WORDINGS - 1))}


DERIVED: Mapping[str, Callable[[RunConfig, Any], Overrides]] = {
    "n": _set_n,
    "theta": _set_theta,
    "k": _set_k,
    "retrieve.k": _set_k,
    "unlabeled_ratio": _set_unlabeled_ratio,
    "rewording": _set_rewording,
}
"""Keys of a sweep that stand for other keys."""


@cache
def _count_rows(config: str) -> tuple[int, int]:
    """Labelled and unlabelled rows of a config, as JSON."""
    loaded = load_examples(RunConfig.model_validate_json(config))
    return len(loaded.labeled), len(loaded.unlabeled)


def _whole(key: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"sweep {key}={value}: expected a whole number from {low} to {high}")
    return value

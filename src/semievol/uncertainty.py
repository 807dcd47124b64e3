"""How unsure the model is of a pseudo-label, as one number to rank by."""

import math

from semievol.config import SelectConfig
from semievol.types import PseudoLabel


def uncertainty(label: PseudoLabel, config: SelectConfig) -> float:
    """The signal of a label, turned so that lower is surer; infinite for a label that could not be measured."""
    nll = label.justify_nll if config.prompt == "justify" else label.mean_nll
    value = {
        "mean_nll": nll,
        "entropy": label.entropy,
        "max_probability": None if label.max_probability is None else -label.max_probability,
        "agreement": -label.agreement,
        "sample_entropy": label.sample_entropy,
    }[config.signal]
    return math.inf if value is None or math.isnan(value) else value


def is_ranked(label: PseudoLabel, config: SelectConfig) -> bool:
    """Whether the percentile applies to a label, or it is kept without a confidence test."""
    return config.apply_to == "all" or label.source not in ("consensus", "cascade")

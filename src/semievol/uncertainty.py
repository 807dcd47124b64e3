"""How unsure the model is of a pseudo-label, as one number to rank by."""

import math

from semievol.config import SelectConfig
from semievol.errors import DataError
from semievol.types import PseudoLabel


def uncertainty(label: PseudoLabel, config: SelectConfig) -> float:
    """The signal of a label, turned so that lower is surer.

    Raises:
        DataError: If the label does not carry the signal.
    """
    nll = label.justify_nll if config.prompt == "justify" else label.mean_nll
    value = {
        "mean_nll": nll,
        "entropy": label.entropy,
        "max_probability": None if label.max_probability is None else -label.max_probability,
        "agreement": -label.agreement,
    }[config.signal]
    if value is None or math.isnan(value):
        raise DataError(f"select: row {label.example_id} has no {config.signal} under the {config.prompt} prompt")
    return value


def is_ranked(label: PseudoLabel, config: SelectConfig) -> bool:
    """Whether the percentile applies to a label, or it is kept without a confidence test."""
    return config.apply_to == "all" or label.source != "consensus"

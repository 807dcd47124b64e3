"""Prices of hosted models in US dollars for a million tokens, as of a date; `generator.prices` overrides them.

From OpenAI's public price page (developers.openai.com/api/docs/pricing), compared with several public copies of it that
agree. Batches cost half. Servers of one's own and other providers have no entry: an unknown price is said to be unknown
and never taken for nothing.
"""

import re
from typing import NamedTuple

from semievol.config import PricesConfig

AS_OF = "2026-11-06"
BATCH_SHARE = 0.5
"""Of the price of a single request, for tokens that go through a batch."""


class Price(NamedTuple):
    """US dollars for a million tokens."""

    input: float
    output: float
    cached: float | None = None
    """Of prompt tokens that the server has seen shortly before; not counted on in estimates."""
    training: float | None = None
    """Of a token of training, for each epoch; None where the model cannot be fine-tuned or nothing is known."""


class ModelPrices(NamedTuple):
    """Of a base and of what is fine-tuned from it."""

    base: Price
    tuned: Price | None = None


TABLE: dict[str, ModelPrices] = {
    "gpt-4o-mini": ModelPrices(Price(0.15, 0.60, 0.075, 3.00), Price(0.30, 1.20, 0.15)),
    "gpt-4o": ModelPrices(Price(2.50, 10.00, 1.25, 25.00), Price(3.75, 15.00, 1.875)),
    "gpt-4.1": ModelPrices(Price(2.00, 8.00, 0.50, 25.00), Price(3.00, 12.00, 0.75)),
    "gpt-4.1-mini": ModelPrices(Price(0.40, 1.60, 0.10, 5.00), Price(0.80, 3.20, 0.20)),
    "gpt-4.1-nano": ModelPrices(Price(0.10, 0.40, 0.025, 1.50), Price(0.20, 0.80, 0.05)),
    "gpt-3.5-turbo": ModelPrices(Price(0.50, 1.50, None, 8.00), Price(3.00, 6.00)),
    "gpt-5": ModelPrices(Price(1.25, 10.00, 0.125)),
    "gpt-5.1": ModelPrices(Price(1.25, 10.00, 0.125)),
    "gpt-5-mini": ModelPrices(Price(0.25, 2.00, 0.025)),
    "gpt-5-nano": ModelPrices(Price(0.05, 0.40, 0.005)),
    "gpt-5.4": ModelPrices(Price(2.50, 15.00, 0.25)),
    "gpt-5.4-mini": ModelPrices(Price(0.75, 4.50, 0.075)),
    "text-embedding-3-small": ModelPrices(Price(0.02, 0.0)),
    "text-embedding-3-large": ModelPrices(Price(0.13, 0.0)),
    "text-embedding-ada-002": ModelPrices(Price(0.10, 0.0)),
}

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")


def is_tuned(model: str) -> bool:
    """Whether a name is that of a fine-tuned model (`ft:BASE:ORGANISATION:SUFFIX:ID`)."""
    return model.startswith("ft:")


def base_name(model: str) -> str:
    """A model's name without what makes it one snapshot or one fine-tuned copy."""
    name = model.split(":")[1] if is_tuned(model) else model
    return _SNAPSHOT.sub("", name)


def price_of(model: str, override: PricesConfig | None = None, *, tuned: bool = False) -> Price | None:
    """The price of a model, or None if it is unknown.

    Args:
        model: As requests name it.
        override: Prices of the config, which go before the table.
        tuned: Whether what is meant is a model that will be fine-tuned from `model`.
    """
    tuned = tuned or is_tuned(model)
    if override is not None:
        if not tuned:
            return Price(override.input, override.output, None, override.training)
        input_price = override.input if override.tuned_input is None else override.tuned_input
        output_price = override.output if override.tuned_output is None else override.tuned_output
        return Price(input_price, output_price, None, override.training)
    found = TABLE.get(base_name(model))
    if found is None:
        return None
    return found.tuned if tuned else found.base


def dollars(price: Price, *, input_tokens: float, output_tokens: float) -> float:
    """What tokens cost."""
    return (price.input * input_tokens + price.output * output_tokens) / 1e6

"""Runs the feed-forward part of the last layer for those columns alone whose logits are asked for.

What the last layer makes of the other columns is read by nobody, as their keys and values are stored before it. In a
model of six layers this is a tenth of the matrix products, in one of thirty 2%.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""Most by which a log-probability of the probe may differ, relative to the largest one; float32."""


class LastLayer:
    """The last layer of `model`, if to leave columns out of its feed-forward part is shown to change no logit."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._layer = _find_last_layer(model)
        if self._layer is not None and not self._agrees(model):
            self._layer = None

    @contextmanager
    def only(self, n_columns: int) -> Iterator[None]:
        """Within, the last layer runs its feed-forward part for the last `n_columns` columns; others are undefined."""
        if self._layer is None:
            yield
            return
        handles = [register(n_columns) for register in _hooks(self._layer)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _agrees(self, model: "PreTrainedModel") -> bool:
        """Whether the last logits of a probe of a few tokens are what they are without leaving columns out."""
        was_training = model.training
        model.eval()
        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = (torch.arange(7, device=model.device) * 7919 % vocabulary)[None]
        try:
            whole = model(input_ids=ids, use_cache=False).logits[:, -2:].float()
            with self.only(2):
                left = model(input_ids=ids, use_cache=False).logits[:, -2:].float()
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            model.train(was_training)
        tolerance = TOLERANCE if model.dtype == torch.float32 else 100 * TOLERANCE
        return left.shape == whole.shape and bool((left - whole).abs().max() <= tolerance * whole.abs().max())


def _find_last_layer(model: "PreTrainedModel") -> nn.Module | None:
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    if len(stacks) != 1:
        return None
    last: nn.Module = stacks[0][-1]
    return last if _hooks(last) else None


def _hooks(layer: nn.Module) -> "list[Callable[[int], RemovableHandle]]":
    """What to put on a layer, given the number of columns; nothing for a layer of unknown make."""
    mlp, attention = getattr(layer, "mlp", None), getattr(layer, "attention", None)
    if isinstance(mlp, nn.Module):  # Llama and its like: x + mlp(norm(x))
        width = 0

        def cut(_: nn.Module, args: tuple[Any, ...], *, n: int) -> tuple[Any, ...]:
            nonlocal width
            width = args[0].shape[1]
            return args[0][:, -n:], *args[1:]

        def fill(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
            return pad(out, (0, 0, width - out.shape[1], 0))

        return [
            lambda n: mlp.register_forward_pre_hook(partial(cut, n=n)),
            lambda _: mlp.register_forward_hook(fill),
        ]
    if isinstance(attention, nn.Module) and hasattr(layer, "intermediate"):  # BERT: what follows takes its output alone
        return [lambda n: attention.register_forward_hook(lambda _, __, out: (out[0][:, -n:], *out[1:]))]
    return []

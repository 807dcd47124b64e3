"""Speed and memory of 1B and 8B Llama shapes on a GPU, for benchmarks/speed.py."""

import gc
from pathlib import Path

import torch
from speed_generation import sampled_tokens_per_second, scoring_share
from speed_models import SHAPES, write_model
from speed_timing import Figure, Setting
from speed_training import training_utilisation

from semievol.config import ModelConfig

TRAINING_BATCH = {"1B": 16, "8B": 8}


def measure_gpu(setting: Setting) -> list[Figure]:
    """Utilisation of scoring and of LoRA training, sampled tokens a second, and peak memory, in bf16."""
    return [figure for name in ("1B", "8B") for figure in _measure_shape(setting, name)]


def _measure_shape(setting: Setting, name: str) -> list[Figure]:
    names = (
        (f"{name}: share of the bf16 matrix ceiling, scoring", "", 0.5),
        (f"{name}: share of the bf16 matrix ceiling, LoRA training", "", 0.4),
        (f"{name}: sampled tokens/s", "tokens/s", None),
        (f"{name}: peak memory", "GB", None),
    )
    if torch.device(setting.device).type != "cuda":
        return [Figure(title, None, unit, bound, False, "no GPU") for title, unit, bound in names]
    shape = SHAPES[name]
    path: Path = write_model(shape, setting.folder / name, dtype=torch.bfloat16, device=setting.device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = ModelConfig(path=str(path), dtype="bfloat16", device=setting.device)
    scoring, scored = scoring_share(setting, shape, model, n=setting.rows(1024))
    rate = sampled_tokens_per_second(setting, model, n=setting.rows(128))
    sampling_peak = torch.cuda.max_memory_allocated()
    gc.collect()
    torch.cuda.empty_cache()
    training, trained = training_utilisation(
        setting, shape, model, steps=setting.rows(20, least=3), batch=TRAINING_BATCH[name]
    )
    gc.collect()
    torch.cuda.empty_cache()
    peak = max(sampling_peak, trained["peak_memory_bytes"])
    peaks = f"generation {sampling_peak / 1e9:.1f}, LoRA training {trained['peak_memory_bytes'] / 1e9:.1f}"
    values = (
        (scoring, f"{scored['achieved_gflops']:,.0f} of {scored['ceiling_gflops']:,.0f} GFLOP/s", scored),
        (training, f"{trained['tokens_per_second']:,} tokens/s, {trained['batch']} rows a batch", trained),
        (rate, "four samples of 64 tokens a prompt", {}),
        (peak / 1e9, peaks, {}),
    )
    return [
        Figure(title, value, unit, bound, False, note, details)
        for (title, unit, bound), (value, note, details) in zip(names, values, strict=True)
    ]

"""What a training in several processes adds to the loop of one: settings, a check, and a common end."""

from typing import Any

import torch

from semievol.config import TrlTrainerConfig
from semievol.errors import ConfigError


def distributed_arguments(config: TrlTrainerConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers; none for one process."""
    if config.num_processes == 1:
        return {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    if config.is_sharded:
        shares = {
            "version": 2,
            "reshard_after_forward": True,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": config.activation_checkpointing,
        }
        return {"ddp_backend": backend, "fsdp": True, "fsdp_config": shares}
    return {
        "ddp_backend": backend,
        # A forward pass may come twice a batch here and once there, and buffers are the same everywhere.
        "ddp_broadcast_buffers": False,
        "ddp_find_unused_parameters": not config.activation_checkpointing,
    }


def check_strategy(accelerator: Any, config: TrlTrainerConfig) -> None:
    """Raise ConfigError unless the processes work together as asked: accelerate takes another way without a word."""
    asked = "FSDP" if config.is_sharded else "MULTI" if config.num_processes > 1 else "NO"
    got = accelerator.distributed_type.value.upper()
    if accelerator.num_processes == config.num_processes and got.partition("_")[0] == asked:
        return
    strategy = "one process" if config.launch is None else config.launch.strategy
    raise ConfigError(
        f"trainer.launch: asked for {config.num_processes} processes ({strategy}), but accelerate set up "
        f"{accelerator.num_processes} ({got}); unset the ACCELERATE_* and torchrun variables of the environment, and "
        "look whether each process has a device of its own"
    )


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process."""
    if not torch.distributed.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags.item())

"""Connects to a Ray cluster, or starts one on this machine that holds no more than the config allows."""

import logging
import math
import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from semievol.config import ModelConfig, RayGeneratorConfig
from semievol.errors import ConfigError, GenerationError

OBJECT_STORE_BYTES = 80 * 2**20
"""Shared memory of a Ray of our own: rows travel as files, so there is next to nothing in it."""
PROBE_SECONDS = 10.0
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def connect(ray: Any, config: RayGeneratorConfig, model: ModelConfig) -> Callable[[], None]:
    """Make `ray` usable, and return what undoes that. A Ray that this process is connected to already is used as it is.

    Raises:
        ConfigError: If the cluster cannot be reached, if this machine has fewer GPUs than a Ray of its own would need,
            or if the cluster has GPUs that the config would leave idle without saying so.
        GenerationError: If a Ray of this machine's own does not start.
    """
    if ray.is_initialized():
        return _nothing
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # telemetry is for the owner of a cluster to switch on
    if config.address is None:
        _start_local(ray, config)
    else:
        _join(ray, config.address)
    try:
        _check_gpus(ray.cluster_resources().get("GPU", 0), config, model)
    except ConfigError:
        ray.shutdown()
        raise
    return ray.shutdown  # type: ignore[no-any-return]


def _start_local(ray: Any, config: RayGeneratorConfig) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=math.ceil(config.replicas * config.cpus_per_replica),
            num_gpus=None if config.gpus_per_replica else 0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **QUIET,
        )
    except Exception as error:  # Ray raises bare ones here
        raise GenerationError(
            f"Ray did not start on this machine ({_first_line(error)}): it gives up after 30 s; wait until the "
            "machine is less busy and run again, or see its logs in /tmp/ray/session_latest/logs"
        ) from error


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        _probe(address)
    try:
        ray.init(address=address, **QUIET)
    except ImportError as error:
        raise ConfigError(f"generator.address: {address} needs the client of Ray: pip install 'ray[client]'") from error
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        remedy = "is it a Ray head, and has this machine its token (RAY_AUTH_MODE=token, ~/.ray/auth_token)?"
        if address == "auto":
            remedy = "start one with `ray start --head`, or name its HOST:6379"
        raise ConfigError(f"generator.address: no Ray cluster at {address} ({_first_line(error)}); {remedy}") from error


def _probe(address: str) -> None:
    """Ray tries for minutes before it gives an address up."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PROBE_SECONDS):
            pass
    except OSError as error:
        raise ConfigError(
            f"generator.address: {address} cannot be reached ({error.strerror or error}): is the head node up, and the "
            "port open (6379 for `ray start`, 10001 for ray://)?"
        ) from error


def _check_gpus(n_gpus: float, config: RayGeneratorConfig, model: ModelConfig) -> None:
    needed = config.replicas * config.gpus_per_replica
    if config.address is None and needed > n_gpus:
        raise ConfigError(
            f"generator: {config.replicas} replicas with gpus_per_replica {config.gpus_per_replica:g} need {needed:g} "
            f"GPUs, and Ray sees {n_gpus:g} on this machine"
        )
    if n_gpus and not needed and model.device == "auto" and config.inner.type != "fake":
        raise ConfigError(
            f"generator.gpus_per_replica is 0, so replicas would run on CPUs, but the cluster has {n_gpus:g} GPUs: "
            "set 1, or model.device: cpu"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _nothing() -> None:
    """Leave Ray as it was found."""

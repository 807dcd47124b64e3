"""Asks before a run that may cost more than the config allows without a word."""

from semievol.config import RunConfig
from semievol.errors import ConfigError


def refuse_unconfirmed_cost(config: RunConfig) -> None:
    """Price the run, if it sends requests to a server with a limit on what goes unasked.

    Raises:
        ConfigError: If it may cost more than `generator.confirm_above_cost`.
    """
    if _limit(config) is None:
        return
    from semievol.checking import check_run

    money = check_run(config).money
    if money is not None:
        refuse_cost(config, money.low, money.high, what="this run")


def refuse_cost(config: RunConfig, low: float, high: float, *, what: str) -> None:
    """Raises ConfigError if what costs up to `high` dollars goes over the limit on what goes unasked."""
    limit = _limit(config)
    if limit is not None and high > limit:
        raise ConfigError(
            f"{what} may cost ${low:,.2f} to ${high:,.2f} (semievol check shows how), more than "
            f"generator.confirm_above_cost ({limit:g}): run it with --yes, or raise that limit"
        )


def _limit(config: RunConfig) -> float | None:
    return getattr(config.generator, "confirm_above_cost", None)

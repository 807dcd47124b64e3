"""Asks before a run that may cost more than the config allows without a word."""

from semievol.config import RunConfig
from semievol.errors import ConfigError


def refuse_unconfirmed_cost(config: RunConfig) -> None:
    """Price the run, if it sends requests to a server with a limit on what goes unasked.

    Raises:
        ConfigError: If it may cost more than `generator.confirm_above_cost`.
    """
    limit = getattr(config.generator, "confirm_above_cost", None)
    if limit is None:
        return
    from semievol.checking import check_run

    money = check_run(config).money
    if money is not None and money.high > limit:
        raise ConfigError(
            f"this run may cost ${money.low:,.2f} to ${money.high:,.2f} (semievol check shows how), more than "
            f"generator.confirm_above_cost ({limit:g}): run it with --yes, or raise that limit"
        )

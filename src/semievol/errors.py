"""Every error this package raises on purpose, one tree, so that a caller can catch all or one kind.

Each message names the stage or file, the row or key, the value seen and what to change.
"""


class SemiEvolError(Exception):
    """Root of all deliberate errors. `exit_code` is what the command line returns for it."""

    exit_code: int = 1


class ConfigError(SemiEvolError, ValueError):
    """A setting, a missing optional package or an unusable combination: the user's to change."""

    exit_code = 2


class DataError(SemiEvolError, ValueError):
    """Input rows or files that cannot be used as they are: the user's to change."""

    exit_code = 2


class GenerationError(SemiEvolError, RuntimeError):
    """A generator could not answer: out of memory at batch size 1, too many failed requests."""


class TrainingError(SemiEvolError, RuntimeError):
    """Training could not start or end well: NaN loss, no trainable token, failed self-check."""


class ArtifactError(SemiEvolError, RuntimeError):
    """A run folder is locked, incomplete or written by something else."""


class DiskFullError(ArtifactError):
    """There is no space left where a run is written. Whatever runs next would fail, too; with space it goes on."""

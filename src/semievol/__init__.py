"""SemiEvol: semi-supervised fine-tuning of language models (arXiv:2410.14745).

from semievol import load_config, run
run_dir = run(load_config("config.yaml"))
print(run_dir.read_json("results")["metrics"])
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["RunConfig", "RunDir", "SemiEvolError", "__version__", "compare", "load_config", "parse_config", "run"]

_HOMES = {
    "RunConfig": "semievol.config",
    "load_config": "semievol.config",
    "parse_config": "semievol.config",
    "RunDir": "semievol.artifacts",
    "SemiEvolError": "semievol.errors",
    "compare": "semievol.comparing",
    "run": "semievol.pipeline",
}

if TYPE_CHECKING:
    from semievol.artifacts import RunDir
    from semievol.comparing import compare
    from semievol.config import RunConfig, load_config, parse_config
    from semievol.errors import SemiEvolError
    from semievol.pipeline import run


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'semievol' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

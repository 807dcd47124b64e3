"""Deletes the models of a comparison that no run needs any more, for those who want its numbers alone."""

from collections.abc import Collection
from pathlib import Path

from semievol.artifacts import DROPPED, RunDir, remove_folder


def drop_models(folders: Collection[Path], *, needed: Collection[tuple[str, str]]) -> int:
    """Delete the trained models in run folders whose runs are done; returns how many.

    The steps' entries say so from then on, so that a run that needs such a model trains it again in the place of
    taking it over. Predictions and all else that was written stay.

    Args:
        folders: Run folders.
        needed: Name and fingerprint of the steps that other runs will still ask for.
    """
    n_dropped = 0
    for folder in folders:
        run_dir = RunDir(folder)
        for name, entry in run_dir.manifest().items():
            model = folder / name / "adapter"
            if (name, entry["fingerprint"]) in needed or not model.is_dir():
                continue
            run_dir.record_stage(name, entry | {DROPPED: True})
            remove_folder(model)
            n_dropped += 1
    return n_dropped

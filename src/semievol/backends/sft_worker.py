"""One process of a training in several: `torchrun --module semievol.backends.sft_worker launch.json`.

It reads the job that `trl` wrote, trains its share, and the first process writes `final/` beside the job.
"""

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semievol.artifacts import clear_disk_errors
from semievol.backends import hf
from semievol.backends.launching import STEP, STOP, write_failure
from semievol.backends.sft_folders import Request
from semievol.backends.sft_rows import EncodedRow
from semievol.backends.trl import TrlTrainer, quiet
from semievol.config import ModelConfig, TrlTrainerConfig
from semievol.types import ModelRef

STDIN = 0
LOOK_SECONDS = 1.0
"""Between two looks at whether torchrun still lives."""


def write_job(path: Path, rows: list[EncodedRow], *, model: ModelConfig, request: Request) -> None:
    """Write what the workers need, whole or not at all."""
    assert request.opened is not None
    partial_dir, checkpoint = request.opened
    job = {
        "model_config": model.model_dump(mode="json"),
        "model": asdict(request.model),
        "config": request.config.model_dump(mode="json"),
        "seed": request.seed,
        "output_dir": str(request.output_dir.resolve()),
        "fingerprint": request.fingerprint,
        "partial_dir": str(partial_dir.resolve()),
        "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
        "rows": [[row.id, list(row.input_ids), row.n_prompt, row.weight] for row in rows],
    }
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(job), encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Train the share of this process, and end it at once: threads that wait for other processes may never end."""
    rank, path = int(os.environ["RANK"]), Path(sys.argv[1])
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    code = 0
    try:
        _train(json.loads(path.read_text(encoding="utf-8")), rank)
    except KeyboardInterrupt as error:
        code = 0 if _is_saved(error) else 130
    except BaseException as error:
        with suppress(OSError):  # of a full disk
            write_failure(path.parent, rank, error, seconds=time.time())
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _train(job: dict[str, Any], rank: int) -> None:
    model = ModelConfig.model_validate(job["model_config"])
    if model.device != "cpu":
        model = model.model_copy(update={"device": f"cuda:{os.environ['LOCAL_RANK']}"})
    checkpoint = None if job["checkpoint"] is None else Path(job["checkpoint"])
    request = Request(
        model=ModelRef(**job["model"]),
        config=TrlTrainerConfig.model_validate(job["config"]),
        seed=job["seed"],
        output_dir=Path(job["output_dir"]),
        fingerprint=job["fingerprint"],
        progress=_say_step if rank == 0 else None,
        opened=(Path(job["partial_dir"]), checkpoint),
    )
    rows = [EncodedRow(id, tuple(ids), n_prompt, weight) for id, ids, n_prompt, weight in job["rows"]]
    with quiet(), clear_disk_errors(request.output_dir):
        TrlTrainer(model).train_rows(rows, hf.open_tokenizer(model), request=request)


def _is_saved(error: KeyboardInterrupt) -> bool:
    """Whether the training stopped after a step that is saved: then all processes did."""
    from semievol.backends.sft_trainer import StoppedAfterStep

    return isinstance(error, StoppedAfterStep)


def _say_step(n: int) -> None:
    print(f"{STEP}{n}", flush=True)


def _watch_parent(torchrun: int) -> None:
    """End this process with the run that started it or with torchrun; pass on its wish to stop as a Ctrl-C."""
    os.set_blocking(STDIN, False)
    while os.getppid() == torchrun:
        if not select.select([STDIN], [], [], LOOK_SECONDS)[0]:
            continue
        try:
            said = os.read(STDIN, 4096)
        except BlockingIOError:  # another process of this machine was first
            continue
        if not said:
            break
        if STOP.encode() in said:
            os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


if __name__ == "__main__":
    main()

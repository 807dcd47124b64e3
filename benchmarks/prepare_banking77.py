"""Cut banking77 to ten intents as lettered options: what examples/banking77.yaml runs on.

    python benchmarks/prepare_banking77.py FOLDER_WITH_train.csv_AND_test.csv [--labeled 100] [--unlabeled 1000]

The ten intents with most training rows; labelled and unlabelled rows are drawn from the training file by seed, and
all test rows of those intents are taken. Writes runs/banking77-input/{labeled,unlabeled,test}.csv.
"""

import argparse
import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def main() -> None:
    """Parse the command line and prepare the ten intents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labeled", type=int, default=100)
    parser.add_argument("--unlabeled", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    output_dir = Path("runs/banking77-input")
    prepare(arguments.folder, output_dir, labeled=arguments.labeled, unlabeled=arguments.unlabeled, seed=arguments.seed)
    for path in sorted(output_dir.glob("*.csv")):
        print(f"{path}: {len(read(path))} rows")


def prepare(folder: Path, output_dir: Path, *, labeled: int, unlabeled: int, seed: int = 0) -> Path:
    """Write the splits of the ten intents with most training rows, as lettered options; returns `output_dir`."""
    train, test = (read(folder / f"{name}.csv") for name in ("train", "test"))
    intents = [intent for intent, _ in Counter(row["category"] for row in train).most_common(10)]
    train = [row for row in train if row["category"] in intents]
    random.Random(seed).shuffle(train)
    options = json.dumps([name_of(intent) for intent in intents])
    splits = {
        "labeled": train[:labeled],
        "unlabeled": train[labeled : labeled + unlabeled],
        "test": [row for row in test if row["category"] in intents],
    }
    for name, rows in splits.items():
        records = [(row["text"], options, name_of(row["category"])) for row in rows]
        write(output_dir / f"{name}.csv", ("question", "options", "answer"), records)
    return output_dir


def prepare_labels(folder: Path, output_dir: Path, *, labeled: int, seed: int = 0) -> Path:
    """Write the splits of all 77 intents as `label` rows: `labeled` training rows, the rest of them, all test rows."""
    train, test = (read(folder / f"{name}.csv") for name in ("train", "test"))
    random.Random(seed).shuffle(train)
    for name, rows in {"labeled": train[:labeled], "unlabeled": train[labeled:], "test": test}.items():
        records = [(row["text"], name_of(row["category"])) for row in rows]
        write(output_dir / f"{name}.csv", ("question", "answer"), records)
    return output_dir


def name_of(intent: str) -> str:
    """The intent as people write it."""
    return intent.replace("_", " ")


def write(path: Path, header: Sequence[str], records: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(records)


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()

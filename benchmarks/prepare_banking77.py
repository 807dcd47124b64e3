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
from pathlib import Path


def main() -> None:
    """Read, choose, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labeled", type=int, default=100)
    parser.add_argument("--unlabeled", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, test = (read(arguments.folder / f"{name}.csv") for name in ("train", "test"))
    intents = [intent for intent, _ in Counter(row["category"] for row in train).most_common(10)]
    train = [row for row in train if row["category"] in intents]
    random.Random(arguments.seed).shuffle(train)
    cut = arguments.labeled + arguments.unlabeled
    splits = {
        "labeled": train[: arguments.labeled],
        "unlabeled": train[arguments.labeled : cut],
        "test": [row for row in test if row["category"] in intents],
    }
    folder = Path("runs/banking77-input")
    folder.mkdir(parents=True, exist_ok=True)
    options = json.dumps([intent.replace("_", " ") for intent in intents])
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("question", "options", "answer"))
            writer.writerows((row["text"], options, row["category"].replace("_", " ")) for row in rows)
        print(f"{folder / name}.csv: {len(rows)} rows")


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    main()

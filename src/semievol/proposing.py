"""Proposes a commented config for data files: the answer type, the columns and the recipe's values.

Nothing is decided behind the user's back: each comment says what was found, and each guess can be changed in the file.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from semievol.config import parse_config
from semievol.errors import DataError
from semievol.inspecting import SPLITS, Finding, Table, assign_roles, find_task, look_at, read_targets, spell_labels
from semievol.types import SplitName


def propose_config(files: Sequence[Path], *, model: str | None = None) -> str:
    """A commented YAML config for one table to be split, or for labelled, unlabelled and test tables in any order.

    Args:
        files: One to three tables. Of several, names tell which is which (`unlabeled.csv`, `test.csv`); of those whose
            name does not tell, one without targets is the unlabelled one.
        model: Base model, a hub id or folder. None: the embedded Pocket LM.

    Raises:
        DataError: If the files cannot be read, or question, targets or the role of a file cannot be made out.
    """
    if not 1 <= len(files) <= 3:
        raise DataError(
            f"{len(files)} files given; give one to be split, or labelled, unlabelled and (if any) test files"
        )
    tables = [look_at(str(path)) for path in files]
    roles = assign_roles(tables)
    main = roles["labeled"] if roles else tables[0]
    finding = find_task(main)
    text = write_config(main, roles, finding, model or "pocket")
    parse_config(yaml.safe_load(text), source="proposed config")
    return text


def write_config(main: Table, roles: dict[SplitName, Table], finding: Finding, model: str) -> str:
    """The text of the config: `main` is the labelled or the only table, `roles` those of several."""
    sections = [
        _head(),
        _task_section(finding, main, roles),
        _data_section(main, roles, finding),
        _model_section(model),
        _training_section(finding, model),
        _method_section(finding),
    ]
    return "\n".join(sections)


def _head() -> str:
    return """\
# Proposed by `semievol init` from a look at the data. Check every guess, then:
#
#     semievol check config.yaml              # finds what would fail, shows prompts and the cost of each stage
#     semievol check config.yaml --measure    # times a few real steps
#     semievol run config.yaml                # runs; run it again to go on after an interruption
#
# Put the name of this file in the place of config.yaml. Any key can be set on the command line too:
#     semievol run config.yaml seed=1 output_dir=runs/seed-1

recipe: paper        # paper: the method as written (arXiv:2410.14745); released: what the authors' code does
seed: 0              # of splits, sampling and training; compare several before you believe a small gain
rounds: 1            # retrieve..evolve this many times; each round works on the rows that the one before dropped
"""


def _task_section(finding: Finding, main: Table, roles: dict[SplitName, Table]) -> str:
    lines = [
        f"output_dir: {_scalar(f'runs/{_stem(main, roles)}')}",
        "",
        "task:",
        f"  type: {finding.type}         # found: {_comment(finding.why)}",
        "                       # choice: options on every row; label: one fixed set; number; span: a few words; text",
    ]
    if finding.type == "label":
        lines += _label_lines(finding, roles)
    lines.append("  instruction: null    # first line of every prompt; null: the default of the answer type")
    if finding.type == "number":
        lines.append("  number_tolerance: 1.0e-6   # largest relative difference at which two numbers count as equal")
    if finding.type in ("span", "text"):
        default = {"span": "exact_match", "text": "rouge_l"}[finding.type]
        lines.append(f"  metric: {default}   # or exact_match, token_f1, rouge_l")
    return "\n".join(lines) + "\n"


def _stem(main: Table, roles: dict[SplitName, Table]) -> str:
    path = Path(main.source)
    name = path.resolve().parent.name if roles else path.stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "semievol"


def _label_lines(finding: Finding, roles: dict[SplitName, Table]) -> list[str]:
    """The labels are listed where the labelled rows of a run might not have them all."""
    shown = _comment(", ".join(finding.labels[:8]) + (", ..." if len(finding.labels) > 8 else ""), 90)
    extra: list[str] = []
    if "test" in roles:
        known = {label.casefold() for label in finding.labels}
        test = spell_labels(Counter(" ".join(t.split()) for t in read_targets(roles["test"], finding.columns)))
        extra = [label for label in test if label.casefold() not in known]
    if roles and not extra:
        return [f"  labels: null         # null: the targets of the labelled rows ({shown})"]
    why = "the labelled part of a split may miss some" if not roles else f"{len(extra)} of them stand in test rows only"
    listed = sorted([*finding.labels, *extra])
    return [f"  # all targets seen; {why}", "  labels:", *(f"    - {_scalar(label)}" for label in listed)]


def _data_section(main: Table, roles: dict[SplitName, Table], finding: Finding) -> str:
    lines = ["data:"]
    if roles:
        for role in SPLITS:
            table = roles.get(role)
            found = f"{table.n_rows:,} rows" if table else "none given: nothing will be measured until there is one"
            lines.append(f"  {role}: {_scalar(table.source) if table else 'null'}   # {found}")
    else:
        without = len(main.rows) - len(finding.targets)
        looked = "" if main.n_rows == len(main.rows) else f" of the first {len(main.rows):,}"
        note = f"; {without:,} rows{looked} have no target and will be unlabelled" if without else ""
        lines += [
            f"  path: {_scalar(main.source)}   # {main.n_rows:,} rows, to be split{note}",
            "  split:               # shares of the rows (sum 1), or row counts; stratified, groups whole",
            "    labeled: 0.2",
            "    unlabeled: 0.6     # their targets are sealed until the audit at the end",
            "    test: 0.2",
        ]
    lines += ["  columns:             # null: found by its usual name"]
    for name in ("question", "context", "choices", "target", "group", "id", "messages"):
        lines.append(f"    {name}: {_column(name, finding, list(roles.values()))}")
    lines += [
        "  max_bad_fraction: 0.0        # share of unusable rows that is put up with; they land in data/rejected.jsonl",
        "  max_unlabeled: null          # at most this many unlabelled rows, for a first cheap run; null: all",
        "  duplicates: drop             # rows that stand in several splits leave the training side",
        "  near_duplicate_similarity: 0.9   # token Jaccard; 1 finds exact copies only",
    ]
    return "\n".join(lines) + "\n"


def _column(role: str, finding: Finding, tables: Sequence[Table]) -> str:
    """Value and comment of `data.columns.<role>`. A column that not every file has is left to be found by name."""
    name = getattr(finding.columns, role)
    if role == "choices" and name is None and finding.columns.option_columns:
        return f"null   # one option a column: {_comment(', '.join(finding.columns.option_columns))}"
    if name is None:
        return "null"
    if role in finding.guessed:
        return f"{_scalar(name)}   # guessed from its content: please check"
    # An id or group column that is named here has to be one, in every file; one that is found may turn out not to be.
    everywhere = all(name in table.names or role == "target" for table in tables)
    if role in ("id", "group") or not everywhere:
        return f'null   # finds {_comment(name)}; "": do without'
    example = f"; for example {_comment(finding.targets[0])}" if role == "target" else ""
    return f"{_scalar(name)}   # found by name{example}"


def _model_section(model: str) -> str:
    note = (
        "# the embedded 23 M model: for dry runs on a CPU; for real work a hub id or folder (Qwen/Qwen3-4B)"
        if model == "pocket"
        else "# hub id or folder of a causal LM with a chat template"
    )
    return f"""\
model:
  {note}
  path: {_scalar(model)}
  max_length: null     # most tokens of prompt and completion; null: what the model takes, at most 4096
  dtype: auto          # auto: bfloat16 on a GPU that has it, float32 on a CPU
  device: auto         # auto: cuda where there is one

generator:
  type: transformers
  batch_tokens: 16384  # tokens in one forward pass: higher is faster, lower needs less memory
"""


def _training_section(finding: Finding, model: str) -> str:
    # About three characters a token, and room for labels and template.
    tokens = (
        finding.longest_chars + max(map(len, finding.targets)) + 6 * sum(map(len, finding.labels)) // 5
    ) // 3 + 150
    small = model == "pocket"
    max_length = 512 if small else max(1024, -(-tokens // 512) * 512)
    rate, epochs, batch, accumulation = ("3.0e-4", 6, 8, 1) if small else ("1.0e-4", 2, 1, 8)
    method = "full" if small else "lora"
    note = "for 23 M weights; the paper has 1.0e-4 and 2 epochs for billions" if small else "the paper's"
    return f"""\
trainer:
  type: trl
  method: {method}         # lora; qlora: 4-bit base, least GPU memory; full: all weights, 16 bytes each
  r: 16                # rank of the adapter: higher can learn more and needs more memory
  lora_alpha: 32
  learning_rate: {rate}   # {note}
  num_train_epochs: {epochs}
  per_device_train_batch_size: {batch}
  gradient_accumulation_steps: {accumulation}   # times the batch size above = rows an optimiser step
  max_length: {max_length}     # tokens of the longest training row; longer ones stop the run before the first step

embedder:
  type: bm25           # finds the nearest labelled rows by words; sentence_transformers or model: by meaning, slower
"""


def _method_section(finding: Finding) -> str:
    tokens = _max_tokens(finding)
    limit = (
        f"\n  max_tokens: {tokens}      # most tokens of an answer; the longest target has about half of it"
        if tokens
        else ""
    )
    return f"""\
retrieve:
  k: 3                 # nearest labelled rows that may be shown with a row

# propagate.configurations is the recipe's (paper: warm-0, warm-1, warm-3, base-3: a model and its demonstrations)
propagate:
  temperature: 1.0     # higher: more varied answers, so agreement says more{limit}

justify:
  when: disagree       # the warm model settles rows whose answers differ; always; never: majority vote{limit}

select:
  keep_fraction: 0.5   # theta: share of the pseudo-labels that is kept, surest first (paper 0.5)

evolve:
  init: base           # fine-tune afresh (paper), or go on from the warm-up adapter (released: warm)

control:
  enabled: true        # SFT on the labelled rows with as many steps as evolve: without it a gain proves little

evaluate:
  n_bootstrap: 2000    # draws behind each interval{limit}
"""


def _max_tokens(finding: Finding) -> int | None:
    """Twice the longest target in tokens, for free text; other types have a default that fits."""
    if finding.type != "text":
        return None
    longest = max(len(target) for target in finding.targets)
    return min(1024, max(64, -(-2 * longest // 3 // 32) * 32))


def _scalar(value: str) -> str:
    """One YAML scalar, quoted where it has to be."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).strip().removesuffix("\n...")


def _comment(text: str, width: int = 60) -> str:
    """Text on one short line, fit for a comment."""
    line = " ".join("".join(ch if ch.isprintable() else " " for ch in text).split())
    return line if len(line) <= width else line[: width - 3] + "..."

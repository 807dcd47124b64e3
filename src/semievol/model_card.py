"""The model card of an exported model: what it is, what it was trained on, how it did, how to prompt and load it.

Only what was configured or measured stands in it; no row of the data does, as a card is public.
"""

from pathlib import Path
from typing import Any

import yaml

from semievol.answers import closed_set
from semievol.backends.base import open_tokens
from semievol.prompts import PromptBuilder
from semievol.runs import FinishedRun, public_base
from semievol.summary import MODEL_TITLES, percent, points
from semievol.types import Example, ModelRef

PAPER = "arXiv:2410.14745"


def write_card(run: FinishedRun, model: ModelRef, results: dict[str, Any], *, which: str, kind: str) -> str:
    """The text of README.md.

    Args:
        run: A finished run.
        model: The model that was written.
        results: Content of its results.json.
        which: The model's name in tables.
        kind: adapter, merged or full.
    """
    sections = [
        _front_matter(run, results, which=which, kind=kind),
        _intro(run, results, which=which, kind=kind),
        _results(results),
        _data(results),
        _training(run, results, which=which),
        _prompt(run),
        _loading(run, kind=kind),
        _limits(run, which=which),
        _versions(run, results),
    ]
    return "\n".join(section.rstrip() + "\n" for section in sections)


def _base_front_matter(run: FinishedRun) -> dict[str, Any]:
    """Front matter of the base's own card, where it lies on this machine; else empty."""
    from semievol.backends.hf import resolve_model_path

    path = resolve_model_path(run.config.model.path)
    card = Path(path) / "README.md"
    if not Path(path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(path, "README.md", revision=run.config.model.revision)
        card = Path(found) if isinstance(found, str) else card
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        loaded = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _front_matter(run: FinishedRun, results: dict[str, Any], *, which: str, kind: str) -> str:
    base = _base_front_matter(run)
    path = run.config.model.path
    is_folder = path == "pocket" or Path(path).is_dir()
    values: dict[str, Any] = {
        "base_model": base.get("base_model") if is_folder else path,
        "base_model_relation": None if is_folder else "adapter" if kind == "adapter" else "finetune",
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "license": base.get("license"),
        "language": base.get("language"),
        "tags": ["semievol", "fine-tuned", *(["lora"] if kind != "full" else [])]
        + (["semi-supervised", "pseudo-labels"] if which == "semievol" else []),
    }
    shown = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}---\n"


def _intro(run: FinishedRun, results: dict[str, Any], *, which: str, kind: str) -> str:
    what = {"adapter": "LoRA adapter for", "merged": "merged fine-tune of", "full": "full fine-tune of"}[kind]
    how = {
        "semievol": f"by SemiEvol ({PAPER}): semi-supervised fine-tuning on labelled rows and on pseudo-labels that "
        "the model gave to unlabelled rows",
        "sft": "by supervised fine-tuning on labelled rows alone",
        "sft_matched": "by supervised fine-tuning on labelled rows alone, in as many optimiser steps as SemiEvol",
    }[which]
    base = public_base(run.config.model.path)
    return f"# {MODEL_TITLES[which]} on {base}\n\nA {what} `{base}`, made {how}.\n"


def _results(results: dict[str, Any]) -> str:
    metrics = results["metrics"]
    if not metrics:
        return "## Measured results\n\nNone: the run had no test rows.\n"
    first = metrics[0]
    lines = [
        "## Measured results",
        "",
        f"On {first['n']:,} held-out test rows of the same source; 95% intervals over rows.",
        "",
        f"| model | {first['metric']} % | 95% interval | unparsed |",
        "| --- | ---: | ---: | ---: |",
    ]
    for m in metrics:
        interval = f"{percent(m['ci_low'])} to {percent(m['ci_high'])}"
        lines.append(f"| {MODEL_TITLES[m['model']]} | {percent(m['value'])} | {interval} | {m['n_unparsed']} |")
    for c in results["comparisons"]:
        interval = f"{points(c['ci_low'])} to {points(c['ci_high'])}"
        pair = f"{MODEL_TITLES[c['a']]} - {MODEL_TITLES[c['b']]}"
        lines += ["", f"{pair}: {points(c['difference'])} points (paired, 95% {interval}, p = {c['p_value']:.2g})."]
    return "\n".join(lines) + "\n"


def _data(results: dict[str, Any]) -> str:
    rows = results["rows"]
    lines = ["## Data", ""]
    for split, key in (("labelled", "n_labeled"), ("unlabelled", "n_unlabeled"), ("test", "n_test")):
        lines.append(f"- {rows[key]:,} {split} rows")
    for entry in results["pseudo_labels"]:
        precision = entry["precision"].get("kept")
        right = (
            f"; of {precision['n']:,} with a known answer {percent(precision['value'])}% are right "
            f"(95% {percent(precision['ci_low'])} to {percent(precision['ci_high'])})"
            if precision
            else "; their precision is unknown"
        )
        line = f"round {entry['round']}: {entry['n_kept']:,} of {entry['n_labels']:,} pseudo-labels kept{right}"
        lines.append(f"- {line}")
    return "\n".join(lines) + "\n"


def _training(run: FinishedRun, results: dict[str, Any], *, which: str) -> str:
    config = run.config
    trainer = {k: v for k, v in config.trainer.model_dump(mode="json").items() if v is not None and k != "report_to"}
    stage = config.warmup if which == "sft" else config.evolve
    trainer |= {k: v for k, v in stage.model_dump().items() if k in trainer and v is not None}
    lines = [
        "## Training",
        "",
        f"Recipe `{config.recipe}`, seed {config.seed}, {config.rounds} round(s), task type `{config.task.type}`.",
    ]
    if results["recipe_differences"]:
        lines += ["", "Differs from the recipe:", ""]
        lines += [f"- `{d['key']}`: {d['value']} (recipe: {d['recipe_value']})" for d in results["recipe_differences"]]
    lines += ["", "| setting | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in trainer.items()]
    lines += ["", "| training | rows | optimiser steps |", "| --- | ---: | ---: |"]
    lines += [f"| {t['stage']} | {t['n_rows']:,} | {t['optimizer_steps']:,} |" for t in results["training"]]
    return "\n".join(lines) + "\n"


def _prompt(run: FinishedRun) -> str:
    """The prompt with placeholders in the place of a row."""
    config, facts = run.config, run.facts
    choices = facts.shared_choices or tuple(f"{{option {i}}}" for i in range(1, 5))
    context = any(e.context for e in run.run_dir.read_records("data/labeled", Example))
    example = Example(
        "placeholder",
        "{question}",
        "{context}" if context else None,
        choices if config.task.type == "choice" else (),
    )
    builder = PromptBuilder(config.task, facts)
    text = open_tokens(config.generator, config.model).render(builder.answer(example))
    answers = closed_set(example, config.task, facts)
    completion = builder.completion(answers[0] if answers else "{answer}", example)
    note = (
        "Each prompt has to look like this one; answers were scored over the closed set in evaluation."
        if answers
        else "Each prompt has to look like this one; decode greedily."
    )
    return (
        "## Prompt\n\n"
        f"{note} The chat template in this folder makes it from one user turn"
        f"{' after the system turn' if config.task.system else ''}.\n\n"
        f"````text\n{text}\n````\n\nThe model answers, for example:\n\n````text\n{completion}\n````\n"
    )


def _loading(run: FinishedRun, *, kind: str) -> str:
    base, path = public_base(run.config.model.path), run.config.model.path
    lines = ["## How to load", "", "```python"]
    if kind == "adapter" and path == "pocket":
        lines += [
            "from peft import PeftModel",
            "from semievol.demo.pocket import pocket_lm_dir",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            "base = AutoModelForCausalLM.from_pretrained(pocket_lm_dir())",
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]
    elif kind == "adapter":
        lines += [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            f'base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")'
            + ("  # a folder: give its path" if Path(path).is_dir() else ""),
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]
    else:
        lines += [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")',
        ]
    lines += [
        'prompt = tokenizer.apply_chat_template([{"role": "user", "content": "..."}], add_generation_prompt=True,',
        '                                       return_tensors="pt", return_dict=True)',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=32)[0]))",
        "```",
        "",
    ]
    if path == "pocket":
        return "\n".join([*lines, "vLLM does not support this architecture."]) + "\n"
    if kind == "adapter":
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {_rank(run)} --lora-modules semievol=THIS_FOLDER"
    else:
        serve = "vllm serve THIS_FOLDER"
    return "\n".join([*lines, "With vLLM, where it supports the architecture:", "", "```sh", serve, "```"]) + "\n"


def _rank(run: FinishedRun) -> int:
    return run.config.trainer.r if run.config.trainer.type == "trl" else 16


def _limits(run: FinishedRun, *, which: str) -> str:
    lines = [
        "## Limitations",
        "",
        "- Results hold for rows like the test rows; they say nothing about other sources or other prompts.",
        "- One run with one seed: the intervals cover the choice of test rows, not the randomness of training.",
    ]
    if which == "semievol":
        lines.append(
            "- Pseudo-labels carry the model's own mistakes and biases into training; confident ones are kept."
        )
    if run.config.trainer.type == "trl" and run.config.trainer.method == "qlora":
        lines.append("- Trained on a 4-bit base; on the unquantised base its answers may differ slightly.")
    return "\n".join(lines) + "\n"


def _versions(run: FinishedRun, results: dict[str, Any]) -> str:
    shown = ", ".join(f"{name} {value}" for name, value in results["environment"].items() if name != "platform")
    return f"## Versions\n\n{shown}; seed {run.config.seed}.\n"

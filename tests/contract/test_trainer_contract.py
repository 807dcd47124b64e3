"""What the TRL trainer promises (backends/base.py), on tiny models of four families, killed processes included."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semievol.backends.base import FIT_REPORT, open_trainer
from semievol.config import FakeTrainerConfig, ModelConfig, TrlTrainerConfig
from semievol.errors import ArtifactError, ConfigError, TrainingError
from semievol.types import Message, ModelRef, SftRow

MODELS = ["llama", "qwen", "bert", "mistral"]
WORDS = ["where", "is", "my", "parcel", "the", "card", "was", "lost", "abroad", "top", "up", "failed", "again"]


def make_rows(n: int) -> list[SftRow]:
    """Rows of different lengths; the answer can be read off the first word."""
    rows = []
    for i in range(n):
        words = [WORDS[(i + j) % len(WORDS)] for j in range(2 + (i * 5) % 11)]
        rows.append(SftRow(f"row-{i}", (Message("user", " ".join(words)),), f"Answer: {'AB'[i % 2]}"))
    return rows


def make_config(**changes) -> TrlTrainerConfig:
    small = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "r": 4, "logging_steps": 1}
    return TrlTrainerConfig(**{**small, "precision": "fp32", "max_steps": 3, "learning_rate": 1e-3, **changes})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads only wait for each other on models this small; and the bytes of a training depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=MODELS)
def any_dir(request) -> str:
    return request.getfixturevalue(f"tiny_{request.param}_dir")


def fit(path, output_dir, *, n=10, rows=None, adapter=None, seed=0, progress=None, **changes):
    trainer = open_trainer(make_config(), ModelConfig(path=path, device="cpu"))
    rows = make_rows(n) if rows is None else rows
    config = make_config(**changes)
    return trainer.fit(ModelRef(path, adapter), rows, output_dir, config=config, seed=seed, progress=progress)


def weights_of(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def reference_loss(path: str, rows: list[SftRow]) -> float:
    """Mean NLL of the completion tokens up to the stop token, one row at a time, in plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    total, n_tokens = 0.0, 0
    for row in rows:
        turns = [{"role": m.role, "content": m.content} for m in row.messages]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = tokenizer(row.completion + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        total -= sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
        n_tokens += len(answer)
    return total / n_tokens


def test_fit_first_loss_is_the_mean_nll_of_completion_tokens(any_dir, tmp_path):
    rows = make_rows(8)
    path = shutil.copytree(any_dir, tmp_path / "model")
    settings = json.loads((path / "config.json").read_text())
    plain = {name: 0.0 if "drop" in name else value for name, value in settings.items()}
    (path / "config.json").write_text(json.dumps(plain))
    report = fit(str(path), tmp_path / "out", rows=rows, max_steps=1, gradient_accumulation_steps=2)
    assert report.losses == ((1, pytest.approx(reference_loss(str(path), rows), abs=1e-4)),)
    assert report.optimizer_steps == 1


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bf16_on_a_cpu_trains_as_float32_does(any_dir, tmp_path, method):
    # Losses of a random model fall from 9 to 5 in these steps.
    runs = {
        precision: fit(any_dir, tmp_path / precision, max_steps=20, method=method, precision=precision).losses
        for precision in ("fp32", "bf16")
    }
    assert [loss for _, loss in runs["bf16"]] == pytest.approx([loss for _, loss in runs["fp32"]], rel=0.1)
    assert runs["bf16"] != runs["fp32"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_bf16_on_a_cpu_with_activations_computed_again_trains_the_same(tiny_llama_dir, tmp_path, method):
    losses = {
        again: fit(
            tiny_llama_dir,
            tmp_path / str(again),
            max_steps=3,
            method=method,
            precision="bf16",
            activation_checkpointing=again,
        ).losses
        for again in (True, False)
    }
    expected = [loss for _, loss in losses[False]]
    assert [loss for _, loss in losses[True]] == pytest.approx(expected, rel=0.01)


def test_bf16_on_a_cpu_leaves_trained_weights_in_float32(tiny_llama_dir, tmp_path):
    fit(tiny_llama_dir, tmp_path / "out", method="full", precision="bf16")
    assert {w.dtype for w in load_file(tmp_path / "out/model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", None])
def test_auto_precision_is_bf16_on_a_cpu_with_instructions_for_it(tiny_llama_dir, tmp_path, monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, name: True}, raising=False)
    fit(tiny_llama_dir, tmp_path / "auto", precision="auto", max_steps=1)
    fit(tiny_llama_dir, tmp_path / "set", precision="fp32" if name is None else "bf16", max_steps=1)
    assert weights_of(tmp_path / "auto") == weights_of(tmp_path / "set")


def test_attention_under_autocast_runs_in_float32():
    shape = (2, 3, 5, 4)
    from semievol.backends.sft_trainer import Float32Attention

    query, key, value = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16), Float32Attention():
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=torch.zeros(5, 5))
        assert torch.nn.functional.linear(value, torch.ones(2, 4)).dtype == torch.bfloat16
    expected = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected)


def test_fit_shows_the_trained_part_with_its_stop_token(tiny_llama_dir, tmp_path):
    report = fit(tiny_llama_dir, tmp_path / "out", max_steps=1)
    assert report.rendered_example.endswith("<|im_start|>assistant\n⟦Answer: A<|im_end|>⟧")


def test_fit_adapter_opens_with_peft_and_changes_logits(any_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = fit(any_dir, tmp_path / "out", learning_rate=1e-2)
    assert report.model == ModelRef(any_dir, str(tmp_path / "out"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(any_dir), report.model.adapter)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert not torch.allclose(adapted, model(ids).logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_fit_leaves_the_output_head_alone(any_dir, tmp_path):
    from safetensors import safe_open

    fit(any_dir, tmp_path / "out", max_steps=1)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as saved:
        names = list(saved.keys())
    assert names
    assert not [name for name in names if "lm_head" in name or "decoder" in name or "embed" in name]


def test_fit_learns(any_dir, tmp_path):
    report = fit(any_dir, tmp_path / "out", n=8, max_steps=30, learning_rate=1e-2, r=16)
    assert report.losses[-1][1] < 0.5 * report.losses[0][1]


def test_fit_goes_on_with_an_adapter(tiny_llama_dir, tmp_path):
    first = fit(tiny_llama_dir, tmp_path / "a", n=8, max_steps=20, learning_rate=1e-2)
    second = fit(tiny_llama_dir, tmp_path / "b", n=8, max_steps=2, adapter=first.model.adapter, r=16)
    assert second.losses[0][1] < 0.7 * first.losses[0][1]
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["r"] == 4
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "b")


def test_fit_full_gives_a_model_that_stands_alone(any_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    report = fit(any_dir, tmp_path / "out", method="full", learning_rate=1e-3, max_steps=10, n=8)
    assert report.model == ModelRef(str(tmp_path / "out"))
    assert report.losses[-1][1] < report.losses[0][1]
    again = fit(report.model.base, tmp_path / "again", method="full", max_steps=1, n=8, gradient_accumulation_steps=2)
    assert again.losses[0][1] < report.losses[0][1]
    assert AutoModelForCausalLM.from_pretrained(report.model.base).config.model_type
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_fit_same_seed_gives_the_same_bytes(tiny_qwen_dir, tmp_path):
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        fit(tiny_qwen_dir, tmp_path / name, seed=seed, lora_dropout=0.1)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")


def test_fit_takes_a_seed_of_64_bits(tiny_llama_dir, tmp_path):
    assert fit(tiny_llama_dir, tmp_path / "out", seed=2**63 + 1, max_steps=1).optimizer_steps == 1


class Killed(Exception):
    """Raised by a progress callback in the place of a crash."""


def stop_after(n_steps: int, action):
    done = 0

    def progress(n: int) -> None:
        nonlocal done
        done += n
        if done - n < n_steps <= done:
            action()

    return progress


def crash() -> None:
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(tiny_llama_dir, tmp_path_factory):
    """(settings, bytes) of a training of 9 steps over three epochs, with dropout, that nothing stopped."""
    settings = {"max_steps": 9, "save_steps": 2, "lora_dropout": 0.1}
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    fit(tiny_llama_dir, folder, **settings)
    return settings, weights_of(folder)


def test_fit_goes_on_after_a_crash_byte_for_byte(tiny_llama_dir, tmp_path, undisturbed):
    settings, expected = undisturbed
    with pytest.raises(Killed):
        fit(tiny_llama_dir, tmp_path / "out", progress=stop_after(5, crash), **settings)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out.partial").glob("checkpoint-*")] == ["checkpoint-4"]
    counts: list[int] = []
    report = fit(tiny_llama_dir, tmp_path / "out", progress=counts.append, **settings)
    assert counts == [4, 1, 1, 1, 1, 1]
    assert weights_of(tmp_path / "out") == expected
    assert [step for step, _ in report.losses] == list(range(1, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_fit_skips_a_checkpoint_that_is_not_whole(tiny_llama_dir, tmp_path, undisturbed):
    settings, expected = undisturbed
    with pytest.raises(Killed):
        fit(tiny_llama_dir, tmp_path / "out", progress=stop_after(5, crash), **settings)
    state = tmp_path / "out.partial" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    fit(tiny_llama_dir, tmp_path / "out", **settings)
    assert weights_of(tmp_path / "out") == expected


def test_fit_does_not_resume_another_training(tiny_llama_dir, tmp_path, undisturbed):
    settings, expected = undisturbed
    with pytest.raises(Killed):
        fit(tiny_llama_dir, tmp_path / "out", progress=stop_after(5, crash), **{**settings, "learning_rate": 0.1})
    counts: list[int] = []
    fit(tiny_llama_dir, tmp_path / "out", progress=counts.append, **settings)
    assert counts == [1] * 9
    assert weights_of(tmp_path / "out") == expected


def test_fit_saves_the_step_at_hand_on_ctrl_c(tiny_llama_dir, tmp_path, undisturbed):
    settings, expected = undisturbed
    interrupt = stop_after(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_llama_dir, tmp_path / "out", progress=interrupt, **settings)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in (tmp_path / "out.partial").glob("checkpoint-*")] == ["checkpoint-3"]
    fit(tiny_llama_dir, tmp_path / "out", **settings)
    assert weights_of(tmp_path / "out") == expected


CHILD = """
import json, sys, time
from pathlib import Path
import torch
from semievol.backends.trl import TrlTrainer
from semievol.config import ModelConfig, TrlTrainerConfig
from semievol.types import Message, ModelRef, SftRow
job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
rows = [SftRow(i, (Message("user", prompt),), completion) for i, prompt, completion in job["rows"]]
trainer = TrlTrainer(ModelConfig(path=job["path"], device="cpu"))
trainer.fit(ModelRef(job["path"]), rows, Path(job["out"]), config=TrlTrainerConfig(**job["config"]), seed=0,
            progress=lambda n: time.sleep(0.3))
"""


def test_fit_goes_on_after_sigkill_byte_for_byte(tiny_llama_dir, tmp_path, undisturbed):
    settings, expected = undisturbed
    job = {
        "path": tiny_llama_dir,
        "out": str(tmp_path / "out"),
        "rows": [(row.id, row.messages[0].content, row.completion) for row in make_rows(10)],
        "config": make_config(**settings).model_dump(mode="json"),
        "threads": torch.get_num_threads(),
    }
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(job)])
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if list((tmp_path / "out.partial").glob("checkpoint-*/trainer_state.json")):
            break
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    counts: list[int] = []
    fit(tiny_llama_dir, tmp_path / "out", progress=counts.append, **settings)
    assert counts[0] >= 2  # it did go on
    assert weights_of(tmp_path / "out") == expected


def test_fit_finished_is_taken_as_it_is(tiny_llama_dir, tmp_path):
    first = fit(tiny_llama_dir, tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns
    counts: list[int] = []
    assert fit(tiny_llama_dir, tmp_path / "out", progress=counts.append) == first
    assert counts == [3]
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert fit(tiny_llama_dir, tmp_path / "out", max_steps=2).optimizer_steps == 2


def test_fingerprint_is_that_of_the_finished_training_and_tells_others_apart(tiny_llama_dir, tmp_path):
    fit(tiny_llama_dir, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / FIT_REPORT).read_text())["fingerprint"]
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu"))

    def fingerprint(rows, seed=0, adapter=None, **changes):
        return trainer.fingerprint(ModelRef(tiny_llama_dir, adapter), rows, config=make_config(**changes), seed=seed)

    rows = make_rows(10)
    others = [
        fingerprint(rows[:-1]),
        fingerprint([*rows[1:], rows[0]]),
        fingerprint([*rows[:-1], replace(rows[-1], completion="Answer: C")]),
        fingerprint([*rows[:-1], replace(rows[-1], weight=0.5)]),
        fingerprint(rows, seed=1),
        fingerprint(rows, learning_rate=2e-3),
        fingerprint(rows, precision="bf16"),
        fingerprint(rows, adapter=str(tmp_path / "out")),
    ]
    assert fingerprint(rows) == stored
    assert len({stored, *others}) == len(others) + 1


def test_fingerprint_after_full_training_is_that_of_its_copies(tiny_llama_dir, tmp_path):
    """Steps of a comparison link one training to many places; training on from there is one training too."""
    for seed in (0, 1):
        fit(tiny_llama_dir, tmp_path / f"warm-{seed}", seed=seed, method="full", max_steps=3)
    shutil.copytree(tmp_path / "warm-0", tmp_path / "copy")
    shutil.copytree(tiny_llama_dir, tmp_path / "base")
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu"))

    def fingerprint(base):
        return trainer.fingerprint(ModelRef(str(base)), make_rows(10), config=make_config(method="full"), seed=0)

    first, copy, other = (fingerprint(tmp_path / name) for name in ("warm-0", "copy", "warm-1"))
    assert first == copy != other
    assert fingerprint(tmp_path / "base") != fingerprint(tiny_llama_dir)  # what was not trained here has its name, too


def test_fit_does_not_remove_what_it_did_not_write(tiny_llama_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match="holds no training of ours"):
        fit(tiny_llama_dir, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_fit_long_rows_are_named_before_any_step(tiny_llama_dir, tmp_path):
    long = SftRow("row-long", (Message("user", "parcel " * 60),), "Answer: A")
    with pytest.raises(TrainingError, match=r"1 of 4 .* longer than 64 tokens: row-long \(\d+ tokens\); raise trainer"):
        fit(tiny_llama_dir, tmp_path / "out", rows=[*make_rows(3), long], max_length=64)
    assert list(tmp_path.iterdir()) == []


def test_fit_rows_longer_than_the_model_are_named(tiny_llama_dir, tmp_path):
    long = SftRow("row-long", (Message("user", "parcel " * 600),), "Answer: A")
    with pytest.raises(TrainingError, match=r"longer than 512 tokens: row-long .* model takes 512 tokens"):
        fit(tiny_llama_dir, tmp_path / "out", rows=[long], max_length=4096)


def test_fit_without_rows_is_refused(tiny_llama_dir, tmp_path):
    with pytest.raises(TrainingError, match="no training rows"):
        fit(tiny_llama_dir, tmp_path / "out", rows=[])


def test_fit_empty_completion_is_refused(tiny_llama_dir, tmp_path):
    empty = SftRow("row-empty", (Message("user", "parcel"),), " ")
    with pytest.raises(TrainingError, match="no token carries loss in row-empty"):
        fit(tiny_llama_dir, tmp_path / "out", rows=[*make_rows(2), empty])


def test_fit_completion_without_stop_token_is_refused(tiny_llama_dir, tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu", chat_template=template))
    with pytest.raises(TrainingError, match=r"not learn to stop.*row-0, row-1.*chat_template"):
        trainer.fit(ModelRef(tiny_llama_dir), make_rows(2), tmp_path / "out", config=make_config(), seed=0)


def test_fit_loss_that_is_not_finite_stops_at_once(tiny_llama_dir, tmp_path):
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at optimiser step \d+ \(learning rate"):
        fit(tiny_llama_dir, tmp_path / "out", learning_rate=1e30, warmup_steps=0, max_steps=8)
    assert not (tmp_path / "out").exists()


def test_fit_target_modules_that_are_not_there_are_a_config_error(tiny_llama_dir, tmp_path):
    with pytest.raises(ConfigError, match="no_such"):
        fit(tiny_llama_dir, tmp_path / "out", target_modules=("no_such",))


def test_fit_qlora_on_a_cpu_is_a_config_error(tiny_llama_dir, tmp_path):
    with pytest.raises(ConfigError, match="qlora needs a CUDA GPU"):
        fit(tiny_llama_dir, tmp_path / "out", method="qlora")


def test_fit_full_of_an_adapter_is_a_config_error(tiny_llama_dir, tmp_path):
    with pytest.raises(ConfigError, match="adapter"):
        fit(tiny_llama_dir, tmp_path / "out", method="full", adapter="somewhere")


def test_fit_section_of_another_trainer_is_a_config_error(tiny_llama_dir):
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu"))
    with pytest.raises(ConfigError, match="fake"):
        trainer.count_steps(4, FakeTrainerConfig())


@pytest.mark.parametrize(
    ("n", "changes"),
    [
        (1, {}),
        (7, {"gradient_accumulation_steps": 2}),
        (8, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
        (9, {"num_train_epochs": 1.5}),
        (10, {"num_train_epochs": 0.4}),
        (10, {"eval_fraction": 0.25, "num_train_epochs": 1}),
        (2, {"eval_fraction": 0.01, "num_train_epochs": 1}),
        (5, {"max_steps": 4, "gradient_accumulation_steps": 4}),
    ],
)
def test_count_steps_is_what_fit_takes(tiny_llama_dir, tmp_path, n, changes):
    changes = {"max_steps": None, **changes}
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu"))
    counts: list[int] = []
    report = fit(tiny_llama_dir, tmp_path / "out", n=n, progress=counts.append, **changes)
    assert trainer.count_steps(n, make_config(**changes)) == report.optimizer_steps == sum(counts)


def test_count_steps_of_no_rows_is_zero(tiny_llama_dir):
    trainer = open_trainer(make_config(), ModelConfig(path=tiny_llama_dir, device="cpu"))
    assert trainer.count_steps(0, make_config(max_steps=None)) == 0


def test_fit_counts_tokens_without_padding(tiny_llama_dir, tiny_tokenizer, tmp_path):
    from semievol.backends import hf

    rows = make_rows(5)
    report = fit(tiny_llama_dir, tmp_path / "out", rows=rows, max_steps=None, num_train_epochs=2)
    n_tokens = sum(
        len(hf.render_prompt_ids(tiny_tokenizer, row.messages))
        + len(hf.completion_ids(tiny_tokenizer, row.messages, row.completion))
        for row in rows
    )
    assert report.n_tokens == 2 * n_tokens
    assert report.n_rows == 5
    assert report.train_seconds > 0
    assert report.peak_memory_bytes > 0


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fit_says_what_it_computed_in(tiny_llama_dir, tmp_path, precision):
    assert fit(tiny_llama_dir, tmp_path / "out", precision=precision, max_steps=1).precision == precision


def test_fit_writes_nothing_to_stdout(tiny_llama_dir, tmp_path, capfd):
    fit(tiny_llama_dir, tmp_path / "out", eval_fraction=0.2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(("name", "agrees"), [("llama", True), ("qwen", True), ("bert", False)])
def test_fused_head_is_used_only_where_it_is_the_models_own(request, tmp_path, name, agrees):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from semievol.backends.sft_batches import CompletionCollator, make_dataset
    from semievol.backends.sft_rows import EncodedRow
    from semievol.backends.sft_trainer import CompletionTrainer

    path = request.getfixturevalue(f"tiny_{name}_dir")
    tokenizer = AutoTokenizer.from_pretrained(path)
    collator = CompletionCollator(tokenizer.eos_token_id, False)
    data = make_dataset([EncodedRow("a", (5, 6, 7, 8), 2), EncodedRow("b", (9, 10, 11, 12, 13, 14), 5)])
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    trainer = CompletionTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer
    )
    assert trainer._fused_head_agrees(model, collator([data[0], data[1]])) is agrees


def completion_trainer(path, tmp_path, rows, *, r=0):
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from semievol.backends.sft_batches import CompletionCollator, make_dataset
    from semievol.backends.sft_rows import EncodedRow
    from semievol.backends.sft_trainer import CompletionTrainer, can_share_start, name_checkpointing

    tokenizer = AutoTokenizer.from_pretrained(path)
    data = make_dataset([EncodedRow(str(i), ids, n_prompt) for i, (ids, n_prompt) in enumerate(rows)])
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **{name_checkpointing(): False},
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    collator = CompletionCollator(tokenizer.eos_token_id, can_share_start(model, arguments))
    trainer = CompletionTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM") if r else None,
    )
    return trainer, collator(list(data))


START = tuple(range(20, 44))
SHARED_ROWS = [
    ((*START, 5, 6, 7, 8, 50, 3), 28),
    ((*START, 9, 10, 51, 52, 3), 26),
    ((*START, 11, 12, 13, 14, 15, 16, 17, 50, 3), 31),
]


@pytest.mark.parametrize("r", [0, 4])
@pytest.mark.parametrize("name", ["llama", "qwen", "bert"])
def test_a_start_that_is_run_once_gives_the_same_loss_and_gradients(request, tmp_path, name, r):
    trainer, batch = completion_trainer(request.getfixturevalue(f"tiny_{name}_dir"), tmp_path, SHARED_ROWS, r=r)
    model = trainer.model.train()
    assert trainer._count_shared(batch) == len(START)
    assert int(batch["attention_mask"].sum()) < batch["attention_mask"].numel()
    found = []
    for n_shared in (0, len(START)):
        model.zero_grad()
        total, n_tokens = trainer._own_nll(model, dict(batch), n_shared)
        (total / n_tokens).backward()
        gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
        found.append((float(total.detach()), int(n_tokens), gradients))
    (alone, n_alone, expected), (shared, n_together, gradients) = found
    assert n_alone == n_together == 7
    assert shared == pytest.approx(alone, rel=1e-5)
    assert gradients.keys() == expected.keys()
    assert any(float(g.abs().max()) > 1e-3 for g in gradients.values())
    largest = max(float(g.abs().max()) for g in expected.values())
    for weight, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[weight], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize(
    "rows",
    [
        SHARED_ROWS[:1],
        [((*START[:8], 5, 6, 3), 9), ((*START[:8], 7, 8, 9, 3), 10)],
        [(START, 2), ((*START, 5), 2)],
    ],
    ids=["one row", "a short start", "the answer in the start"],
)
def test_a_start_is_not_shared_where_it_does_not_pay_or_holds_the_answer(tiny_llama_dir, tmp_path, rows):
    trainer, batch = completion_trainer(tiny_llama_dir, tmp_path, rows)
    trainer.model.train()
    assert trainer._count_shared(batch) == 0


def test_padding_never_stands_before_a_label(tiny_llama_dir, tmp_path):
    rows = [((*START, 50, 51, 3), len(START)), ((*START, 50, 52, 53, 54, 3), len(START))]
    trainer, batch = completion_trainer(tiny_llama_dir, tmp_path, rows)
    for labels, mask in zip(batch["labels"].tolist(), batch["attention_mask"].tolist(), strict=True):
        assert all(mask[i - 1] for i, label in enumerate(labels) if label != -100)
    trainer.model.eval()
    with torch.no_grad():
        total, n_tokens = trainer._own_nll(trainer.model, dict(batch), 0)
        alone = sum(
            float(trainer._own_nll(trainer.model, trainer.data_collator([row]), 0)[0]) for row in trainer.train_dataset
        )
    assert int(n_tokens) == 8
    assert float(total) == pytest.approx(alone, rel=1e-5)


def test_a_start_is_not_shared_under_dropout(tiny_llama_dir, tmp_path):
    from semievol.backends.sft_trainer import can_share_start

    trainer, _ = completion_trainer(tiny_llama_dir, tmp_path, SHARED_ROWS)
    assert can_share_start(trainer.model, trainer.args)
    trainer.model.append_dropout = torch.nn.Dropout(0.1)
    assert not can_share_start(trainer.model, trainer.args)


def test_a_start_is_not_shared_under_a_sliding_window(tiny_mistral_dir, tmp_path):
    trainer, batch = completion_trainer(tiny_mistral_dir, tmp_path, SHARED_ROWS)
    assert trainer._count_shared(batch) == 0
    assert batch["attention_mask"][1].tolist() == [0] * 4 + [1] * 29


def test_rows_of_like_length_share_a_batch_in_an_order_of_seed_and_epoch_alone():
    from semievol.backends.sft_batches import LengthGroupedEpochs

    lengths = [10 + (7 * i) % 50 for i in range(256)]
    sampler = LengthGroupedEpochs(lengths, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(256))
    assert first == list(LengthGroupedEpochs(lengths, 8, seed=3))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    resumed = LengthGroupedEpochs(lengths, 8, seed=3)
    resumed.set_epoch(1)
    assert list(resumed) == second
    batches = [[lengths[i] for i in first[at : at + 8]] for at in range(0, 256, 8)]
    padded = sum(8 * max(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9

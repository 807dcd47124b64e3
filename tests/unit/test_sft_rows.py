"""Raw text and weights: what a training row becomes, and what its loss is."""

import pytest

from semievol.backends.sft_rows import encode_rows, mean_weight
from semievol.errors import DataError
from semievol.types import Message, SftRow

torch = pytest.importorskip("torch")
TEXT = SftRow("text", (), "where is my parcel?")


def answer_rows(*weights: float, prompt: str = "where is my parcel?") -> list[SftRow]:
    """A row for each answer to one prompt."""
    answers = ("A", "B", "card lost abroad")
    turns = (Message("user", prompt),)
    return [SftRow(f"{prompt}/{i}", turns, f"Answer: {answers[i]}", w) for i, w in enumerate(weights)]


@pytest.fixture
def loss_of(tiny_llama_dir, tiny_tokenizer, tmp_path):
    """Give rows (a list for each micro-batch), get the loss of the accumulated batch as the trainer has it."""
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    from semievol.backends.sft_batches import CompletionCollator, make_dataset
    from semievol.backends.sft_trainer import CompletionTrainer

    def loss(*batches: list[SftRow]) -> float:
        encoded = [encode_rows(tiny_tokenizer, rows) for rows in batches]
        data = make_dataset([row for rows in encoded for row in rows])
        trainer = CompletionTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_llama_dir),
            args=SFTConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, dataset_kwargs={"skip_prepare_dataset": True}
            ),
            train_dataset=data,
            data_collator=CompletionCollator(tiny_tokenizer.eos_token_id, True),
            processing_class=tiny_tokenizer,
        )
        n_tokens = sum(row.n_completion for rows in encoded for row in rows)
        total, start = 0.0, 0
        with torch.no_grad():
            for rows in encoded:
                batch = trainer.data_collator([data[i] for i in range(start, start + len(rows))])
                total += float(
                    trainer.compute_loss(trainer.model.eval(), batch, num_items_in_batch=torch.tensor(n_tokens))
                )
                start += len(rows)
        return total

    return loss


@pytest.fixture
def nll_of(tiny_llama_dir, tiny_tokenizer):
    """Summed NLL of a row's tokens with loss and their number, in plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()

    def nll(row: SftRow) -> tuple[float, int]:
        (encoded,) = encode_rows(tiny_tokenizer, [row])
        ids = torch.tensor([encoded.input_ids])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        places = range(encoded.n_prompt, len(encoded.input_ids))
        return -sum(float(logprobs[i - 1, ids[0, i]]) for i in places), encoded.n_completion

    return nll


def test_raw_text_is_trained_on_with_every_token_and_the_end(tiny_tokenizer):
    (row,) = encode_rows(tiny_tokenizer, [TEXT])
    end = tiny_tokenizer.eos_token_id
    text = tiny_tokenizer(TEXT.completion, add_special_tokens=False)["input_ids"]
    assert row.input_ids == (end, *text, end)
    assert (row.n_prompt, row.n_completion) == (1, len(text) + 1)


def test_loss_of_raw_text_is_the_mean_nll_of_all_its_tokens(loss_of, nll_of):
    total, n_tokens = nll_of(TEXT)
    assert loss_of([TEXT]) == pytest.approx(total / n_tokens, abs=1e-5)


def test_loss_of_raw_text_and_answers_in_one_batch(loss_of, nll_of):
    rows = [TEXT, *answer_rows(1.0, 1.0)]
    parts = [nll_of(row) for row in rows]
    expected = sum(x for x, _ in parts) / sum(n for _, n in parts)
    assert loss_of(rows) == pytest.approx(expected, abs=1e-5)


def test_weighted_loss_is_the_soft_cross_entropy(loss_of, nll_of):
    """Sum of p_c * -log P(c | x) over the answers c, per weighted token."""
    rows = answer_rows(0.6, 0.3, 0.1)
    parts = [(row.weight, *nll_of(row)) for row in rows]
    soft = sum(p * nll for p, nll, _ in parts)
    assert loss_of(rows) == pytest.approx(soft / sum(p * n for p, _, n in parts), abs=1e-5)


def test_weighted_loss_adds_up_over_micro_batches(loss_of):
    rows = [*answer_rows(0.6, 0.3, 0.1), *answer_rows(1.0, prompt="top up failed")]
    assert loss_of(rows[:1], rows[1:3], rows[3:]) == pytest.approx(loss_of(rows), abs=1e-5)


def test_weights_that_are_all_equal_change_nothing(loss_of):
    assert loss_of(answer_rows(0.3, 0.3, 0.3)) == pytest.approx(loss_of(answer_rows(1.0, 1.0, 1.0)), abs=1e-5)


def test_rows_of_weight_one_carry_no_weights(tiny_tokenizer):
    from semievol.backends.sft_batches import make_dataset

    assert make_dataset(encode_rows(tiny_tokenizer, answer_rows(1.0, 1.0))).column_names == ["input_ids", "labels"]
    assert "weight" in make_dataset(encode_rows(tiny_tokenizer, answer_rows(1.0, 0.5))).column_names


def test_mean_weight_counts_tokens(tiny_tokenizer):
    rows = encode_rows(tiny_tokenizer, answer_rows(0.9, 0.05, 0.05))
    tokens = [row.n_completion for row in rows]
    assert tokens[2] > tokens[0]
    assert mean_weight(rows) == pytest.approx(
        sum(r.weight * n for r, n in zip(rows, tokens, strict=True)) / sum(tokens)
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_row_of_a_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(DataError, match="training row r1: weight"):
        SftRow("r1", (), "text", weight)


def fit(path: str, rows: list[SftRow], folder, **changes):
    from semievol.backends.base import open_trainer
    from semievol.config import ModelConfig, TrlTrainerConfig
    from semievol.types import ModelRef

    settings = {"r": 4, "max_steps": 8, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    config = TrlTrainerConfig(**{**settings, "logging_steps": 1, "learning_rate": 2e-2, **changes})
    trainer = open_trainer(config, ModelConfig(path=path, device="cpu"))
    return trainer.fit(ModelRef(path), rows, folder, config=config, seed=0)


def test_fit_of_soft_targets_comes_near_them(tiny_llama_dir, tmp_path):
    from semievol.backends.base import open_generator
    from semievol.config import ModelConfig, TransformersGeneratorConfig
    from semievol.types import ChoiceRequest

    rows = answer_rows(0.7, 0.3)
    report = fit(tiny_llama_dir, rows, tmp_path / "out", max_steps=60, per_device_train_batch_size=2)
    with open_generator(TransformersGeneratorConfig(), ModelConfig(path=tiny_llama_dir, device="cpu")) as generator:
        request = ChoiceRequest("x", rows[0].messages, report.model, tuple(row.completion for row in rows))
        (scores,) = generator.score_choices([request])
    assert scores.probabilities[0] == pytest.approx(0.7, abs=0.05)


def test_fit_of_soft_targets_holds_rows_out(tiny_llama_dir, tmp_path):
    report = fit(tiny_llama_dir, answer_rows(0.7, 0.2, 0.1), tmp_path / "out", eval_fraction=0.4, max_steps=2)
    assert report.n_rows == 3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_fit_of_raw_text_learns_and_goes_on_with_answers(tiny_llama_dir, tmp_path, method):
    from semievol.backends.base import open_trainer
    from semievol.config import ModelConfig, TrlTrainerConfig

    rate = 2e-2 if method == "lora" else 3e-3
    first = fit(tiny_llama_dir, [TEXT], tmp_path / "adapt", method=method, learning_rate=rate, max_steps=20)
    assert first.losses[-1][1] < 0.5 * first.losses[0][1]
    assert first.rendered_example == "<|endoftext|>⟦where is my parcel?<|endoftext|>⟧"
    config = TrlTrainerConfig(method=method, r=4, max_steps=1, logging_steps=1, gradient_accumulation_steps=1)
    trainer = open_trainer(config, ModelConfig(path=tiny_llama_dir, device="cpu"))
    again = trainer.fit(first.model, [TEXT], tmp_path / "warm", config=config, seed=0)
    assert again.losses[0][1] < 0.6 * first.losses[0][1]

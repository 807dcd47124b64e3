import pytest
from pydantic import ValidationError

from semievol.config import EvolveConfig, FakeTrainerConfig, TaskConfig, TrlTrainerConfig, WarmupConfig
from semievol.errors import DataError
from semievol.prompts import PromptBuilder
from semievol.sft import build_sft_rows, stage_trainer_config
from semievol.types import Example, SftRow, TaskFacts


def test_build_sft_rows_takes_the_builders_prompt_and_completion():
    builder = PromptBuilder(TaskConfig(type="choice"), TaskFacts())
    example = Example("e1", "Which?", choices=("x", "y"), target="B")
    assert build_sft_rows([example], builder) == [SftRow("e1", builder.answer(example), "Answer: B")]


def test_build_sft_rows_keeps_the_order():
    builder = PromptBuilder(TaskConfig(type="text"), TaskFacts())
    examples = [Example(f"e{i}", "Why?", target="because") for i in (2, 0, 1)]
    assert [row.id for row in build_sft_rows(examples, builder)] == ["e2", "e0", "e1"]


def test_build_sft_rows_refuses_an_example_without_target():
    builder = PromptBuilder(TaskConfig(type="text"), TaskFacts())
    with pytest.raises(DataError, match="row e1 has no target"):
        build_sft_rows([Example("e1", "Why?")], builder)


def test_stage_trainer_config_none_takes_the_trainers_value():
    trainer = TrlTrainerConfig(learning_rate=3e-4, num_train_epochs=5, max_steps=7)
    assert stage_trainer_config(trainer, WarmupConfig()) == trainer


def test_stage_trainer_config_takes_what_the_stage_sets():
    stage = EvolveConfig(learning_rate=1e-6, num_train_epochs=1)
    config = stage_trainer_config(TrlTrainerConfig(r=8), stage)
    assert (config.learning_rate, config.num_train_epochs, config.max_steps) == (1e-6, 1, None)
    assert config.r == 8


@pytest.mark.parametrize("trainer", [TrlTrainerConfig(), FakeTrainerConfig()])
def test_stage_trainer_config_steps_of_the_call_go_first(trainer):
    assert stage_trainer_config(trainer, WarmupConfig(max_steps=3), max_steps=11).max_steps == 11


def test_stage_trainer_config_epochs_of_the_stage_go_before_steps_of_the_trainer():
    config = stage_trainer_config(TrlTrainerConfig(max_steps=7), WarmupConfig(num_train_epochs=3))
    assert (config.num_train_epochs, config.max_steps) == (3, None)


def test_stage_with_two_lengths_is_refused():
    with pytest.raises(ValidationError, match="num_train_epochs 2 and max_steps 5 are both set"):
        EvolveConfig(num_train_epochs=2, max_steps=5)

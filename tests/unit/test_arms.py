"""What arms are made of: their steps, the keys they set, and which may run."""

from pathlib import Path

import pytest

from semievol.arms import ARMS, choose_arms, choose_controls, configure, find_arm, override, plan_arm
from semievol.config import parse_config
from semievol.errors import ConfigError

DATA = {"labeled": "l.csv", "unlabeled": "u.csv", "test": "t.csv"}


def make_config(**changes):
    return parse_config({"data": DATA, **changes})


def test_table_of_arms_is_complete():
    assert list(ARMS) == [
        "zero_shot",
        "few_shot_bm25",
        "few_shot_dense",
        "self_consistency",
        "sft",
        "sft_matched",
        "tapt_sft",
        "pseudo_all",
        "pseudo_confident",
        "icl_distill",
        "reflection",
        "semievol",
        "semievol_released",
        "semievol-iwp",
        "semievol-icp",
        "semievol-cl",
        "semievol-as",
        "oracle_select",
        "oracle_full",
    ]
    assert [name for name, arm in ARMS.items() if arm.uses_gold] == ["oracle_select", "oracle_full"]
    assert all(arm.description for arm in ARMS.values())


def test_docs_describe_every_arm():
    text = (Path(__file__).resolve().parents[2] / "docs" / "comparisons.md").read_text(encoding="utf-8")
    assert [name for name in ARMS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("name", ARMS)
def test_steps_of_an_arm_read_only_what_earlier_steps_write(name, recipe):
    config = configure(ARMS[name], make_config(recipe=recipe, rounds=2))
    written: set[str] = set()
    rounds = {"select/kept", "evolve/model"}  # of the round before
    for step in plan_arm(ARMS[name], config, use_gold=True):
        assert set(step.stage.reads_of(config)) <= written | rounds, step.name
        written |= set(step.stage.writes)
    assert "measure/predictions" in written


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if not arm.uses_gold])
def test_arm_without_gold_has_no_step_that_may_open_it(name):
    config = configure(ARMS[name], make_config())
    steps = plan_arm(ARMS[name], config, use_gold=False)
    assert not [s.name for s in steps if "data/sealed_gold" in s.stage.reads]


def test_semievol_changes_nothing_of_the_method():
    config = make_config(propagate={"temperature": 0.7})
    assert configure(ARMS["semievol"], config) == config


def test_released_arm_sets_what_the_recipe_sets():
    ours, theirs = configure(ARMS["semievol_released"], make_config()), make_config(recipe="released")
    assert ours == theirs


def test_matched_arm_differs_from_semievol_by_its_measure_alone():
    matched, method = (configure(ARMS[name], make_config()).model_dump() for name in ("sft_matched", "semievol"))
    assert {k for k in matched if matched[k] != method[k]} == {"measure"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("semievol-iwp", [("base", 0), ("base", 1), ("base", 3), ("base", 3)]),
        ("semievol-icp", [("warm", 0), ("warm", 0), ("warm", 0), ("base", 0)]),
        ("semievol-cl", [("warm", 3)]),
        ("pseudo_all", [("warm", 0)]),
        ("reflection", [("base", 0)]),
    ],
)
def test_arm_asks_these_configurations(name, expected):
    config = configure(ARMS[name], make_config())
    assert [(c.model, c.k) for c in config.propagate.configurations] == expected


def test_pseudo_labels_of_open_answers_are_greedy():
    config = configure(ARMS["pseudo_all"], make_config(task={"type": "number"}))
    assert (config.propagate.answer_with, config.propagate.temperature) == ("samples", 0.0)


def test_dense_few_shot_keeps_an_embedder_that_is_dense():
    chosen = [
        configure(ARMS["few_shot_dense"], make_config(embedder={"type": embedder})).embedder.type
        for embedder in ("bm25", "model")
    ]
    assert chosen == ["sentence_transformers", "model"]


def test_arms_that_need_probabilities_are_left_out_or_refused_on_open_answers():
    config = make_config(task={"type": "text"})
    names = [arm.name for arm in choose_arms(["all"], config, use_gold=False)]
    assert set(ARMS) - set(names) == {"pseudo_confident", "icl_distill", "oracle_select", "oracle_full"}
    message = r"arm pseudo_confident does not fit .* probability of an answer, which task.type: text with"
    with pytest.raises(ConfigError, match=message):
        choose_arms(["pseudo_confident"], config, use_gold=False)


def test_arms_that_need_probabilities_are_left_out_for_a_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    config = make_config(generator={"type": "openai"}, model={"path": "served"})
    notes: list[str] = []
    names = [arm.name for arm in choose_arms(["all"], config, use_gold=False, note=notes.append)]
    assert set(ARMS) - set(names) == {"pseudo_confident", "icl_distill", "oracle_select", "oracle_full"}
    assert [note.split()[0] for note in notes] == ["pseudo_confident", "icl_distill"]
    assert configure(ARMS["pseudo_all"], config).propagate.answer_with == "samples"


OWN_SELECTION = {"min_confidence": 0.6, "min_agreement": 0.5, "per_answer": True, "keep_fraction": 0.3}


@pytest.mark.parametrize(
    ("name", "minimum", "fraction"),
    [
        ("semievol", 0.6, 0.3),
        ("semievol-as", None, 1.0),
        ("pseudo_all", None, 1.0),
        ("pseudo_confident", 0.9, 1.0),
        ("semievol_released", None, 0.3),
    ],
)
def test_what_a_config_adds_to_the_selection_is_no_part_of_the_other_methods(name, minimum, fraction):
    select = configure(ARMS[name], make_config(select=OWN_SELECTION)).select
    assert (select.min_confidence, select.keep_fraction) == (minimum, fraction)
    assert (select.per_answer, select.min_agreement) == ((True, 0.5) if name == "semievol" else (False, None))


def test_naive_pseudo_labels_are_trained_on_beside_the_labelled_rows_whatever_the_recipe():
    config = make_config(recipe="released")
    assert configure(ARMS["pseudo_all"], config).evolve.train_on == "labeled+selected"


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_can_be_made_for_the_tasks_it_fits(name):
    for kind in ("choice", "label", "number", "span", "text"):
        config = make_config(task={"type": kind})
        if not ARMS[name].misfit(config):
            assert configure(ARMS[name], config).task.type == kind


def test_ablation_of_drawn_configurations_is_refused():
    with pytest.raises(ConfigError, match=r"set propagate.configurations instead"):
        configure(ARMS["semievol-cl"], make_config(propagate={"draw": 4}))


def test_rounds_repeat_the_stages_of_a_round():
    config = configure(ARMS["semievol"], make_config(rounds=2))
    names = [step.name for step in plan_arm(ARMS["semievol"], config, use_gold=False)]
    repeated = [f"round-{r}/{s}" for r in (1, 2) for s in ("retrieve", "propagate", "justify", "select", "evolve")]
    assert names == ["data", "warmup", *repeated, "measure"]


def test_adaptation_stands_before_the_warmup_where_an_arm_or_the_config_asks_for_it():
    def names(arm: str, **changes) -> list[str]:
        return [s.name for s in plan_arm(ARMS[arm], configure(ARMS[arm], make_config(**changes)), use_gold=False)]

    assert names("tapt_sft") == ["data", "adapt", "warmup", "measure"]
    assert names("sft") == ["data", "warmup", "measure"]
    assert names("sft", adapt={"enabled": True}) == ["data", "adapt", "warmup", "measure"]
    assert "adapt" not in names("semievol-iwp", adapt={"enabled": True})


def test_no_arm_but_the_oracles_trains_on_what_an_oracle_kept():
    config = make_config(evolve={"kept_by": "oracle_full"})
    kept_by = {name: configure(arm, config).evolve.kept_by for name, arm in ARMS.items()}
    assert {name for name, stage in kept_by.items() if stage != "select"} == {"oracle_select", "oracle_full"}


def test_arms_come_in_the_order_of_the_table():
    assert [arm.name for arm in choose_arms(["semievol", "sft"], make_config(), use_gold=False)] == ["sft", "semievol"]


def test_all_leaves_out_what_needs_gold():
    assert not [arm for arm in choose_arms(["all"], make_config(), use_gold=False) if arm.uses_gold]
    assert len(choose_arms(["all"], make_config(), use_gold=True)) == len(ARMS)


@pytest.mark.parametrize(
    ("name", "hint"), [("semievl", "did you mean semievol?"), ("xyzzy", "arms: zero_shot, few_shot_bm25")]
)
def test_unknown_arm_is_told_what_there_is(name, hint):
    with pytest.raises(ConfigError, match=f"no arm '{name}'") as caught:
        choose_arms([name], make_config(), use_gold=False)
    assert hint in str(caught.value)


def test_override_of_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"sweep: unknown key select.keep_fracton; did you mean keep_fraction"):
        override(make_config(), {"select.keep_fracton": 0.5}, source="sweep")


@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("name", ARMS)
def test_arm_that_trains_afresh_does_so_at_the_rate_of_a_warm_up(name, recipe):
    config = configure(ARMS[name], make_config(recipe=recipe))
    if "evolve" in ARMS[name].stages and config.evolve.init == "base":
        assert config.evolve.learning_rate is None


def test_arm_that_trains_afresh_keeps_a_rate_of_the_users_own():
    config = configure(ARMS["oracle_full"], make_config(evolve={"learning_rate": 3e-5}))
    assert config.evolve.learning_rate == 3e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"propagate": {"answer_with": "scores"}},
        {"propagate": {"cascade": {"min_confidence": 0.9}}},
        {"propagate": {"temperature": 0.2, "top_p": 0.5}},
        {"justify": {"model": "base"}},
    ],
)
def test_released_arm_is_the_released_code_whatever_the_config_says(changes):
    found = configure(ARMS["semievol_released"], make_config(**changes))
    assert (found.propagate, found.justify) == (lambda c: (c.propagate, c.justify))(make_config(recipe="released"))


@pytest.mark.parametrize(
    ("name", "model"), [("pseudo_all", "warm"), ("pseudo_confident", "warm"), ("reflection", "base")]
)
def test_pseudo_labels_of_one_model_are_judged_and_settled_by_it_alone(name, model):
    changes = {"propagate": {"cascade": {"min_confidence": 0.9}}, "justify": {"model": "base"}}
    config = configure(ARMS[name], make_config(**changes))
    assert (config.propagate.cascade, config.justify.model) == (None, model)


def test_single_configuration_is_ranked_over_all_rows_as_it_always_agrees_with_itself():
    config = configure(ARMS["semievol-cl"], make_config(recipe="released"))
    assert (config.select.apply_to, config.select.prompt) == ("all", "plain")


@pytest.mark.parametrize("signal", ["agreement", "sample_entropy"])
def test_single_configuration_cannot_be_selected_by_agreement(signal):
    config = make_config(select={"signal": signal})
    with pytest.raises(ConfigError, match=f"select.signal: {signal} is the same for all rows"):
        choose_arms(["semievol-cl"], config, use_gold=False)
    assert "semievol-cl" not in [arm.name for arm in choose_arms(["all"], config, use_gold=False)]


HOSTED = {"generator": {"type": "openai"}, "model": {"path": "gpt"}, "retrieve": {"k": 3}}


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("tapt_sft", {"trainer": {"type": "openai"}}, "plain text"),
        (
            "sft_matched",
            {"trainer": {"type": "openai", "batch_size": "auto"}, "control": {"enabled": False}},
            "trainer.batch_size: auto",
        ),
        ("oracle_select", {"task": {"type": "text"}}, "task.metric: rouge_l"),
    ],
)
def test_arm_that_would_fail_after_paying_is_refused_before(name, changes, reason):
    config = make_config(**HOSTED, **changes)
    with pytest.raises(ConfigError, match=reason):
        choose_arms([name], config, use_gold=True)


def test_released_arm_leaves_the_rate_to_a_server():
    config = configure(ARMS["semievol_released"], make_config(**HOSTED, trainer={"type": "openai"}))
    assert config.evolve.learning_rate is None


def test_few_shot_by_bm25_needs_no_index_of_the_config():
    config = make_config(retrieve={"index": "faiss"}, embedder={"type": "sentence_transformers"})
    assert configure(ARMS["few_shot_bm25"], config).retrieve.index == "exact"


def control_names(names, config):
    return [arm.name for arm in choose_controls([ARMS[name] for name in names], config)]


def test_arms_that_train_for_epochs_have_controls_of_their_own():
    names = [name for name in ARMS if not ARMS[name].uses_gold]
    assert control_names(names, make_config()) == [
        "sft_matched@pseudo_all",
        "sft_matched@pseudo_confident",
        "sft_matched@icl_distill",
        "sft_matched@semievol_released",
        "sft_matched@semievol-iwp",
        "sft_matched@semievol-icp",
        "sft_matched@semievol-cl",
        "sft_matched@semievol-as",
    ]


def test_arms_that_are_as_long_as_the_method_by_config_need_no_further_control():
    config = make_config(evolve={"max_steps": 150}, distill={"max_steps": 150})
    names = [name for name in ARMS if not ARMS[name].uses_gold]
    assert control_names(names, config) == ["sft_matched@semievol_released"]  # it goes on from the warm-up, at 1e-6
    longer = make_config(evolve={"max_steps": 150}, distill={"max_steps": 300})
    assert control_names(["icl_distill"], longer) == ["sft_matched@icl_distill"]


@pytest.mark.parametrize("name", [n for n, a in ARMS.items() if {"evolve", "distill"} & set(a.stages)])
def test_steps_of_a_control_read_only_what_earlier_steps_write(name):
    if "control" in ARMS[name].stages:
        return
    control = find_arm(f"sft_matched@{name}")
    config = configure(control, make_config(rounds=2))
    written = {"select/kept", "evolve/model"}  # of the round before
    for step in plan_arm(control, config, use_gold=True):
        assert set(step.stage.reads_of(config)) <= written, step.name
        written |= set(step.stage.writes)


def test_self_consistency_takes_the_samples_of_the_config():
    arm = ARMS["self_consistency"]
    assert configure(arm, make_config()).measure.n_samples == 4
    assert configure(arm, make_config(measure={"n_samples": 16})).measure.n_samples == 16
    assert configure(ARMS["sft"], make_config(measure={"n_samples": 16})).measure.n_samples == 1


def test_distillation_has_demonstrations_where_the_method_has_none():
    none = {"retrieve": {"k": 0}, "propagate": {"configurations": [{"model": "warm", "k": 0}]}}
    assert configure(ARMS["icl_distill"], make_config(**none)).retrieve.k == 3
    assert configure(ARMS["icl_distill"], make_config(retrieve={"k": 5})).retrieve.k == 5

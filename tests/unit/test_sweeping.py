"""Points of a sweep, and what they make of a config."""

import csv

import pytest

from semievol import sweeping
from semievol.config import parse_config
from semievol.errors import ConfigError
from semievol.prompts import INSTRUCTIONS
from semievol.rewordings import N_WORDINGS, WORDINGS, reword
from semievol.sweeping import apply_point, plan_points, split_arguments

DATA = {"labeled": "l.csv", "unlabeled": "u.csv", "test": "t.csv"}


def make_config(**changes):
    return parse_config({"data": DATA, **changes})


def configurations(config) -> list[tuple[str, int]]:
    return [(c.model, c.k) for c in config.propagate.configurations]


def test_arguments_with_several_values_are_swept_and_others_override():
    overrides, axes = split_arguments(["theta=0.3,0.5,0.3", "evaluate.n_bootstrap=500", "n=2", "rewordings=3"])
    assert overrides == ["evaluate.n_bootstrap=500"]
    assert axes == {"theta": [0.3, 0.5], "n": [2], "rewording": [0, 1, 2]}


def test_list_values_keep_their_commas():
    assert split_arguments(["trainer.target_modules=[a, b],all-linear"])[1] == {
        "trainer.target_modules": [["a", "b"], "all-linear"]
    }


@pytest.mark.parametrize("text", ["theta", "theta=", "=1,2", "theta=[1,2"])
def test_malformed_argument_is_refused(text):
    with pytest.raises(ConfigError, match="sweep "):
        split_arguments([text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thetta=0.3,0.5", "unknown key thetta; did you mean theta?"),
        ("unlabelled_ratio=1,2", "did you mean unlabeled_ratio?"),
        ("gamma=1,2", "sweep keys: n, theta, k"),
        ("rewordings=1,2,3", "takes one number.*rewording=1,2,3 lists them"),
    ],
)
def test_key_that_no_sweep_has_is_refused_with_the_one_that_was_meant(text, message):
    with pytest.raises(ConfigError, match=message):
        split_arguments([text])


def test_key_given_twice_is_refused():
    with pytest.raises(ConfigError, match="n is given twice"):
        split_arguments(["n=1,2", "n=3,4"])


def test_one_key_at_a_time_or_all_combinations():
    axes = {"n": [1, 2], "theta": [0.3, 0.5]}
    assert plan_points(axes, cartesian=False) == [{"n": 1}, {"n": 2}, {"theta": 0.3}, {"theta": 0.5}]
    assert len(plan_points(axes, cartesian=True)) == 4


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [("warm", 0)]),
        (4, [("warm", 0), ("warm", 1), ("warm", 3), ("base", 3)]),
        (5, [("warm", 0), ("warm", 1), ("warm", 3), ("base", 3), ("base", 0)]),
    ],
)
def test_n_takes_the_first_configurations_and_then_those_that_are_missing(n, expected):
    assert configurations(apply_point(make_config(), {"n": n})) == expected


def test_n_beyond_all_configurations_is_refused():
    with pytest.raises(ConfigError, match=r"n=9: there are 8 configurations"):
        apply_point(make_config(), {"n": 9})


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0, [("warm", 0), ("warm", 0), ("warm", 0), ("base", 0)]),
        (1, [("warm", 0), ("warm", 1), ("warm", 1), ("base", 1)]),
        (5, [("warm", 0), ("warm", 1), ("warm", 5), ("base", 5)]),
    ],
)
def test_k_caps_the_configurations_and_those_with_all_follow(k, expected):
    config = apply_point(make_config(), {"k": k})
    assert config.retrieve.k == k
    assert configurations(config) == expected


def test_theta_is_the_fraction_kept():
    assert apply_point(make_config(), {"theta": 0.3}).select.keep_fraction == 0.3


def test_value_that_does_not_fit_names_the_point():
    with pytest.raises(ConfigError, match=r"sweep theta=3: select.keep_fraction: .*less than or equal to 1"):
        apply_point(make_config(), {"theta": 3})


def test_unlabeled_ratio_counts_the_rows_that_are_there(tmp_path):
    paths = {}
    for split, n in {"labeled": 4, "unlabeled": 10}.items():
        paths[split] = str(tmp_path / f"{split}.csv")
        with open(paths[split], "w", newline="", encoding="utf-8") as stream:  # noqa: PTH123
            rows = [(f"{split} {i} {'abcdefghijk'[i] * 5}", '["x", "y"]', "A") for i in range(n)]
            csv.writer(stream).writerows([("question", "options", "answer"), *rows])
    config = parse_config({"data": paths})
    assert apply_point(config, {"unlabeled_ratio": 1.5}).data.max_unlabeled == 6
    fewer = apply_point(config, {"unlabeled_ratio": 1.5, "data.max_labeled": 2})
    assert fewer.data.max_unlabeled == 3
    with pytest.raises(ConfigError, match=r"12 unlabelled rows for 4 labelled ones, but there are 10"):
        apply_point(config, {"unlabeled_ratio": 3})


@pytest.mark.parametrize("kind", WORDINGS)
def test_every_answer_type_has_five_wordings(kind):
    task = make_config(task={"type": kind}).task
    wordings = [reword(task, i) for i in range(N_WORDINGS)]
    assert wordings[0] == INSTRUCTIONS[kind]
    assert len(set(wordings)) == N_WORDINGS == 5


def test_own_instruction_stays_in_every_wording():
    task = make_config(task={"instruction": "Route the ticket."}).task
    wordings = [reword(task, i) for i in range(N_WORDINGS)]
    assert len(set(wordings)) == N_WORDINGS
    assert all("Route the ticket." in w for w in wordings)


def test_wording_that_would_not_reach_the_model_is_refused():
    config = make_config(task={"prompt_template": "{{ question }}"})
    with pytest.raises(ConfigError, match=r"task.prompt_template has no \{\{ instruction \}\}"):
        apply_point(config, {"rewording": 1})


@pytest.mark.parametrize("point", [{"n": 4, "k": 1}, {"k": 1, "n": 4}])
def test_configurations_are_counted_among_those_that_k_leaves(point):
    config = make_config(propagate={"configurations": [{"model": "warm", "k": 0}, {"model": "warm", "k": 3}]})
    assert configurations(apply_point(config, point)) == [("warm", 0), ("warm", 1), ("base", 0), ("base", 1)]


@pytest.mark.parametrize("texts", [["theta=0.3,0.5", "select.keep_fraction=0.9"], ["seed=1", "rounds=1,2", "rounds=3"]])
def test_key_that_is_swept_and_set_is_refused(texts):
    with pytest.raises(ConfigError, match=r"given (as well|twice)"):
        split_arguments(texts)


def test_recipes_are_no_values_of_a_sweep():
    with pytest.raises(ConfigError, match=r"a recipe is the defaults of other keys.*semievol_released"):
        split_arguments(["recipe=paper,released"])
    assert split_arguments(["recipe=released"]) == (["recipe=released"], {})


def test_dates_are_the_text_that_they_are():
    assert split_arguments(["model.revision=2024-01-01,2024-02-01"])[1] == {
        "model.revision": ["2024-01-01", "2024-02-01"]
    }


def test_ratio_a_little_above_the_rows_there_are_takes_all(monkeypatch):
    """As of a file cut 2 : 6 that lost duplicates; loading says that there are fewer."""
    monkeypatch.setattr(sweeping, "_count_rows", lambda _: (449, 1344))
    assert apply_point(make_config(), {"unlabeled_ratio": 3}).data.max_unlabeled == 1347
    with pytest.raises(ConfigError, match="1437 unlabelled rows for 449 labelled ones, but there are 1344"):
        apply_point(make_config(), {"unlabeled_ratio": 3.2})

"""What is proposed for which data, and that every proposal is a config that loads."""

import csv
import json
import random
from pathlib import Path

import pytest
import yaml

from semievol.config import RunConfig, load_config
from semievol.errors import DataError
from semievol.inspecting import assign_roles, classify_targets, look_at
from semievol.proposing import propose_config

WORDS = ["parcel", "card", "money", "lost", "today", "please", "account", "help", "number", "street", "phone", "order"]


def sentence(i: int) -> str:
    return f"{' '.join(random.Random(i).choices(WORDS, k=9))} {i}"


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def proposed(tmp_path: Path, *files: Path) -> tuple[RunConfig, str]:
    text = propose_config(list(files))
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_config(path), text


def test_three_files_get_their_roles_by_name_in_any_order(tmp_path: Path) -> None:
    labels = ["refund", "lost"]
    labeled = write_csv(tmp_path / "labeled.csv", [{"text": sentence(i), "label": labels[i % 2]} for i in range(40)])
    unlabeled = write_csv(tmp_path / "unlabeled.csv", [{"text": sentence(100 + i)} for i in range(40)])
    test = write_csv(tmp_path / "test.csv", [{"text": sentence(200 + i), "label": labels[i % 2]} for i in range(40)])
    config, text = proposed(tmp_path, test, unlabeled, labeled)
    assert (config.data.labeled, config.data.unlabeled, config.data.test) == (str(labeled), str(unlabeled), str(test))
    assert config.task.type == "label"
    assert config.task.labels is None
    assert config.data.columns.target == "label"
    assert "2 distinct targets over 40 rows" in text


def test_a_file_without_targets_is_the_unlabeled_one(tmp_path: Path) -> None:
    a = write_csv(tmp_path / "a.csv", [{"text": sentence(i), "label": "x" if i % 2 else "y"} for i in range(20)])
    b = write_csv(tmp_path / "b.csv", [{"text": sentence(100 + i), "label": ""} for i in range(20)])
    roles = assign_roles([look_at(str(b)), look_at(str(a))])
    assert (roles["labeled"].source, roles["unlabeled"].source) == (str(a), str(b))


def test_labels_of_a_file_to_be_split_are_listed(tmp_path: Path) -> None:
    rows = [{"Bemerkung": sentence(i), "Abteilung": ["Versand", "no", "12: x"][i % 3], "nr": i} for i in range(60)]
    config, text = proposed(tmp_path, write_csv(tmp_path / "all.csv", rows))
    assert config.data.path == str(tmp_path / "all.csv")
    assert config.task.labels == ("12: x", "Versand", "no")
    assert (config.data.columns.question, config.data.columns.target) == ("Bemerkung", "Abteilung")
    assert text.count("guessed from its content") == 2


def test_labels_that_only_test_rows_have_are_listed(tmp_path: Path) -> None:
    files = [
        write_csv(tmp_path / "train.csv", [{"text": sentence(i), "label": "xy"[i % 2]} for i in range(20)]),
        write_csv(tmp_path / "unlabelled.csv", [{"text": sentence(100 + i)} for i in range(20)]),
        write_csv(tmp_path / "test.csv", [{"text": sentence(200 + i), "label": "xyz"[i % 3]} for i in range(21)]),
    ]
    config, _ = proposed(tmp_path, *files)
    assert config.task.labels == ("x", "y", "z")


def test_options_make_a_choice_task(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "options": ["a1", "b2", "c3"], "answer": "ABC"[i % 3]} for i in range(30)]
    config, text = proposed(tmp_path, write_jsonl(tmp_path / "mc.jsonl", rows))
    assert config.task.type == "choice"
    assert config.data.columns.choices == "options"
    assert "3 a row" in text


def test_option_columns_make_a_choice_task(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "A": "yes", "B": "no", "answer": "AB"[i % 2]} for i in range(30)]
    config, text = proposed(tmp_path, write_csv(tmp_path / "mc.csv", rows))
    assert config.task.type == "choice"
    assert "one option a column: A, B" in text


def test_number_targets(tmp_path: Path) -> None:
    rows = [{"question": sentence(i), "answer": f"so it is\n#### {i * 7}"} for i in range(40)]
    config, _ = proposed(tmp_path, write_jsonl(tmp_path / "gsm.jsonl", rows))
    assert config.task.type == "number"


def test_chat_rows_are_text_and_get_room_for_the_answer(tmp_path: Path) -> None:
    def turns(i: int) -> list[dict[str, str]]:
        answer = " ".join(sentence(i + j) for j in range(12))
        return [{"role": "user", "content": sentence(i)}, {"role": "assistant", "content": answer}]

    rows = [{"messages": turns(i)} for i in range(30)]
    config, _ = proposed(tmp_path, write_jsonl(tmp_path / "chat.jsonl", rows))
    assert config.task.type == "text"
    assert config.data.columns.messages == "messages"
    assert config.propagate.max_tokens == config.evaluate.max_tokens == config.justify.max_tokens
    assert 64 <= (config.propagate.max_tokens or 0) <= 1024


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([f"the city of {i} rivers" for i in range(30)], "span"),
        ([" ".join(["word"] * 40) + str(i) for i in range(30)], "text"),
        (["1", "0"] * 20, "label"),
        ([str(i * 3.5) for i in range(40)], "number"),
        (["yes", "no", "maybe"] * 10, "label"),
    ],
)
def test_targets_are_classified(targets: list[str], kind: str) -> None:
    assert classify_targets(targets)[0] == kind


def test_spellings_that_differ_in_case_are_one_label() -> None:
    assert classify_targets(["Refund", "Refund", "refund", "lost"] * 5)[2] == ("Refund", "lost")


def test_columns_that_not_every_file_has_are_left_to_be_found(tmp_path: Path) -> None:
    files = [
        write_csv(tmp_path / "labeled.csv", [{"ticket": sentence(i), "label": "xy"[i % 2]} for i in range(20)]),
        write_csv(tmp_path / "unlabeled.csv", [{"text": sentence(100 + i)} for i in range(20)]),
    ]
    config, text = proposed(tmp_path, *files)
    assert config.data.columns.question is None
    assert "none given: nothing will be measured" in text


def test_the_head_says_what_to_run_next(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": "xy"[i % 2]} for i in range(20)]
    _, text = proposed(tmp_path, write_csv(tmp_path / "all.csv", rows))
    head = text[: text.index("recipe:")]
    assert "semievol check config.yaml" in head
    assert "semievol run config.yaml" in head


def test_the_model_is_taken_over(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "all.csv", [{"text": sentence(i), "label": "xy"[i % 2]} for i in range(20)])
    raw = yaml.safe_load(propose_config([path], model="org/name"))
    assert raw["model"]["path"] == "org/name"
    assert raw["trainer"]["learning_rate"] == 1e-4


def test_no_unlabeled_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": "xy"[i % 2]} for i in range(20)]
    files = [write_csv(tmp_path / name, rows) for name in ("labeled.csv", "test.csv")]
    with pytest.raises(DataError, match="unlabeled"):
        propose_config(files)


def test_two_files_of_one_role_are_an_error(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": "xy"[i % 2]} for i in range(20)]
    files = [write_csv(tmp_path / name, rows) for name in ("test.csv", "test_2.csv")]
    with pytest.raises(DataError, match="both look test"):
        propose_config(files)


def test_no_target_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "all.csv", [{"text": sentence(i), "nr": i} for i in range(20)])
    with pytest.raises(DataError, match=r"columns: text, nr"):
        propose_config([path])


def test_no_question_is_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "all.csv", [{"a1": i, "b1": i % 2} for i in range(20)])
    with pytest.raises(DataError, match="question"):
        propose_config([path])

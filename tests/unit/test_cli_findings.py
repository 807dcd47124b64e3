"""What the command line and the config say about faults of the user: one message, exit code 2, and the remedy."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from semievol import cli
from semievol.cli import run_app
from semievol.config import load_config, parse_config
from semievol.demo.running import prepare_demo
from semievol.errors import ConfigError
from tests.pipeline.conftest import write_task

CONFIG = """\
data: {labeled: a.csv, unlabeled: b.csv}
generator: {type: fake}
trainer: {type: fake}
embedder: {type: fake}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def fault_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_repeated_section_is_an_error_with_both_lines(config_file: Path) -> None:
    config_file.write_text(f"{CONFIG}select: {{keep_fraction: 0.3}}\nseed: 1\nselect: {{per_answer: true}}\n")
    assert "the key select stands twice (line 5 and line 7)" in fault_of(config_file)


def test_a_repeated_key_within_a_section_is_an_error(config_file: Path) -> None:
    config_file.write_text(f"{CONFIG}select:\n  keep_fraction: 0.3\n  signal: entropy\n  keep_fraction: 0.4\n")
    assert "the key keep_fraction stands twice (line 6 and line 8)" in fault_of(config_file)


def test_a_repeated_key_in_an_override_is_an_error(config_file: Path) -> None:
    text = fault_of(config_file, "select={keep_fraction: 0.3, keep_fraction: 0.4}")
    assert text.startswith("override 'select={")
    assert "the key keep_fraction stands twice (line 1)" in text


def test_a_fault_of_an_override_of_the_demo_names_the_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_demo("tickets", seed=0, output_dir=tmp_path / "run", overrides=["select.keep_fraction=2"])
    assert str(caught.value).startswith("override 'select.keep_fraction=2': select.keep_fraction: ")
    assert not (tmp_path / "run").exists()


def test_merge_keys_may_stand_twice(config_file: Path) -> None:
    bases = "warmup: &one {num_train_epochs: 2}\nevolve: &two {learning_rate: 0.1}\n"
    config_file.write_text(f"{CONFIG}{bases}distill:\n  <<: *one\n  <<: *two\n")
    config = load_config(config_file)
    assert (config.distill.num_train_epochs, config.distill.learning_rate) == (2, 0.1)


def test_merge_keys_may_set_a_key_again(config_file: Path) -> None:
    base = "warmup: &base {num_train_epochs: 1, learning_rate: 0.1}\nevolve: &next {<<: *base, num_train_epochs: 3}\n"
    config_file.write_text(f"{CONFIG}{base}distill: {{<<: *next, learning_rate: 0.2}}\n")
    config = load_config(config_file)
    assert (config.evolve.num_train_epochs, config.evolve.learning_rate) == (3, 0.1)
    assert (config.distill.num_train_epochs, config.distill.learning_rate) == (3, 0.2)


@pytest.mark.parametrize("path", ["~/runs/x", "~"])
def test_a_tilde_in_output_dir_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse_config({"data": {"path": "x.csv"}, "output_dir": path})
    assert config.output_dir == str(tmp_path / path[2:])


def test_a_home_folder_that_is_not_there_is_an_error(config_file: Path) -> None:
    assert "output_dir: there is no such home folder" in fault_of(config_file, "output_dir=~nobody-here/x")


def test_output_dir_stays_as_written_without_a_tilde() -> None:
    assert parse_config({"data": {"path": "x.csv"}, "output_dir": "runs//a~b/"}).output_dir == "runs//a~b/"


def test_a_tilde_in_options_is_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    paths = write_task(tmp_path)
    assert run_app(["init", *paths.values(), "--output=~/config.yaml"]) == 0
    assert (tmp_path / "config.yaml").is_file()
    assert not (tmp_path / "~").exists()
    for arguments in (
        ["status", "~/none"],
        ["report", "~/none"],
        ["cancel", "~/none"],
        ["export", "~/none", "--output=~/out"],
        ["predict", "~/none", "new.csv", "--output=~/out.csv"],
        ["run", "~/none.yaml"],
    ):
        assert run_app(arguments) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path}/none" in error
        assert "~" not in error


@pytest.mark.parametrize(
    ("output", "reason"),
    [("nodir/c.yaml", "there is no folder nodir"), (".", "is a folder"), (f"{'x' * 300}.yaml", "name another place")],
)
def test_init_says_where_it_cannot_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_task(tmp_path)["labeled"]
    assert run_app(["init", table, "-o", output, "--force"]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_init_hints_at_a_command_that_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_task(tmp_path)
    output = tmp_path / "my config.yaml"
    assert run_app(["init", *paths.values(), "-o", str(output)]) == 0
    assert f"next: semievol check '{output}'\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    [
        "data.split={labeled: .inf, unlabeled: 0.6, test: 0.2}",
        "data.split.test=.nan",
        "propagate.temperature=.inf",
        "task.number_tolerance=.inf",
    ],
)
def test_numbers_that_are_not_finite_are_refused(config_file: Path, override: str) -> None:
    assert "Input should be a finite number" in fault_of(config_file, override)


@pytest.mark.parametrize("key", ["batch_size", "num_train_epochs", "learning_rate_multiplier"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_of_a_hosted_training_are_finite(config_file: Path, key: str, value: str) -> None:
    assert f"trainer.{key}: a" in fault_of(config_file, "trainer.type=openai", f"trainer.{key}={value}")


def replace_stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    return written


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["semievol", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(str(caught.value.code))


@pytest.fixture
def accented(tmp_path: Path) -> Path:
    """A config with paths that few terminals can show."""
    folder = tmp_path / "r\u00e9sultats \u7814\u7a76"
    folder.mkdir()
    data = json.dumps(write_task(folder), ensure_ascii=False)
    rest = CONFIG.partition("\n")[2]
    path = folder / "config.yaml"
    path.write_text(f"data: {data}\noutput_dir: {folder}/run\n{rest}", encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_check_runs_where_not_all_characters_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, accented: Path, encoding: str
) -> None:
    written = replace_stdout(monkeypatch, encoding)
    assert run_main(monkeypatch, "check", str(accented)) == 0
    assert b"?" in written.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_json_loses_nothing_where_not_all_characters_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, accented: Path, encoding: str
) -> None:
    written = replace_stdout(monkeypatch, encoding)
    assert run_main(monkeypatch, "check", str(accented), "--json") == 0
    assert accented.parent.name in json.dumps(json.loads(written.getvalue()), ensure_ascii=False)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run", "{config}", "select={keep_fraction: 0.3}"], "semievol run '{config}' 'select={keep_fraction: 0.3}'"),
        (
            ["demo", "-o", "{folder}/my run", "task.instruction=Read this"],
            "semievol demo --task tickets --seed 0 --output-dir '{folder}/my run' 'task.instruction=Read this'",
        ),
        (["report", "{folder}/my run"], "semievol report '{folder}/my run'"),
    ],
)
def test_the_hint_to_go_on_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
) -> None:
    config = parse_config({"data": write_task(tmp_path), "output_dir": str(tmp_path / "my run")})
    text = json.dumps(config.model_dump(mode="json"))
    (tmp_path / "my config.yaml").write_text(text)
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.resolved.json").write_text(text)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semievol.pipeline.run", interrupt)
    monkeypatch.setattr("semievol.pipeline.redraw", interrupt)

    def fill(text: str) -> str:
        return text.replace("{config}", f"{tmp_path}/my config.yaml").replace("{folder}", str(tmp_path))

    assert run_app([fill(part) for part in arguments]) == 130
    assert f"Go on with: {fill(wanted)}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("generator.batch_tokens=5", "it is a key of generator.type: transformers, and yours is fake"),
        ("generator.api_key_env=X", "it is a key of generator.type: openai or openai_batch, and yours is fake"),
        ("generator.acuracy=1", "unknown key generator.acuracy; did you mean accuracy?"),
        ("generator.fake=1", "unknown key generator.fake; known keys: accuracy, type"),
        ("generator.xyzzy=1", "unknown key generator.xyzzy; known keys: accuracy, type"),
        ("embedder={type: model, dimension: 5}", "it is a key of embedder.type: fake, and yours is model"),
        (
            "generator={type: ray, inner: {type: fake, threads: 5}}",
            "unknown key generator.inner.threads; it is a key of generator.inner.type: transformers",
        ),
        ("propagate.configurations=[{model: warm, k: 1, kk: 2}]", "unknown key propagate.configurations.0.kk"),
    ],
)
def test_unknown_keys_of_backends_name_the_type_that_has_them(config_file: Path, override: str, hint: str) -> None:
    assert hint in fault_of(config_file, override)


def test_faults_name_the_override_or_the_file_they_come_from(config_file: Path) -> None:
    config_file.write_text(f"{CONFIG}evolve: {{lerning_rate: 1}}\njustify: {{temprature: 1}}\n")
    overrides = ("selct.keep_fraction=0.3", "justify.top_p=0.5", "seed=-1", "select.prompt={a: 1}", "seed=-2")
    lines = fault_of(config_file, *overrides).splitlines()
    starts = {line.split(": ")[0] for line in lines if "unknown key" in line}
    assert starts == {str(config_file), f"{config_file} with override 'selct.keep_fraction=0.3'"}
    assert any(line.startswith("override 'seed=-2': seed: ") for line in lines)
    assert any(line.startswith("override 'select.prompt={a: 1}': select.prompt: ") for line in lines)
    assert not any("justify.top_p" in line for line in lines)


def test_faults_between_sections_name_the_overrides(config_file: Path) -> None:
    text = fault_of(config_file, "select.prompt=justify")
    assert text.startswith(f"{config_file} with override 'select.prompt=justify': select.prompt: justify ranks")


def test_words_that_yaml_reads_as_true_and_false_are_pointed_out(config_file: Path) -> None:
    text = fault_of(config_file, "task.labels=[yes, no]")
    assert "task.labels.0: Input should be a valid string: YAML reads yes, no" in text
    assert "put the word in quotes (got True)" in text
    assert "YAML reads this as a number; put it in quotes (got 1)" in fault_of(config_file, "task.labels=[1, 2]")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "at least two labels"),
        (["yes"], "at least two labels"),
        (["yes", " "], "a label is empty"),
        (["yes", "no", "yes"], "the labels 'yes' and 'yes' are one and the same"),
        (["yes", "no", "yes "], "the labels 'yes' and 'yes ' are one and the same"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"task.labels: .*{reason}"):
        parse_config({"data": {"path": "x.csv"}, "task": {"type": "label", "labels": labels}})


def test_labels_may_differ_in_case_alone() -> None:
    from semievol.answers import normalize_target, parse_answer
    from semievol.types import Example, TaskFacts

    labels = ("x", "y", "X")
    task = parse_config({"data": {"path": "x.csv"}, "task": {"type": "label", "labels": labels}}).task
    example, facts = Example("1", "Which?", None, ()), TaskFacts(labels=labels)
    assert [parse_answer(f"Answer: {label}", example, task, facts) for label in labels] == list(labels)
    assert [normalize_target(label, example, task, facts).value for label in labels] == list(labels)

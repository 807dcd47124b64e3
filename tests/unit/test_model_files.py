"""What is read from a model's folder without transformers is what transformers makes of the same folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol.backends import hf
from semievol.backends.chat_templates import render_template
from semievol.backends.model_files import open_file_tokenizer, read_shapes
from semievol.backends.tokens import TransformersTokens
from semievol.config import ModelConfig, TransformersGeneratorConfig, parse_config
from semievol.errors import ConfigError
from semievol.identities import weights_identity
from semievol.model_sizes import _build_shapes, model_size
from semievol.surroundings import check_model
from semievol.types import Message, ModelRef

TURNS = (
    Message("system", "  Be brief.\n"),
    Message("user", "Wo ist mein Paket? <b>&amp;</b> ÄÖ 東京 🙂"),
    Message("assistant", "Answer: B"),
    Message("user", "<|im_end|> [SEP] and\ttabs"),
)
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "trimmed": "{{- bos_token }}\n    {%- for m in messages %}\n  {% if loop.first %}\n  ({{ m.role }})\n  {% endif %}"
    "\n{{ m.content | trim }}{{ eos_token }}\n{%- endfor %}\n",
    "generation": "{% for m in messages %}{% generation %} {{ m.content }} {% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}:{{ m | tojson }}{% if ns.n == 2 %}{% break %}{% endif %}{% endfor %}",
    "conditions": "{% if tools is not none %}tools{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}"
    "{{ strftime_now('%Y') }}{{ pad_token }}{{ messages[1:] | length }}",
}


def open_both(folder: str, template: str | None = None):
    opened = open_file_tokenizer(Path(folder), template)
    assert opened is not None
    return opened, hf.open_tokenizer(ModelConfig(path=folder, chat_template=template))


@pytest.fixture(params=["tiny_llama_dir", "tiny_bert_dir", "tiny_qwen_dir", "pocket_dir"])
def folder(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


def test_fingerprint_and_special_tokens_are_those_of_transformers(folder: str) -> None:
    ours, theirs = open_both(folder)
    assert hf.tokenizer_fingerprint(ours) == hf.tokenizer_fingerprint(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_by_transformers(tiny_llama_dir: str, name: str) -> None:
    ours, theirs = open_both(tiny_llama_dir, TEMPLATES[name])
    assert hf.render_prompt(ours, TURNS) == hf.render_prompt(theirs, TURNS)


def test_prompts_have_the_ids_of_transformers(folder: str) -> None:
    ours, theirs = open_both(folder)
    assert hf.render_prompt_ids(ours, TURNS) == hf.render_prompt_ids(theirs, TURNS)


def test_any_text_has_the_ids_of_transformers(pocket_dir: str, tiny_llama_dir: str) -> None:
    pairs = [open_both(pocket_dir), open_both(tiny_llama_dir)]

    @settings(max_examples=60)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def same(text: str) -> None:
        for ours, theirs in pairs:
            assert hf.encode(ours, text) == hf.encode(theirs, text)

    same()


def test_a_template_may_refuse_turns() -> None:
    source = "{{ raise_exception('no system turn') }}"
    with pytest.raises(Exception, match="no system turn"):
        render_template(source, [{"role": "system", "content": ""}], {})


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__.__mro__ }}", "{% set ns = namespace() %}{% set ns._x = 1 %}"]
)
def test_a_template_reaches_nothing_of_python(source: str) -> None:
    from jinja2.exceptions import SecurityError

    with pytest.raises(SecurityError):
        render_template(source, [], {})


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"add_prefix_space": True}),
        ("special_tokens_map.json", {"unk_token": "<never seen>"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<never seen>", "special": True}}}),
        ("tokenizer_config.json", {"chat_template": None}),
        ("tokenizer.json", {"post_processor": None}),
        ("config.json", {"model_type": "mistral"}),
        ("added_tokens.json", {"<new>": 900}),
    ],
)
def test_what_transformers_may_open_otherwise_is_left_to_it(
    pocket_dir: str, tmp_path: Path, file: str, change: dict[str, object]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pocket_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if "chat_template" in change:
        (folder / "chat_template.jinja").unlink()
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))
    assert open_file_tokenizer(folder, None) is None


def test_added_tokens_listed_twice_change_nothing(pocket_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pocket_dir, folder)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    path = folder / "tokenizer_config.json"
    listed = {str(token.pop("id")): token for token in added}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": listed}))
    ours, theirs = open_both(str(folder))
    assert hf.tokenizer_fingerprint(ours) == hf.tokenizer_fingerprint(theirs)
    assert hf.render_prompt_ids(ours, TURNS) == hf.render_prompt_ids(theirs, TURNS)


def test_tokens_of_another_tokenizer_class_come_from_transformers(tiny_mistral_dir: str) -> None:
    model = ModelConfig(path=tiny_mistral_dir)
    tokens = TransformersTokens(TransformersGeneratorConfig(), model)
    tokenizer = hf.open_tokenizer(model)
    assert tokens.fingerprint == hf.tokenizer_fingerprint(tokenizer)
    assert tokens.count_prompt(TURNS) == len(hf.render_prompt_ids(tokenizer, TURNS))


def test_positions_of_the_config_bound_the_length(tiny_llama_dir: str) -> None:
    assert hf.resolve_max_length(ModelConfig(path=tiny_llama_dir)) == 512
    with pytest.raises(ConfigError, match="513 is more than the 512 positions"):
        hf.resolve_max_length(ModelConfig(path=tiny_llama_dir, max_length=513))


def test_sizes_from_weight_files_are_those_of_the_model(folder: str) -> None:
    data = dict.fromkeys(("labeled", "unlabeled", "test"), "rows.csv")
    config = parse_config({"data": data, "model": {"path": folder}, "output_dir": "run", "task": {"type": "text"}})
    read, built = read_shapes(Path(folder)), _build_shapes(config, folder)
    assert read is not None
    assert (read.architecture, read.n_parameters) == (built.architecture, built.n_parameters)
    tied = ("cls.predictions.decoder", "lm_head")
    assert {k: v for k, v in read.linear.items() if k not in tied} == {
        k: v for k, v in built.linear.items() if k not in tied
    }
    assert {name: read.config.get(name, value) for name, value in built.config.items()} == built.config
    assert model_size(config).n_adapter > 0


def test_damaged_weights_are_one_clear_error(tiny_llama_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    data = dict.fromkeys(("labeled", "unlabeled", "test"), "rows.csv")
    config = parse_config({"data": data, "model": {"path": str(folder), "device": "cpu"}, "task": {"type": "text"}})
    (fault,) = check_model(config)[0]
    assert fault.startswith(f"model.path: the weights in {folder} are damaged (")
    with pytest.raises(ConfigError, match=f"{folder}"):
        hf.open_model(config.model, ModelRef(str(folder)))


def test_checking_the_demo_imports_neither_torch_nor_transformers(pocket_dir: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from semievol.demo.running import prepare_demo\n"
        "from semievol.checking import check_run\n"
        "overrides = ['model.device=cpu', f'model.path={sys.argv[2]}']\n"
        "config = prepare_demo('tickets', seed=0, output_dir=Path(sys.argv[1]), overrides=overrides)\n"
        "found = check_run(config)\n"
        "assert not found.faults and found.memory and found.model, found.faults\n"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'matplotlib') if m in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), pocket_dir]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("path", ["./nothere", "../nothere", "/no/where", "a/b/c", "models/nothere/"])
def test_model_path_that_can_only_be_a_folder_has_to_be_there(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model.path: there is no folder .*; give the folder of a model"):
        hf.resolve_model_path(path)


def test_model_path_below_home_counts_by_content_like_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"weights")
    model = ModelConfig(path="~/mine")
    assert model.path == str(tmp_path / "mine")
    assert weights_identity(model.path) is not None


def test_model_path_may_be_a_folder_or_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for path in ("./models/mine", "models/mine", "meta-llama/Llama-3.1-8B-Instruct", "gpt2"):
        assert hf.resolve_model_path(path) == path


def test_model_path_is_no_file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model.safetensors is a file; give the folder that holds the model"):
        hf.resolve_model_path(str(tmp_path / "model.safetensors"))

"""What `transformers serve` does with requests that it does not fully understand; the reason to probe servers."""

import pytest

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.slow


@pytest.fixture
def client(transformers_serve):
    with openai.OpenAI(base_url=transformers_serve.base_url, api_key="none", max_retries=0) as client:
        yield client


def test_transformers_serve_drops_n_and_logprobs_silently(client, transformers_serve):
    answer = client.chat.completions.create(
        model=transformers_serve.model,
        messages=[{"role": "user", "content": "Choose the right option."}],
        n=3,
        logprobs=True,
        top_logprobs=5,
        max_tokens=5,
        seed=1,
    )
    assert len(answer.choices) == 1
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 5


@pytest.fixture
def config(transformers_serve):
    from semievol.config import OpenAIGeneratorConfig

    return OpenAIGeneratorConfig(base_url=transformers_serve.base_url, api_key_env=None)


def test_the_probe_notices_and_every_sample_is_asked_for_alone(config, transformers_serve, tmp_path):
    import json

    from semievol.backends.base import open_generator
    from semievol.config import ModelConfig
    from semievol.types import Message, ModelRef, Request, Sampling

    name = transformers_serve.model
    with open_generator(config, ModelConfig(path=name), state_dir=tmp_path) as generator:
        assert not generator.gives_logprobs
        asked = [Request("r", (Message("user", "Choose the right option."),), ModelRef(name), 1)]
        (result,) = generator.generate(asked, Sampling(n=3, temperature=1.0, max_tokens=5))
    assert len(result.completions) == 3
    assert all(c.logprob_kind == "none" and not c.token_logprobs for c in result.completions)
    (found,) = json.loads((tmp_path / "probe.json").read_text()).values()
    assert found["abilities"]["logprobs"] is False


def test_a_run_that_insists_on_logprobs_is_refused(config, transformers_serve, tmp_path):
    from semievol.backends.base import open_generator
    from semievol.config import ModelConfig
    from semievol.errors import ConfigError

    strict = config.model_copy(update={"logprobs": "require"})
    model = ModelConfig(path=transformers_serve.model)
    with (
        pytest.raises(ConfigError, match="gives no log-probabilities"),
        open_generator(strict, model, state_dir=tmp_path) as generator,
    ):
        assert not generator.gives_logprobs

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

"""What the SDK sends and what the emulator answers, held against OpenAI's OpenAPI document.

The document is not part of this project: it is `openapi.json` of github.com/openai/openai-openapi, in a folder of data
beside the checkout, where there is one, or where OPENAI_OPENAPI names it; without it these tests are skipped.
"""

import json
import os
import re
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")
jsonschema = pytest.importorskip("jsonschema")

SPEC = Path(os.environ.get("OPENAI_OPENAPI", Path(__file__).parents[3] / "shared" / "openai" / "openapi.json"))
MODEL = "gpt-4o-mini-2024-07-18"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Question: where? #B\nA. here\nB. there"}], "seed": 1}
ROUTES = [
    "GET /models",
    "GET /models/{model}",
    "POST /chat/completions",
    "POST /embeddings",
    "POST /files",
    "GET /files",
    "GET /files/{file_id}",
    "DELETE /files/{file_id}",
    "POST /batches",
    "GET /batches",
    "GET /batches/{batch_id}",
    "POST /batches/{batch_id}/cancel",
    "POST /fine_tuning/jobs",
    "GET /fine_tuning/jobs",
    "GET /fine_tuning/jobs/{fine_tuning_job_id}",
    "POST /fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    "POST /fine_tuning/jobs/{fine_tuning_job_id}/pause",
    "POST /fine_tuning/jobs/{fine_tuning_job_id}/resume",
    "GET /fine_tuning/jobs/{fine_tuning_job_id}/events",
    "GET /fine_tuning/jobs/{fine_tuning_job_id}/checkpoints",
]


@pytest.fixture(scope="module")
def spec():
    if not SPEC.is_file():
        pytest.skip(f"OpenAI's OpenAPI document is not at {SPEC}")
    document = _without_draft_4(json.loads(SPEC.read_text(encoding="utf-8")))
    states = document["components"]["schemas"]["FineTuningJob"]["properties"]["status"]["enum"]
    states.append("paused")  # which the document's own example of /pause has
    return document


def _without_draft_4(node):
    """The document says `exclusiveMinimum: true`, which its own schema dialect reads as a number."""
    if isinstance(node, list):
        return [_without_draft_4(x) for x in node]
    if not isinstance(node, dict):
        return node
    node = {k: _without_draft_4(v) for k, v in node.items()}
    if node.get("exclusiveMinimum") is True:
        node["exclusiveMinimum"] = node.pop("minimum")
    return node


@pytest.fixture(scope="module")
def check(spec):
    """Give a pointer into the document and an object, get what is wrong with the object."""
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    resource = Resource.from_contents(spec, default_specification=DRAFT202012)
    registry = Registry().with_resource("urn:openai", resource)

    def errors(pointer, value):
        validator = jsonschema.Draft202012Validator({"$ref": f"urn:openai#{pointer}"}, registry=registry)
        return [f"{e.json_path}: {e.message[:200]}" for e in validator.iter_errors(value)]

    return errors


@pytest.fixture(scope="module")
def exchanges(spec, emulator):
    """Every route once or more: (method, path, status, request body, response body)."""
    emulator.reset()
    seen = []

    def keep(response):
        response.read()
        request = response.request
        if response.headers.get("content-type") == "application/json":
            sent = request.read() if request.headers.get("content-type") == "application/json" else b""
            path = request.url.path.removeprefix("/v1")
            body = json.loads(sent) if sent else None
            seen.append((request.method, path, response.status_code, body, response.json()))

    http_client = openai.DefaultHttpxClient(event_hooks={"response": [keep]})
    with openai.OpenAI(
        base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0, http_client=http_client
    ) as client:
        _use_models(client)
        _use_batches(client)
        _use_jobs(client)
        _ask_wrongly(client)
        _ask_with(client, emulator, rate_limit=1)
        _ask_with(client, emulator, quota=1)
        _ask_with(client, emulator, server_error=1)
    return seen


def _use_models(client):
    client.models.list()
    client.models.retrieve(MODEL)
    client.chat.completions.create(**CHAT, n=2, logprobs=True, top_logprobs=3, temperature=0.5, max_completion_tokens=8)
    client.chat.completions.create(**CHAT, stop=["A"], top_p=0.9, max_tokens=8)
    for encoding in ("float", "base64"):
        client.embeddings.create(model="text-embedding-3-small", input=["card lost"], encoding_format=encoding)


def _use_batches(client):
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    wrong = line | {"custom_id": "2", "body": CHAT | {"n": 0}}
    data = "".join(json.dumps(row) + "\n" for row in (line, wrong)).encode()
    file = client.files.create(file=("batch.jsonl", data), purpose="batch")
    client.files.retrieve(file.id)
    client.files.list()
    endpoint = "/v1/chat/completions"
    start = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h", "metadata": {"a": "b"}}
    client.batches.cancel(client.batches.create(**start).id)
    batch = client.batches.create(**start)
    while client.batches.retrieve(batch.id).status != "completed":
        pass
    client.batches.list()
    refused = client.batches.create(**start | {"endpoint": "/v1/embeddings"})
    assert client.batches.retrieve(refused.id).status == "failed"
    client.files.delete(file.id)


def _use_jobs(client):
    turns = [{"role": "user", "content": "Where? #A"}, {"role": "assistant", "content": "Answer: A"}]
    ids = []
    for n in (12, 9):
        data = (json.dumps({"messages": turns}) + "\n").encode() * n
        ids.append(client.files.create(file=("train.jsonl", data), purpose="fine-tune").id)
    jobs = client.fine_tuning.jobs
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}}
    start = {"model": MODEL, "training_file": ids[0], "seed": 1, "suffix": "warm", "metadata": {"a": "b"}}
    job = jobs.create(**start, method=method)
    jobs.pause(job.id)
    jobs.retrieve(job.id)
    jobs.resume(job.id)
    while jobs.retrieve(job.id).status != "succeeded":
        pass
    jobs.list_events(job.id)
    jobs.checkpoints.list(job.id)
    jobs.cancel(jobs.create(**start).id)
    assert jobs.retrieve(jobs.create(**start | {"training_file": ids[1]}).id).status == "failed"
    jobs.list()
    client.models.list()


def _ask_wrongly(client):
    for wrong in ({"model": "gpt-9"}, {"n": 1000}, {"top_logprobs": 5}, {"extra_body": {"top_k": 3}}):
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(**CHAT | wrong)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def _ask_with(client, emulator, **faults):
    emulator.set_faults(**faults)
    with pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**CHAT)


def _template(spec, path):
    fits = [t for t in spec["paths"] if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", t), path)]
    return min(fits, key=lambda t: t.count("{"))


def _pointer(template, method):
    return f"/paths/{template.replace('/', '~1')}/{method.lower()}".replace("{", "%7B").replace("}", "%7D")


@pytest.mark.parametrize("route", ROUTES)
def test_answers_are_valid(spec, check, exchanges, route):
    method, template = route.split()
    of_route = [e for e in exchanges if e[0] == method and _template(spec, e[1]) == template and e[2] == 200]
    assert of_route, "the route was not used"
    for _, path, _, _, body in of_route:
        if template == "/embeddings" and isinstance(body["data"][0]["embedding"], str):
            continue  # the document knows no base64
        pointer = f"{_pointer(template, method)}/responses/200/content/application~1json/schema"
        assert check(pointer, body) == [], (path, body)


def test_requests_are_valid(spec, check, exchanges):
    sent = [e for e in exchanges if e[3] is not None and e[2] == 200]
    assert {e[1] for e in sent} == {"/chat/completions", "/embeddings", "/batches", "/fine_tuning/jobs"}
    for method, path, _, body, _ in sent:
        pointer = f"{_pointer(_template(spec, path), method)}/requestBody/content/application~1json/schema"
        assert check(pointer, body) == [], (path, body)


def test_errors_have_the_api_shape(check, exchanges):
    failed = [e for e in exchanges if e[2] != 200]
    assert sorted({e[2] for e in failed}) == [400, 401, 404, 429, 500]
    for _, path, status, _, body in failed:
        assert check("/components/schemas/ErrorResponse", body) == [], (path, status, body)


def test_the_check_finds_a_wrong_status(check, exchanges):
    job = next(e[4] for e in exchanges if e[0] == "POST" and e[1] == "/fine_tuning/jobs")
    assert check("/components/schemas/FineTuningJob", job) == []
    assert check("/components/schemas/FineTuningJob", job | {"status": "done"}) != []

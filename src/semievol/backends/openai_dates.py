"""What is known of OpenAI's own end of fine-tuning, with dates; it says nothing about any other server.

Read on 2026-11-22 in OpenAI's deprecations page (developers.openai.com/api/docs/deprecations) and mirrors of it. The
dates explain a refusal and warn ahead of one. They never forbid a request: OpenAI may move them.
"""

from datetime import date
from urllib.parse import urlsplit

OPENAI_HOST = "api.openai.com"
NEW_JOBS_END = date(2027, 1, 6)
"""From this day on nobody can start a fine-tuning job."""
RETIRED = {
    "gpt-4.1-nano": date(2026, 10, 23),
    "gpt-4o-mini": date(2027, 1, 14),
    "gpt-4.1-mini": date(2027, 1, 14),
}
"""Day on which a base stops answering, and every model that was tuned from it."""
REMEDY = (
    "train an open model with trainer.type: trl, or set trainer.base_url to another server that takes fine-tuning "
    "jobs, such as Azure, which goes on for its customers"
)


def is_openai(base_url: str) -> bool:
    """Whether requests go to OpenAI itself."""
    return urlsplit(str(base_url)).hostname == OPENAI_HOST


def fine_tuning_notice(base_url: str, model: str, today: date) -> str | None:
    """What someone about to train should know, or None: other server, and no end in sight."""
    if not is_openai(base_url):
        return None
    retired = retirement(model)
    if retired is not None and today >= retired:
        return f"OpenAI retired {model} on {retired}: it can be neither tuned nor asked; {REMEDY}"
    if today >= NEW_JOBS_END:
        return f"OpenAI has taken no new fine-tuning jobs since {NEW_JOBS_END}; {REMEDY}"
    ends = f"OpenAI takes new fine-tuning jobs until {NEW_JOBS_END} and already refuses organisations new to them"
    if retired is not None:
        ends += f"; {model} and the models tuned from it stop answering on {retired}"
    return f"{ends}. After that: {REMEDY}"


def explain_refusal(base_url: str, model: str, today: date, words: str) -> str:
    """The message for a job that the server refused to start, in its own words and with what is known."""
    notice = fine_tuning_notice(base_url, model, today)
    text = f"the server at {base_url} refuses to fine-tune {model}: {words}"
    if notice is not None:
        return f"{text}\n{notice}"
    return f"{text}; check that model.path names a model that this server can tune and that the key may do so"


def retirement(model: str) -> date | None:
    """Day on which a model of OpenAI stops answering, if one is known; `ft:` names count as their base."""
    base = model.split(":")[1] if model.startswith("ft:") and model.count(":") else model
    for name, day in RETIRED.items():
        rest = base.removeprefix(name)
        if base.startswith(name) and (not rest or rest.startswith("-2")):  # a snapshot: -2024-07-18
            return day
    return None

"""Uploads as the SDK's HTTP library writes them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")
httpx2 = pytest.importorskip("httpx2")

from tests.emulator.errors import ApiError  # noqa: E402
from tests.emulator.files import read_form  # noqa: E402


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary() | st.sampled_from([b"", b"\r\n", b"--", b"\r\n--x\r\n", b"a\r\n\r\nb\n"]),
    purpose=st.text(st.characters(codec="ascii", categories=["L", "N"])),
)
def test_read_form_gives_back_what_was_sent(data, purpose):
    request = httpx2.Request("POST", "http://x/", files={"file": ("rows.jsonl", data)}, data={"purpose": purpose})
    form = read_form(request.headers["content-type"], request.read())
    assert form == ({"purpose": purpose}, "rows.jsonl", data)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data; boundary=x"])
def test_read_form_without_a_file_is_refused(content_type):
    with pytest.raises(ApiError, match="'file' is a required property"):
        read_form(content_type, b"{}")

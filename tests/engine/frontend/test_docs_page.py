"""The page at /docs."""

import html
import re
import shlex

import pytest

from tests.engine.frontend.conftest import RunningFrontEnd


@pytest.fixture(scope="module")
def page(shared: RunningFrontEnd) -> str:
    response = shared.http.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text


def test_it_needs_nothing_from_elsewhere(page: str):
    assert "<script" not in page
    assert not re.search(r"(src|href)=.?https?:", page)


def test_every_path_has_an_example_that_works_as_it_stands(shared: RunningFrontEnd, page: str):
    paths = shared.http.get("/openapi.json").json()["paths"]
    examples = [html.unescape(each) for each in re.findall("<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(examples) == len(paths)
    for path, example in zip(paths, examples, strict=True):
        curl, url, *options = shlex.split(example.replace("\\\n", ""))
        assert (curl, url) == ("curl", f"{shared.url}{path.replace('{model}', 'test')}")
        if options:
            _, header, _, body = options
            headers = dict([header.split(": ")])
            assert shared.http.post(url, content=body, headers=headers).status_code == 200
        else:
            assert shared.http.get(url).status_code == 200


def test_an_address_is_quoted_for_the_shell(shared: RunningFrontEnd):
    page = shared.http.get("/docs", headers={"Host": "x;id"}).text
    assert "curl &#39;http://x;id/health&#39;" in page


def names(page: str, heading: str) -> list[str]:
    """What the table under a heading tells of, in order."""
    (section,) = re.findall(rf"<h2[^>]*>(?:<code>)?{heading}<.*?</table>", page, re.DOTALL)
    return re.findall("<tr><td><code>(.*?)</code>", section)


def test_required_parameters_come_first(page: str):
    assert names(page, "POST /v1/chat/completions")[:3] == ["model", "messages", "stream"]
    assert names(page, "POST /v1/completions")[:3] == ["model", "prompt", "stream"]


def test_what_parameters_hold_is_explained_and_linked(page: str):
    assert names(page, "ChatMessage") == ["role", "content"]
    assert names(page, "StreamOptions") == ["include_usage", "continuous_usage_stats"]
    assert names(page, "TextPart") == ["type", "text"]
    objects = {"ChatMessage", "StreamOptions", "TextPart"}
    assert set(re.findall('href="#(.*?)"', page)) == objects
    assert set(re.findall('id="(.*?)"', page)) == objects


def test_no_parameter_is_without_a_meaning(page: str):
    assert len(re.findall("<tr><td>", page)) > 20
    assert not re.search(r"<td>\s*(<tr>|</table>)", page)


def test_every_parameter_is_on_the_page(shared: RunningFrontEnd, page: str):
    schemas = shared.http.get("/openapi.json").json()["components"]["schemas"]
    for schema in schemas.values():
        for name in schema["properties"]:
            assert f"<code>{name}</code>" in page


def test_marks_of_code_are_not_shown(page: str):
    assert "`" not in page
    assert "as in <code>/v1/models</code>." in page

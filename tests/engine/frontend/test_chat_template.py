"""What we render is what transformers renders."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from engine.checkpoints.tiny import CHAT_TEMPLATE
from engine.errors import ModelError
from engine.frontend.chat_template import ChatTemplate, read_chat_template
from engine.frontend.errors import InvalidRequest

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief & <b>bold</b>."},
    {"role": "user", "content": 'Say "hi"\n\n  twice  '},
    {"role": "assistant", "content": "hi ✓"},
    {"role": "user", "content": "Again"},
]
LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system = '' %}
{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + (system if loop.first else '') }}
        {{ message['content'] + ' [/INST]' }}
    {% else %}
        {% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "llama 2": LLAMA_2,
    "json": "{{ messages | tojson }}{{ {'ü': [1, 2]} | tojson(indent=2, sort_keys=true) }}",
    "absent": "{% if tools is not none %}tools{% endif %}{{ documents }}{{ pad_token }}"
    "{% if tools is defined %}defined{% endif %}{{ add_generation_prompt }}",
    "date": "{{ strftime_now('%Y') }}",
    "loop": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}\n"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_renders_as_in_transformers(source: str):
    options: dict[str, Any] = {"add_generation_prompt": True, **SPECIAL}
    rendered: Any = render_jinja_template([MESSAGES], chat_template=source, **options)
    assert ChatTemplate(source, SPECIAL).render(MESSAGES) == rendered[0][0]


def test_what_a_template_refuses_is_the_clients_fault():
    template = ChatTemplate(LLAMA_2, SPECIAL)
    with pytest.raises(InvalidRequest, match="Roles must alternate user/assistant") as caught:
        template.render([{"role": "assistant", "content": "hi"}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.os }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str):
    with pytest.raises(InvalidRequest, match="refuses"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_broken_template_is_an_error_of_the_model():
    with pytest.raises(ModelError, match="chat template, line 2"):
        ChatTemplate("{% if a %}\n{% endfor %}", {})


@pytest.mark.parametrize(
    ("config", "rendered"),
    [
        ({"chat_template": "one {{ eos_token }}", "eos_token": "</s>"}, "one </s>"),
        ({"chat_template": "{{ eos_token }}", "eos_token": {"content": "</s>"}}, "</s>"),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "tools"},
                    {"name": "default", "template": "plain"},
                ]
            },
            "plain",
        ),
    ],
)
def test_templates_are_found_in_the_tokenizers_config(tmp_path: Path, config, rendered):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = read_chat_template(tmp_path)
    assert template is not None
    assert template.render(MESSAGES) == rendered


def test_a_template_of_its_own_comes_first(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    (tmp_path / "chat_template.jinja").write_text("new")
    template = read_chat_template(tmp_path)
    assert template is not None
    assert template.render(MESSAGES) == "new"


def test_a_model_may_have_none(tmp_path: Path):
    assert read_chat_template(tmp_path) is None


TRIMMED = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}"
SWITCHED = "{{ messages[-1].content }}{% if enable_thinking %}<think>{% endif %}{{ depth }}"


@pytest.mark.parametrize("content", ["Well", "Well,  ", "  Well", "a CONTINUE b", ""])
@pytest.mark.parametrize("source", [CHAT_TEMPLATE, TRIMMED])
def test_a_message_is_continued_as_in_transformers(source: str, content: str):
    messages: list[Any] = [*MESSAGES, {"role": "assistant", "content": content}]
    rendered: Any = render_jinja_template(
        [messages], chat_template=source, continue_final_message=True
    )
    template = ChatTemplate(source, {})
    ours = template.render(messages, adds_generation_prompt=False, continues_last=True)
    assert ours == rendered[0][0]


def test_a_message_that_the_template_does_not_show_cannot_be_continued():
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        ChatTemplate("nothing", {}).render(MESSAGES, continues_last=True)


def test_requests_set_variables_of_the_template():
    template = ChatTemplate(SWITCHED, {"depth": "special"})
    assert template.render(MESSAGES) == "Againspecial"
    assert template.render(MESSAGES, {"enable_thinking": True, "depth": 3}) == "Again<think>3"


@pytest.mark.parametrize("value", [5, None, [1], {"a": 1}, "\ud800"])
def test_variables_that_a_template_cannot_take_are_the_clients_fault(value: Any):
    with pytest.raises(InvalidRequest) as caught:
        ChatTemplate("{{ 'x' + value }}", {}).render(MESSAGES, {"value": value})
    assert (caught.value.param, caught.value.status) == ("chat_template_kwargs", 400)

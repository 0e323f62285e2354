"""Chat templates render as transformers renders them, and cannot leave their sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.runtime.tokenizer_files import byte_level, write_tokenizer
from truecast.errors import InputError
from truecast.runtime.chat import ChatTemplate
from truecast.runtime.text import TextCodec

EACH = "{% for m in messages %}"
TEMPLATES = {
    "plain": "{{ bos_token }}" + EACH + "<|{{ m.role }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "trimming": "{%- for m in messages %}\n    {%- if loop.first %}\nA{% endif %}\n  {{ m.content }}\n{% endfor %}",
    "indented": "a\n    {% if true %}\n  b\n    {% endif %}\nc",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "loop controls": EACH + "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": EACH + "{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tools": "{% if tools is not none %}{{ tools[0].name }}{% else %}none{% endif %}{{ documents is none }}",
    "date": "{{ strftime_now('%Y') }}",
    "methods": "{{ messages[-1]['content'].split('t')[0].lstrip().upper() }}{{ messages[0].get('x', 'y') }}",
}
MESSAGES = [
    {"role": "system", "content": "Be <brief> & “kind”."},
    {"role": "user", "content": " what is it? "},
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [{"name": "search"}]])
def test_a_conversation_is_rendered_as_transformers_renders_it(
    tmp_path: Path, name: str, tools: list[dict[str, Any]] | None
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path, byte_level(), chat_template=TEMPLATES[name])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(MESSAGES, tools=tools, tokenize=False, add_generation_prompt=True)
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    assert ChatTemplate(TEMPLATES[name], special).render(MESSAGES, tools=tools) == expected
    codec = TextCodec.open(folder)
    assert codec.encode_chat(MESSAGES, tools=tools) == tokenizer.encode(expected, add_special_tokens=False)


def test_the_template_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, byte_level(), chat_template="config")
    (folder / "chat_template.jinja").write_text("file")
    codec = TextCodec.open(folder)
    assert codec.decode(codec.encode_chat(MESSAGES)) == "file"


def test_the_other_places_of_a_template(tmp_path: Path) -> None:
    named = write_tokenizer(tmp_path / "a", byte_level(), chat_template=[{"name": "default", "template": "named"}])
    older = write_tokenizer(tmp_path / "b", byte_level())
    (older / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    for folder, text in ((named, "named"), (older, "older")):
        codec = TextCodec.open(folder)
        assert codec.has_chat_template
        assert codec.decode(codec.encode_chat(MESSAGES)) == text


def test_without_a_template_chat_is_refused(tmp_path: Path) -> None:
    codec = TextCodec.open(write_tokenizer(tmp_path, byte_level()))
    assert not codec.has_chat_template
    with pytest.raises(InputError, match="no chat template"):
        codec.encode_chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages[0].nothing.more }}", "refuses"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_said(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatTemplate(template, {}).render(MESSAGES)


def test_a_template_that_is_not_valid_is_refused_when_opened() -> None:
    with pytest.raises(InputError, match="not valid"):
        ChatTemplate("{% for %}", {})


ENDLESS = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "an exponential macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "a macro of itself": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a long text": "{{ 'a' * 99999999999 }}",
    "a long list": "{% set x = [0] * 99999999999 %}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling sums": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling blocks": "{% set n = namespace(s='a') %}{% for i in range(99) %}"
    "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "a width": "{{ '%99999999999d' % 1 }}",
    "a width in braces": "{{ '{:99999999999}'.format(1) }}",
    "a padded text": "{{ 'a'.ljust(99999999999) }}",
    "a centred text": "{{ 'a'|center(99999999999) }}",
    "a joined text": "{{ range(9999)|join('x' * 99999) }}",
    "a replaced text": "{{ ('a' * 9999)|replace('a', 'b' * 99999) }}",
    "division by zero": "{{ 1 / 0 }}",
    "overflow": "{{ 2.0 ** 99999 }}",
    "nested blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "nested brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a wrong argument": "{{ strftime_now(3) }}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_fails_or_does_not_end_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=r"The chat template (is not valid|refuses this conversation)"):
        ChatTemplate(ENDLESS[kind], {}).render([])


def test_bounded_operations_give_what_jinja2_gives() -> None:
    source = (
        "{{ [1, 2]|join(', ') }} {{ messages|join('-', attribute='role') }} {{ 'aXbX'|replace('X', 'y') }} "
        "{{ 'aXbX'.replace('X', 'y', 1) }} {{ ','.join(['a', 'b']) }} {{ '%s' % 3 }} {{ '{}-{}'.format(1, 2) }} "
        "{{ 'ab\ncd'|indent }} {{ 'a,b,c'.split(',', 1) }} {{ 'x'|center(5) }} {{ 1 ~ 'a' ~ none }} {{ [1] + [2] }} "
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}"
        "{% for k, v in messages[0]|dictsort %}{{ k }}{% endfor %}"
        "{% for x in messages|map(attribute='role') %}{{ x }}{% endfor %}"
    )
    plain = ImmutableSandboxedEnvironment().from_string(source).render(messages=MESSAGES)
    assert ChatTemplate(source, {}).render(MESSAGES) == plain

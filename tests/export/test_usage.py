"""Modelfile and card lines: the written template says what the model's own says, or is left out."""

from __future__ import annotations

import re

import jinja2
import pytest

from clp_edge.export.gguf.usage import chat_parts, modelfile, stops, usage
from tests.export.models import CHATML, tiny_tokenizer

LOOP = "{% for m in messages %}"
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind<|done|>\n{% endif %}"
    + CHATML
)
WITH_BOS = (
    "{{ bos_token }}"
    + LOOP
    + "[{{ m['role'] }}]\n\n{{ m['content'] }}<|done|>{% endfor %}"
    + "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
TRIMMED = CHATML.replace("m['content']", "m['content'] | trim")
LAST_DIFFERS = (
    LOOP
    + "{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' and loop.last %}<|done|>"
    + "{% else %}\n{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
BRACES = CHATML.replace("'<|im_start|>' +", "'{' + '{' +")


def told(template, *, adds_bos=False):
    tokenizer = tiny_tokenizer("smollm", adds_bos=adds_bos, chat=False)
    tokenizer.chat_template = template
    return tokenizer


def ollama(text, messages):
    """The few words of Go's template language that are written, by way of Jinja."""
    ends = []

    def word(match):
        said = match[1].strip()
        if said == "end":
            return ends.pop()
        if said == ".Content":
            return "{{ m.content }}"
        if said == "range .Messages":
            ends.append("{% endfor %}")
            return "{% for m in messages %}"
        ends.append("{% endif %}")
        role = re.fullmatch(r'if eq \.Role "(\w+)"', said)
        assert role or said == "if not .System", said
        return f"{{% if m.role == '{role[1]}' %}}" if role else "{% if not system %}"

    made = re.sub(r"{{(.*?)}}", word, text)
    assert not ends
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    return jinja2.Template(made, keep_trailing_newline=True).render(
        messages=messages, system=system
    )


@pytest.mark.parametrize(
    ("template", "adds_bos"),
    [(CHATML, False), (WITH_DEFAULT, False), (TRIMMED, False), (WITH_BOS, True), (WITH_BOS, False)],
)
@pytest.mark.parametrize("roles", [["user"], ["system", "user", "assistant", "user"]])
def test_ollamas_template_says_what_the_models_own_says(template, adds_bos, roles):
    tokenizer = told(template, adds_bos=adds_bos)
    messages = [{"role": r, "content": f"Line {i}\n 2"} for i, r in enumerate(roles)]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    written = re.search(r'^TEMPLATE """(.*?)"""$', modelfile("m.gguf", tokenizer), re.M | re.S)
    said = ollama(written[1], messages)
    assert ("<|im_start|>" if adds_bos else "") + said == own  # llama.cpp adds the BOS itself


@pytest.mark.parametrize("template", [LAST_DIFFERS, NO_SYSTEM, DATED, BRACES])
def test_a_template_that_is_more_than_parts_is_left_out(template):
    tokenizer = told(template)
    assert chat_parts(tokenizer) is None
    text = modelfile("m.gguf", tokenizer)
    assert "TEMPLATE" not in text
    assert "# The chat template" in text


def test_the_rest_of_the_modelfile():
    plain = told(None)
    assert modelfile("m.Q4_0.gguf", plain) == (
        'FROM ./m.Q4_0.gguf\nPARAMETER stop "<|endoftext|>"\n'
    )
    assert stops(told("{{ raise_exception('no') }}")) == ("<|endoftext|>",)
    assert stops(told(CHATML)) == ("<|done|>", "<|endoftext|>")


def test_the_cards_lines_name_the_files():
    text = usage("gguf/My.Q4_K_M.gguf")
    assert "llama-cli -m gguf/My.Q4_K_M.gguf" in text
    assert "llama-server -m gguf/My.Q4_K_M.gguf" in text
    assert "ollama create my.q4_k_m -f gguf/My.Q4_K_M.Modelfile" in text

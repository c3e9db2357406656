"""How to run a GGUF file: a Modelfile for Ollama, and the lines for the model card.

Ollama knows the chat templates of well-known models by their text and takes plain text for any
other, so the template is written out in its own language wherever that is exact: the parts around
each message are read off the tokenizer's template, and the written one must then give the same text
for several conversations. Where it does not - another rule for the last message, a date, no
system message allowed - no template is written, and the file says so. Only white space at the ends
of a message stays where some models' own templates trim it. Reference: https://docs.ollama.com/modelfile

>>> modelfile("m.Q4_K_M.gguf", tokenizer).splitlines()[0]                  # doctest: +SKIP
'FROM ./m.Q4_K_M.gguf'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from jinja2.exceptions import TemplateError

from clp_edge.errors import ClpEdgeError
from clp_edge.export.gguf.tokenizer import added_ends, end_of_turn

_ASKED = (  # roles of the conversations that the written template must get right
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_UNSAFE = ('"""', "{{", "}}")
_CHANGES = ("strftime_now", "date_string")


@dataclass(frozen=True)
class ChatParts:
    """What a chat template puts around the messages."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    unasked: str
    """what comes first where no system message is given"""
    answer: str
    """what the model continues"""

    def render(self, turns: Sequence[tuple[str, str]]) -> str:
        """The conversation as `template` makes Ollama write it; (role, content) pairs."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        texts = [around[role][0] + content + around[role][1] for role, content in turns]
        first = self.unasked if turns[0][0] != "system" else ""
        return first + "".join(texts) + self.answer

    def template(self) -> str:
        """The same in Go's template language, as Ollama reads it."""
        turns = "".join(
            f'{{{{ if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'
            for role, (before, after) in (
                ("system", self.system),
                ("user", self.user),
                ("assistant", self.assistant),
            )
        )
        unasked = f"{{{{ if not .System }}}}{self.unasked}{{{{ end }}}}" if self.unasked else ""
        return f"{unasked}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{self.answer}"


def chat_parts(tokenizer: Any) -> ChatParts | None:
    """The parts of the tokenizer's chat template; None where it is more than such parts.

    The BOS that the runtime adds on its own is left out.
    """
    source = str(getattr(tokenizer, "chat_template", None) or "")
    if not source or any(word in source for word in _CHANGES):
        return None
    try:
        found = _read(tokenizer)
        if found is None:
            return None
        for roles in _ASKED:
            turns = [(role, f"{role}  number {i},") for i, role in enumerate(roles)]
            if _rendered(tokenizer, turns, answer=True) != found.render(turns):
                return None
    except (TemplateError, TypeError, ValueError):
        return None
    before, _ = added_ends(tokenizer)
    bos = tokenizer.decode(before) if before else ""
    found = replace(
        found,
        system=(found.system[0].removeprefix(bos), found.system[1]),
        unasked=found.unasked.removeprefix(bos),
    )
    literals = (*found.system, *found.user, *found.assistant, found.unasked, found.answer)
    return None if any(mark in text for text in literals for mark in _UNSAFE) else found


def _rendered(tokenizer: Any, turns: Sequence[tuple[str, str]], *, answer: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    made: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer
    )
    return made


def _read(tokenizer: Any) -> ChatParts | None:
    """What stands around marked messages, taken apart by what one message more adds."""
    system, user, reply, more = "<<S>>", "<<U>>", "<<A>>", "<<V>>"
    whole = _rendered(
        tokenizer,
        [("system", system), ("user", user), ("assistant", reply), ("user", more)],
        answer=True,
    )
    pieces = []
    for mark in (system, user, reply, more):
        before, found, whole = whole.partition(mark)
        if not found:
            return None
        pieces.append(before)
    pieces.append(whole)
    alone = _rendered(tokenizer, [("user", user)], answer=False)
    first, _, user_end = alone.partition(user)
    answered = _rendered(tokenizer, [("user", user), ("assistant", reply)], answer=False)
    reply_end = answered.partition(reply)[2]
    user_begin = pieces[3].removeprefix(reply_end)
    return ChatParts(
        system=(pieces[0], pieces[1].removesuffix(user_begin)),
        user=(user_begin, user_end),
        assistant=(pieces[2].removeprefix(user_end), reply_end),
        unasked=first.removesuffix(user_begin),
        answer=pieces[4].removeprefix(user_end),
    )


def stops(tokenizer: Any) -> tuple[str, ...]:
    """The texts of the tokens that end an answer: the chat turn's and the model's own."""
    try:
        turn = end_of_turn(tokenizer)
    except ClpEdgeError:  # the template renders no answer
        turn = None
    found: list[str] = []
    for token in (turn, tokenizer.eos_token_id):
        if token is not None:
            text = tokenizer.convert_ids_to_tokens(int(token))
            if text and text not in found and '"' not in text:
                found.append(text)
    return tuple(found)


def modelfile(file_name: str, tokenizer: Any) -> str:
    """The Modelfile for a GGUF file in the same folder: `ollama create NAME -f MODELFILE`."""
    lines = [f"FROM ./{file_name}"]
    parts = chat_parts(tokenizer)
    if parts is not None:
        lines.append(f'TEMPLATE """{parts.template()}"""')
    elif getattr(tokenizer, "chat_template", None):
        lines.append(
            "# The chat template is more than Ollama's language can say exactly; it stands in the "
            "GGUF file."
        )
    lines += [f'PARAMETER stop "{text}"' for text in stops(tokenizer)]
    return "\n".join(lines) + "\n"


def modelfile_name(file_name: str) -> str:
    """Its name beside the GGUF file: one for each type.

    >>> modelfile_name("m.Q4_K_M.gguf")
    'm.Q4_K_M.Modelfile'
    """
    return f"{file_name.removesuffix('.gguf')}.Modelfile"


def usage(path: str) -> str:
    """The lines for the model card; `path` of the GGUF file as the card's reader has it."""
    place = PurePosixPath(path)
    made_from = place.with_name(modelfile_name(place.name))
    name = place.name.removesuffix(".gguf").lower()
    return f"""\
With llama.cpp, in the terminal and as a server with an OpenAI-like interface:

    llama-cli -m {path} -p "The capital of France is" -n 64
    llama-server -m {path} --port 8080

With Ollama:

    ollama create {name} -f {made_from}
    ollama run {name}"""

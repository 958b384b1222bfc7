"""Chat templates: laying out a text or a conversation, and the switches that a template reads."""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steerfn.values import DataError

Message = Mapping[str, Any]
Chat = bool | None | Mapping[str, Any]
"""Whether texts go through the chat template: True, False, None (where there is one), or True with switches of the
template by name, such as `{"enable_thinking": False}` or `{"tools": [...]}`."""
OF_TRANSFORMERS = ("add_generation_prompt", "continue_final_message", "chat_template")
"""What `apply_chat_template` itself takes besides a template's variables."""
GIVEN = ("messages", "raise_exception", "strftime_now", "namespace", "range", "dict", "cycler", "joiner", "lipsum")
"""Variables that a template has of jinja and of transformers."""
PROBE = "steerfn-probe"


def checked_chat(chat: Any) -> None:
    """Refuse what cannot say whether texts go through the chat template.

    Raises:
        DataError: it is neither True, False, None nor a mapping of switches.
    """
    if chat is not None and not isinstance(chat, (bool, Mapping)):
        raise DataError(
            f"chat is True, False or None, not {chat!r:.80}. A mapping holds switches of the chat template, such "
            "as chat={'enable_thinking': False}."
        )


class ChatTemplate:
    """A tokenizer's chat template under one choice of `chat`.

    Args:
        tokenizer: the model's. Unchanged.
        chat: see `Chat`.

    Raises:
        DataError: a switch that the template does not have.
    """

    def __init__(self, tokenizer: Any, chat: Chat) -> None:
        checked_chat(chat)
        self.tokenizer = tokenizer
        self.exists = bool(getattr(tokenizer, "chat_template", None))
        self.wanted = True if isinstance(chat, Mapping) else chat
        self.switches = dict(chat) if isinstance(chat, Mapping) else {}
        if self.switches and self.exists:
            self._check_switches()

    def write(self, text: str | Sequence[Message]) -> str | None:
        """The laid-out text, special tokens included; None for a text that is taken as it is.

        A conversation always goes through the template, and ends where its last message does if that is the
        assistant's: an answer that was begun. A text that the template, or someone by hand, has laid out already is
        not put into it again.

        Raises:
            DataError: a template that is needed but missing, one that refuses the messages, or a text that is laid
                out already with `chat=True`.
        """
        if isinstance(text, str):
            if self.wanted is False or (self.wanted is None and not self.exists):
                return None
            if self.exists and self._is_laid_out(text):
                if self.wanted:
                    raise DataError(
                        f"This text is laid out for the model already ({text!r:.60}), and the chat template would lay "
                        "it out again; leave chat=None, which takes such texts as they are, pass chat=False, or pass "
                        "the conversation itself as a list of messages."
                    )
                begins = self._bos and any(opening.startswith(self._bos) for opening in self._openings)
                return self._bos + text if begins and not text.startswith(self._bos) else text
            text = [{"role": "user", "content": text}]
        if not self.exists:
            raise DataError(
                "This tokenizer has no chat template; pass texts with chat=False, or set tokenizer.chat_template."
            )
        return self._render(text)

    def _render(self, messages: Sequence[Message]) -> str:
        ends = {name: self.switches[name] for name in OF_TRANSFORMERS[:2] if name in self.switches}
        if not ends and messages[-1]["role"] == "assistant" and isinstance(messages[-1].get("content"), (str, list)):
            if messages[-1]["content"] in ("", []) and len(messages) > 1:  # nothing to go on from
                messages = messages[:-1]
            else:
                ends = {"continue_final_message": True}
        ends = ends or {"add_generation_prompt": messages[-1]["role"] != "assistant"}
        try:
            return self.tokenizer.apply_chat_template(list(messages), tokenize=False, **self.switches | ends)
        except Exception as error:  # a template's own complaint, of roles that do not alternate, say
            raise DataError(f"The chat template refuses these messages: {error!s:.300}") from error

    @property
    def _bos(self) -> str:
        return getattr(self.tokenizer, "bos_token", None) or ""

    @functools.cached_property
    def _openings(self) -> list[str]:
        """The text that the template writes before the first message."""
        question = {"role": "user", "content": PROBE}
        openings = []
        for messages in ([question], [{"role": "system", "content": PROBE}, question]):
            try:
                openings.append(self._render(messages).split(PROBE)[0])
            except DataError:  # a template without system messages
                continue
        return openings

    @functools.cached_property
    def _marks(self) -> tuple[str, ...]:
        """The beginnings that only a laid-out text has: special tokens, and the template's first words."""
        special = set(getattr(self.tokenizer, "all_special_tokens", ())) - {getattr(self.tokenizer, "unk_token", None)}
        # A bare word, such as "user ", may begin any text.
        bare = {opening.removeprefix(self._bos).strip() for opening in self._openings}
        return (*special, *(each for each in bare if re.search(r"[^\w\s]", each)))

    def _is_laid_out(self, text: str) -> bool:
        return text.lstrip().startswith(self._marks)

    def _check_switches(self) -> None:
        known = variables_of(self.tokenizer, self.switches)
        if known is None:
            return
        for name in self.switches:
            if name not in known and name not in OF_TRANSFORMERS:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                listed = f"it reads {', '.join(sorted(known))}" if known else "it reads none"
                raise DataError(
                    f"The chat template does not read {name!r}, so it would change nothing; {hint}{listed}."
                )


def variables_of(tokenizer: Any, switches: Mapping[str, Any] | None = None) -> frozenset[str] | None:
    """The variables that a tokenizer's chat template reads, beside the messages; None where that is not known."""
    switches = switches or {}
    try:
        template = tokenizer.get_chat_template(switches.get("chat_template"), tools=switches.get("tools"))
    except (AttributeError, TypeError, ValueError):
        return None
    named = getattr(tokenizer, "special_tokens_map", {})
    read = _variables(template)
    return None if read is None else read - {*GIVEN, *named} - {"add_generation_prompt"}


@functools.lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str] | None:
    from jinja2 import Environment, TemplateError, meta

    # A tag of transformers' own, which marks what the assistant says.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    try:
        return frozenset(meta.find_undeclared_variables(Environment(extensions=LOOPS).parse(plain)))
    except TemplateError:
        return None


LOOPS: Sequence[str] = ("jinja2.ext.loopcontrols",)

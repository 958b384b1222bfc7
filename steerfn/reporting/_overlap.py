"""Prompts that are also in the data: an effect on them would be one on texts that made the vector."""

from collections.abc import Iterator, Sequence

from steerfn._text import Text, is_token_ids
from steerfn.datasets import ContrastSet
from steerfn.discover._lint import same_text
from steerfn.evaluate._side_by_side import shown_prompt


def overlapping(prompts: Sequence[Text], data: ContrastSet) -> list[str]:
    """The prompts that are a text of the data, a message of one, or its beginning; case and white space aside."""
    known = {each for text in (*data.positive, *data.negative) for each in _parts(text)}
    found = []
    for prompt in prompts:
        keys = {f"{key} " for key in _parts(prompt)}
        if any(f"{text} ".startswith(key) for text in known for key in keys):
            found.append(shown_prompt(prompt))
    return list(dict.fromkeys(found))


def _parts(text: Text) -> Iterator[str]:
    """A text; of a conversation all of it, and each message of a user; token ids have no words to compare."""
    if is_token_ids(text):
        return
    yield same_text(text)
    if not isinstance(text, str):
        yield from (same_text(str(message["content"])) for message in text if message["role"] == "user")

"""Activations: the hidden state of each of many texts."""

from collections.abc import Sequence
from typing import Any

from steerfn.model import Model, Tokenizer
from steerfn.run._chat_template import Chat
from steerfn.run._keywords import only_switches
from steerfn.run._positions import Position, reads
from steerfn.run._read import read_states
from steerfn.run._text import as_texts, check_ids, encode
from steerfn.values import Activations, Site, Sites, public


@public
def activations(
    model: Model,
    tokenizer: Tokenizer,
    texts: Any,
    sites: Sites,
    position: Any = "last",
    *,
    batch_size: int | str = "auto",
    chat: Chat = False,
    progress: bool = True,
    **switches: Any,
) -> dict[Site, Activations]:
    """The hidden state of each text at some sites, one row for each text, in the given order.

    Texts that begin alike are computed together, their common tokens once; batches are sorted by length and padded
    on the right, so no padding is ever read; the forward pass stops as soon as the deepest site is read. All of that
    changes a row by float rounding only. Inside a steering context of the calling thread the values are the steered
    ones.

    Args:
        model: any transformers causal LM. Unchanged.
        tokenizer: its tokenizer. Unchanged.
        texts: texts, conversations (`[{"role": ..., "content": ...}]`) or token ids, one or several. A conversation
            whose last message is the assistant's is read up to the end of that message; with
            `chat={"continue_final_message": False}` up to the template's closing of it.
        sites: one or several; an int means `resid_post`.
        position: "last" real token, "mean" over the tokens but the model's attention sinks (tokens whose norm is far
            above the median, such as the first: measured on some of the texts), "mean_all" over every token, an
            index into the tokens, a slice, range or list of indices (the mean over those tokens, each once), or a
            function from the list of token ids to any of these.
        batch_size: texts at once; "auto" batches by tokens and halves when memory runs out.
        chat: True wraps texts in the chat template; None does so where there is one; False takes them as they are;
            a mapping is True with switches of the template. Conversations go through it in any case.
        progress: show a progress bar on stderr.
        switches: what the tokenizer's chat template reads, with `chat=True`, such as `enable_thinking=False`.

    Returns:
        `{site: Float[Tensor, "texts d_model"]}` on the CPU, in at least float32.

    Raises:
        DataError: no texts, an empty one, a position outside a text, or an unknown keyword.
        SiteError: a site that the model lacks.

    Example:
        >>> import steerfn as sf
        >>> sf.activations(model, tokenizer, ["Hello there.", "Good night."], 12)[sf.resid_post[12]].shape
        torch.Size([2, 576])
    """
    chat = only_switches(activations, tokenizer, chat, switches)
    rows = encode(tokenizer, as_texts(texts, "texts"), chat)
    check_ids(model, rows)
    return read_states(model, reads(rows, position), sites, batch_size=batch_size, progress=progress)


@public
def token_read(
    tokenizer: Tokenizer, texts: Sequence[Any], position: Position = "last", chat: Chat = False, **switches: Any
) -> list[str]:
    """The text of the token that is read of each text (for "mean", all of it), to see what is measured.

    Args:
        tokenizer: a tokenizer.
        texts: as in `activations`, and so are the others.
        position: the token or tokens.
        chat: whether texts go into the chat template.
        switches: of the chat template.

    Raises:
        DataError: no texts, an empty one, or a position outside a text.

    Example:
        >>> from steerfn.run import token_read
        >>> token_read(tokenizer, ["I am so happy today!"])
        ['!']
    """
    chat = only_switches(token_read, tokenizer, chat, switches)
    text_reads = reads(encode(tokenizer, as_texts(texts, "texts"), chat), position)
    return [str(tokenizer.decode([read.ids[i] for i in read.where])) for read in text_reads]

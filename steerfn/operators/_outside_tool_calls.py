"""Every token outside tool calls: an agent's manner is steered, and its calls are not."""

from typing import Any

from torch import Tensor

from steerfn.operators._marks import Marks
from steerfn.operators._scope import Scope
from steerfn.operators._token_scope import TokenScope
from steerfn.operators._tool_marks import tool_marks
from steerfn.values import TokenMask, public, static, struct


@struct
class OutsideToolCalls(TokenScope):
    """See `outside_tool_calls`."""

    marks: Marks = static()

    @property
    def key(self) -> str:
        return f"outside {self.marks.key}"

    def select(self, ids: Tensor) -> TokenMask:
        return ~self.marks.between(ids)

    def __repr__(self) -> str:
        return "outside_tool_calls"


@public
def outside_tool_calls(tokenizer: Any, marks: Any = None) -> Scope:
    """Every token but those of tool calls: from the mark that opens a call to the one that closes it, both included.

    A position predicts the token after it. So what the model writes after the opening mark, up to the closing mark and
    with the token that follows it, is drawn from the logits of positions that are not steered: bit for bit the
    unsteered distribution, given the same cache. Whether a call is opened at all is decided outside, by a steered
    position; and what the cache holds of earlier, steered tokens stays steered. Of an opening mark of several tokens
    only the last is known to be one, so those before it are outside.

    A call also ends with its turn (`<|im_end|>`, `<|eot_id|>`, the tokenizer's end-of-text token, ...), closed or not:
    a call that was cut off, or a mark that a message only quotes, leaves later turns alone. Inside a call the opening
    mark means nothing, not even in a string; the closing mark closes.

    The scope is a pure function of the token ids of a row up to each position, in prompts (earlier calls of a
    conversation) as in what is generated. A mark that is one token of the tokenizer is that id, and its text in other
    tokens does not count. Any other mark is its text, however it is cut into tokens.

    Args:
        tokenizer: the model's. Its response template, chat template or tokens tell the marks: `<tool_call>` of Hermes,
            Qwen and SmolLM, `[TOOL_CALLS]` of Mistral, `<|python_tag|>` of Llama 3, and others. Calls that a model
            writes without a mark (Llama 3.2's bare JSON) are not told from text.
        marks: the text that opens a call and those that close it before its turn ends, in place of the tokenizer's.

    Raises:
        DataError: a tokenizer that knows of no tool calls, or marks that are not texts, or end with each other.
        SteerError: at use, where some ids of a row are unknown: embeddings as inputs, or a cache whose tokens were run
            outside of the context, or that was reordered or cropped by hand.

    Example:
        >>> import steerfn as sf
        >>> scope = sf.outside_tool_calls(tokenizer, marks=("<tool_call>", "</tool_call>"))
        >>> with sf.steer(model, v, alpha=2.0, scope=scope):
        ...     ids = model.generate(**inputs, max_new_tokens=5)
        >>> op = sf.at(sf.generated & scope, sf.add(v, 2.0))
    """
    known = tool_marks(tokenizer, marks)
    closes = dict.fromkeys((*known.closes, *known.ends))
    return OutsideToolCalls(Marks.of(tokenizer, [known.opens], list(closes)))

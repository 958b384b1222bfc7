"""A tiny word-level tokenizer of transformers, so that text reaches the tiny models without a download."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z user assistant".split()
NAMES = [*WORDS, *(f"w{i}" for i in range(96 - len(WORDS)))]
"""A word for every token of the tiny models."""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def words(
    *, bos: bool = True, template: bool = False, pad: bool = True, names: Sequence[str] = WORDS
) -> PreTrainedTokenizerFast:
    """One token a name: a = 3, b = 4, ...; `bos` (1) before a text, pad 0, unk 2."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>", pad_token="<pad>" if pad else None
    )
    made.padding_side = "right"
    if template:
        made.chat_template = TEMPLATE
    return made

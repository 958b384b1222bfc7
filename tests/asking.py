"""Items of protocols for tiny models: questions with a tokenizer that knows them, and a loop that answers by hand."""

import numpy as np
import torch
from families import build
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from words import TEMPLATE, WORDS, words

SIGNS = "( ) A B C D : Q Yes No".split()


def lettered(template=False):
    """The tokenizer of `words`, which also divides "(A" into "(" and "A"."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate([*WORDS, *SIGNS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", unk_token="<unk>", pad_token="<pad>", model_input_names=["input_ids"]
    )
    made.padding_side = "right"
    if template:
        made.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    return made


def question(text, first, second, positive="(A)", negative="(B)"):
    return {
        "question": f"{text}\n\nChoices:\n (A) {first}\n (B) {second}",
        "answer_matching_behavior": positive,
        "answer_not_matching_behavior": negative,
    }


QUESTIONS = [
    question("a b c", "d e", "f"),
    question("g h", "i", "j k l", "(B)", "(A)"),
    question("m n o p", "q r", "s t"),
    question("u v", "w x y", "z a", "(B)", "(A)"),
    question("c c d", "e e", "f f a b"),
]


TRUTH = [
    {"question": "a b", "mc1_targets": {"c d": 1, "e": 0, "f g h": 0}, "mc2_targets": {"c d": 1, "i": 1, "e": 0}},
    {"question": "c", "mc1_targets": {"k": 0, "l m": 1}, "mc2_targets": {"n o": 0, "l m": 1, "p": 0}},
    {"question": "d e f", "mc1_targets": {"g": 1, "h i": 0}, "mc2_targets": {"g": 1, "h i": 0}},
]

HARMFUL, HARMLESS = ["x a b", "c x", "d e x f", "x g", "h x i", "x j x"], ["a b c", "d", "e f g", "h i", "b j", "c d"]
PLANT = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)


def planted():
    """A Llama in which the word x writes a direction."""
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[words().convert_tokens_to_ids("x")] += 5 * PLANT
    return model


def late(texts):
    """How late in the alphabet the words of a text are, from 0 to 1."""
    return [float(np.mean([(ord(word[0]) - 97) / 26 for word in text.split()] or [0])) for text in texts]


def with_contents_swapped(item):
    """The question with its two options in each other's place, by hand."""
    head, options = item["question"].split(" (A) ")
    first, second = options.split("\n (B) ")
    text = head.removesuffix("\n\nChoices:\n")
    return question(text, second, first, item["answer_not_matching_behavior"], item["answer_matching_behavior"])


def logits(model, ids, vector=None, layer=None, first=0):
    """Logits `[tokens, vocabulary]` of one text with a vector added by a plain hook from a token on."""

    def hook(module, args, out):
        state = out[0] if isinstance(out, tuple) else out
        state = state.clone()
        state[:, first:] += vector
        return (state, *out[1:]) if isinstance(out, tuple) else state

    handle = None if vector is None else model.model.layers[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].double()
    finally:
        if handle is not None:
            handle.remove()


def answers(model, tokenizer, item, vector=None, layer=None):
    """The log-probabilities of the positive and the negative letter after "(", steered from the prompt's last token."""
    ids = tokenizer(item["question"].rstrip())["input_ids"]
    opened = [*ids, tokenizer.convert_tokens_to_ids("(")]
    found = logits(model, opened, vector, layer, len(ids) - 1)[-1].log_softmax(-1)
    keys = ("answer_matching_behavior", "answer_not_matching_behavior")
    return [float(found[tokenizer.convert_tokens_to_ids(item[key].strip("() "))]) for key in keys]

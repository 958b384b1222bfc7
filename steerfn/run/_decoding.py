"""How texts are decoded: what a call, its generation config and the model's own config say, settled in one place.

One rule holds for every verb that generates: decoding is greedy unless the call asks for sampling, with
`do_sample=True` or a `generation_config` that says so. That a model's own generation config samples (Llama 3, Qwen) is
no request: texts that are compared would differ by chance as well as by steering. Everything else in that config
holds: penalties, beams, ends, stop strings.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from steerfn.run._chat_template import Chat
from steerfn.run._keywords import hf_keywords
from steerfn.values import DataError, positive_int

NEW_TOKENS = 40
"""How many tokens are generated at most where nothing says."""
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that mean something only where tokens are sampled."""
IDLE = {"temperature": (1, 1.0), "top_k": (0, 50), "top_p": (1, 1.0), "typical_p": (1, 1.0)}
"""Values of sampling options that change nothing (50 is transformers' default), so nothing is lost without sampling."""


@functools.cache
def greedy() -> Mapping[str, Any]:
    """The options for greedy decoding that keep transformers from warning about sampling options in a model's config.

    Without options that its version does not have: those would go to the model's forward.
    """
    from transformers import GenerationConfig

    known = GenerationConfig()
    return {"do_sample": False, **{name: None for name in SAMPLING if hasattr(known, name)}}


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts come of prompts: settled once, where a verb is called, and passed on whole.

    Attributes:
        options: what `model.generate` is given, lengths aside.
        max_new_tokens: tokens to generate at most; None where `max_length` says.
        max_length: tokens of prompt and text together at most, or None.
        ends: the tokens that end a text.
        stop_strings: the strings that end a text.
        name: "greedy", "sampled", "beam search" or "beam sampling", for the record of a run.
        hf: the options of transformers' `generate` as the call has them, for the record of a run.
        chat: whether prompts go into the chat template, with the switches that the call has for it.
        seed: of sampling: one number, or one for each row; None leaves it to torch's own random state.
        batch_size: rows at once; None for as many as fit.
    """

    options: dict[str, Any]
    max_new_tokens: int | None
    max_length: int | None
    ends: frozenset[int]
    stop_strings: tuple[str, ...]
    name: str
    hf: dict[str, Any]
    chat: Chat = None
    seed: int | tuple[int, ...] | None = None
    batch_size: int | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """The fields that determine the texts of a run, seeds aside."""
        return {"max_new_tokens": self.max_new_tokens, "chat": self.chat, "hf": self.hf, "decoding": self.name}

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.name in ("sampled", "beam sampling")

    def new_tokens(self, length: int) -> int:
        """Tokens to generate at most after a prompt of so many.

        Raises:
            DataError: `max_length` leaves no room for one.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        assert self.max_length is not None
        if length >= self.max_length:
            raise DataError(
                f"A prompt has {length} tokens and max_length={self.max_length} counts them too, so nothing can be "
                "generated; pass a larger max_length, or max_new_tokens, which counts new tokens only."
            )
        return self.max_length - length

    def batches(self, lengths: Sequence[int], size: int) -> Iterator[slice]:
        """Consecutive prompts that run together.

        Options that count the prompt (`max_length`, `min_length`) would count its padding as well: with them, prompts
        of different lengths run apart.
        """
        apart = self.max_length is not None or bool(self.options.get("min_length"))
        start = 0
        while start < len(lengths):
            stop = min(start + size, len(lengths))
            if apart:
                stop = next((i for i in range(start, stop) if lengths[i] != lengths[start]), stop)
            yield slice(start, stop)
            start = stop


def decoding_of(
    verb: Callable[..., Any] | str,
    model: Any,
    tokenizer: Any,
    given: Mapping[str, Any],
    *,
    chat: Chat = None,
    max_new_tokens: Any = None,
    seed: int | tuple[int, ...] | None = None,
    batch_size: int | None = None,
) -> Decoding:
    """How a call decodes.

    Args:
        verb: the function that was called, or its name, for errors.
        model: the model; its generation config holds where the call says nothing, but for sampling.
        given: what the call has beyond the verb's own keywords: switches of the chat template, and options of
            transformers' `generate`, `generation_config` among them; a keyword has precedence over the config, as in
            transformers.
        chat, seed, batch_size: as `Decoding` has them.
        max_new_tokens: tokens to generate at most; None takes `given`'s, else 40.

    Raises:
        DataError: a keyword that nothing takes, lengths that contradict each other or are not positive integers,
            sampling options without sampling, or several greedy texts of one prompt.
    """
    chat, hf = hf_keywords(verb, model, tokenizer, chat, given)
    keywords = {name: value for name, value in hf.items() if name != "generation_config"}
    config = written_in(hf.get("generation_config"))
    if max_new_tokens is not None:
        keywords["max_new_tokens"] = max_new_tokens
    longest = _lengths(keywords, config)
    own = getattr(model, "generation_config", None)
    options = {**config, **keywords}
    sampled = samples(hf)
    if not sampled:
        contrastive = keywords.get("penalty_alpha") is not None  # a search that looks at the top_k tokens
        _refuse_idle({name: value for name, value in keywords.items() if not (contrastive and name == "top_k")})
        options |= {name: value for name, value in greedy().items() if not (contrastive and name == "top_k")}

    def value(name: str) -> Any:
        return options[name] if name in options else getattr(own, name, None)

    beams, copies = value("num_beams") or 1, value("num_return_sequences") or 1
    if not sampled and copies > beams:
        raise DataError(
            f"num_return_sequences={copies} of greedy decoding would be copies of one text; pass do_sample=True to "
            f"sample, or num_beams={copies} for a beam search."
        )
    stops = value("stop_strings") or ()
    options |= {"max_length": None, "stop_strings": None}
    name = ("beam sampling" if sampled else "beam search") if beams > 1 else "sampled" if sampled else "greedy"
    return Decoding(
        {key: each for key, each in options.items() if key != "max_new_tokens"},
        longest["max_new_tokens"],
        longest["max_length"],
        frozenset(ends_of(model, tokenizer, options)),
        (stops,) if isinstance(stops, str) else tuple(stops),
        name,
        hf,
        chat,
        seed,
        batch_size,
    )


def samples(hf: Mapping[str, Any]) -> bool:
    """Whether a call asks for sampling: with `do_sample=True`, or a generation config that says so."""
    do_sample = hf.get("do_sample")
    return bool(getattr(hf.get("generation_config"), "do_sample", False) if do_sample is None else do_sample)


def ends_of(model: Any, tokenizer: Any, hf: Mapping[str, Any]) -> set[int]:
    """The tokens that end a text."""
    if "eos_token_id" in hf:
        ends = hf["eos_token_id"]
    else:
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = getattr(tokenizer, "eos_token_id", None) if ends is None else ends
    if ends is None:
        return set()
    return set(ends.tolist() if hasattr(ends, "tolist") else ends) if hasattr(ends, "__iter__") else {int(ends)}


def written_in(config: Any) -> dict[str, Any]:
    """The options of a generation config as keywords: those that differ from transformers' own defaults.

    Keywords, because transformers keeps what a config leaves open at the model's values, and tells them from what was
    set by comparing with the defaults too, in each version in another way.
    """
    if config is None:
        return {}
    from transformers import GenerationConfig

    if not isinstance(config, GenerationConfig):
        raise DataError(
            f"generation_config must be a transformers GenerationConfig, got {config!r:.80} of type "
            f"{type(config).__name__}; options may also be passed as keywords."
        )
    usual = vars(GenerationConfig())
    return {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_") and name != "transformers_version" and value != usual.get(name)
    }


def _lengths(keywords: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int | None]:
    """`max_new_tokens` and `max_length`, of which one is set."""
    limits: dict[str, tuple[str, int]] = {}
    for source, values in (("", keywords), ("generation_config.", config)):
        for name in ("max_new_tokens", "max_length"):
            if (value := values.get(name)) is None:
                continue
            value = positive_int(f"{source}{name}", value)
            limits.setdefault(name, (source, value))
            if limits[name][1] != value:
                raise DataError(
                    f"{name}={limits[name][1]} and {source}{name}={value} contradict each other; pass one of them."
                )
    if len(limits) == 2:
        named = " and ".join(f"{source}{name}={value}" for name, (source, value) in limits.items())
        raise DataError(
            f"{named} both limit the length, one of the new tokens and one of prompt and text together; pass one of "
            "them."
        )
    if not limits:
        limits["max_new_tokens"] = ("", NEW_TOKENS)
    return {name: limits[name][1] if name in limits else None for name in ("max_new_tokens", "max_length")}


def _refuse_idle(keywords: Mapping[str, Any]) -> None:
    """Sampling options change nothing where nothing is sampled; a temperature of 0 is greedy decoding by name."""
    for name in SAMPLING:
        value = keywords.get(name)
        if value is None or value in IDLE.get(name, ()) or (name == "temperature" and value == 0):
            continue
        raise DataError(
            f"{name}={value!r} changes nothing where tokens are not sampled, and decoding is greedy unless asked; pass "
            "do_sample=True with it (and seed= to repeat the texts), or leave it out."
        )

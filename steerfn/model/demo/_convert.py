"""From a GGUF file to a ``save_pretrained`` folder that transformers 4 and 5 read alike."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from steerfn.output import no_bars, stage
from steerfn.values import ModelError


def require_converters() -> None:
    """Raises `ModelError` if a package is missing: before 93 MB are fetched, not after."""
    missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        raise ModelError(
            f"Converting the demo model needs {' and '.join(missing)}, which this environment lacks: run "
            f"`pip install {' '.join(missing)}`."
        )


def convert(path: Path, folder: Path, progress: bool) -> None:
    """Expands a GGUF with a GPT-2 style tokenizer to fp32 and saves it, in about 20 s.

    Args:
        path: the GGUF file.
        folder: an empty folder; it gets weights, config, tokenizer and chat template.
        progress: show what is being done, on stderr.

    Raises:
        ModelError: this version of transformers cannot convert it, or a package is missing.
    """
    require_converters()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    try:
        with stage("Converting", progress), no_bars():
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            # Marked as quantized, it would refuse to be saved: the same weights in a fresh model.
            config = model.config.to_dict()
            config.pop("quantization_config", None)
            plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(config))
            plain.load_state_dict(model.state_dict())
            plain.tie_weights()
            plain.generation_config = model.generation_config
            tokenizer = _tokenizer(path)
        size = sum(p.numel() * p.element_size() for p in plain.parameters())
        with stage("Saving", progress, folder, size), no_bars():
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError:
        raise  # the disk, not the conversion: the caller names the folder
    except Exception as error:  # whatever a version of transformers may raise on the way
        raise ModelError(
            f"transformers {transformers.__version__} could not convert {path.name!r} ({error}): "
            "install a version from 4.57 to 5.23, or ask for source='hub'."
        ) from error


def make_portable(folder: Path) -> None:
    """Spells the JSON files so that transformers 4 and 5 read the same model from them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # Version 4 does not know rope_parameters and would fall back to a base of 10000 in silence.
    rope = config.pop("rope_parameters", None) or config
    config["rope_theta"] = rope["rope_theta"]
    config.pop("_model_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True))

    path = folder / "tokenizer_config.json"
    # This class takes tokenizer.json as it stands; version 5 rebuilds others from their parts.
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def _tokenizer(path: Path) -> Any:
    """The tokenizer the GGUF describes.

    transformers' own conversion gets it wrong in ways that differ by version: 4.57 puts
    ``<|im_start|>`` before every text and takes it for the end of text too, and both leave out
    the splitting of digits, so that a line break before a number is cut differently from training.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(path).fields

    def read(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens, kinds = read("ggml.tokens"), read("ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in read("ggml.merges")]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    core.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=read("chat_template"),
        **{f"{k}_token": tokens[read(f"ggml.{v}_token_id")] for k, v in roles.items()},
    )

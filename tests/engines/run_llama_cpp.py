"""What llama.cpp makes of a control vector file; run by the interpreter of its environment, without steerfn.

python run_llama_cpp.py read LOADER FILE ...        what its own loader finds in files, as JSON
python run_llama_cpp.py expand MODEL OUT            the model with every weight in float32
python run_llama_cpp.py greedy LOADER JOB OUT       token ids and logits of greedy decoding, as .npz
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def read(loader: ctypes.CDLL, file: str) -> tuple[int, np.ndarray]:
    """The length of a direction (-1: refused), and the floats from block 1 on."""
    load = loader.load_control_vector
    load.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    data, size = np.zeros(1 << 20, np.float32), ctypes.c_size_t()
    width = load(file.encode(), 1.0, data.ctypes.data, data.size, ctypes.byref(size))
    assert size.value <= data.size
    return width, data[: size.value]


def expand(model: str, out: str) -> None:
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize, settings.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    assert llama_cpp.llama_model_quantize(model.encode(), out.encode(), ctypes.byref(settings)) == 0


def greedy(loader: ctypes.CDLL, job: dict, out: str) -> None:
    """Greedy decoding of every prompt, without and with the vector, each in a context of its own."""
    found = {}
    for name, file in (("plain", None), ("steered", job["vector"])):
        model = llama_cpp.Llama(
            job["model"], n_ctx=256, logits_all=True, verbose=False, n_threads=1, n_threads_batch=1,
            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
        )  # fmt: skip
        if file is not None:
            width, data = read(loader, file)
            start = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            # What its command line asks for when no range of layers is given: 1 up to their number.
            last = llama_cpp.llama_model_n_layer(model.model)
            assert llama_cpp.llama_set_adapter_cvec(model.ctx, start, data.size, width, 1, last) == 0
        tokens, logits = [], []
        for prompt in job["prompts"]:
            model.reset()
            fed = prompt
            for _ in range(job["tokens"]):
                model.eval(fed)
                logits.append(model.scores[model.n_tokens - 1].copy())
                fed = [int(logits[-1].argmax())]
                tokens += fed
        shape = (len(job["prompts"]), job["tokens"])
        found[f"{name}_tokens"] = np.array(tokens).reshape(shape)
        found[f"{name}_logits"] = np.stack(logits).reshape(*shape, -1)
    np.savez(out, **found)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "expand":
        expand(*arguments)
    elif what == "read":
        opened = [read(ctypes.CDLL(arguments[0]), file) for file in arguments[1:]]
        print(json.dumps([{"width": width, "data": data.tolist()} for width, data in opened]))
    else:
        with open(arguments[1]) as file:
            greedy(ctypes.CDLL(arguments[0]), json.load(file), arguments[2])

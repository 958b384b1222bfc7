"""Bars: one switch for ours and those of the libraries beneath, and none in the way of the caller's own."""

import logging

import huggingface_hub.utils as hub
import pytest
from families import build
from saved import save_tiny
from tqdm import tqdm
from transformers.utils import logging as transformers
from words import words

import steerfn as sf
from steerfn.cli import main
from steerfn.cli._main import parser
from steerfn.output._progress import stage

ALL = {"Reading activations", "Waiting", "theirs", "the hub's", "advice", "banner"}


@pytest.fixture
def noise(capsys):
    """Makes all that can be heard, and says what was."""

    def make():
        sf.activations(build("llama"), words(), ["a b"], 0, progress=True)
        with stage("Waiting", progress=True):
            pass
        list(transformers.tqdm(range(2), desc="theirs"))
        list(hub.tqdm(range(2), desc="the hub's"))
        loggers = {"advice": "transformers.generation.utils", "banner": "torchao"}
        heard = {name for name, of in loggers.items() if logging.getLogger(of).isEnabledFor(logging.WARNING)}
        shown = capsys.readouterr().err
        return heard | {name for name in ALL if name in shown}

    yield make
    sf.set_progress(True)


def test_one_switch_turns_all_off_and_on(noise):
    assert noise() == ALL
    for _ in range(2):
        sf.set_progress(False)
        assert noise() == set()
    sf.set_progress(True)
    assert noise() == ALL
    with pytest.raises(sf.SteerError, match="set_progress takes True or False, not 'off'."):
        sf.set_progress("off")


@pytest.mark.parametrize("off", [{"theirs", "the hub's"}, {"the hub's"}], ids=len)
def test_what_the_caller_had_turned_off_stays_off(noise, off):
    if "theirs" in off:
        transformers.disable_progress_bar()
    hub.disable_progress_bars()
    try:
        sf.set_progress(False)
        sf.set_progress(True)
        assert noise() == ALL - off
    finally:
        transformers.enable_progress_bar()


def test_quiet_is_an_option_of_every_command_and_ends_with_it(noise, tmp_path, capsys):
    [commands] = [action.choices for action in parser()._actions if action.choices]
    assert len(commands) > 9 and all("--quiet" in command.format_help() for command in commands.values())
    folder = str(save_tiny(tmp_path))
    capsys.readouterr()
    assert main(["inspect", "--model", folder, "--device", "cpu", "--quiet"]) == 0
    assert capsys.readouterr().err == "" and noise() == ALL


def test_our_bars_inside_the_callers_leave_his_where_it_was(capsys):
    model = build("llama")
    with tqdm(total=2, desc="mine") as mine:
        for _ in range(2):
            sf.activations(model, words(), ["a b"], 0)
            assert mine.pos == 0 and len(tqdm._instances) == 1
            mine.update()
    last = capsys.readouterr().err.rstrip("\n").rpartition("\r")[2]
    assert last.startswith("mine: 100%")

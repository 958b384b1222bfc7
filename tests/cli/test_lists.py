"""No option swallows what follows it, and negative numbers need no trick."""

import pytest

from steerfn.cli import main
from steerfn.cli._main import parser


def parse(*arguments):
    return parser().parse_args(list(arguments))


@pytest.mark.parametrize("alphas", [["--alpha", "-2,0,2"], ["--alphas=-2,0,2"], ["--alpha", "-2", "--alpha", "0,2"]])
def test_pitfall_64_strengths_leave_the_prompt_alone(alphas):
    options = parse("generate", "--vector", "v", *alphas, "Tell me about the sea.")
    assert options.alpha == [-2.0, 0.0, 2.0] and options.prompts == ["Tell me about the sea."]


def test_pitfall_64_every_option_leaves_what_follows_to_the_prompts():
    """Whatever the option, the word after its one value is a prompt."""
    for command in ("generate", "compare", "sweep"):
        [group] = [a for a in parser()._actions if a.dest == "command" or a.choices]
        for action in group.choices[command]._actions:
            if not action.option_strings or action.nargs == 0 or action.dest in ("scope", "quantization"):
                continue
            required = [] if action.dest == "vector" or command == "generate" else ["--vector", "v"]
            options = parse(command, *required, action.option_strings[0], "1", "a prompt")
            assert options.prompts == ["a prompt"], action.option_strings


def test_values_replace_the_default_and_add_up():
    assert parse("sweep", "--vector", "a", "--vector", "b", "x").vector == ["a", "b"]
    assert parse("sweep", "--vector", "a", "x").alphas == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert parse("sweep", "--vector", "a", "--alphas", "1", "--alphas", "-.5, 3", "x").alphas == [1.0, -0.5, 3.0]
    assert parse("compare", "--vector", "a", "--metric", "bleu, chrf", "x").metric == ["bleu", "chrf"]


def test_numbers_left_over_from_the_old_form_are_refused(capsys):
    assert main(["sweep", "--vector", "v", "--alphas", "-2", "0", "2"]) == 2
    assert "The prompt '0' is a number; an option that takes several values needs commas" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "what"), [("--alphas", "numbers"), ("--layers", "whole numbers")])
def test_a_list_that_does_not_parse_says_so(option, what, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("sweep", "--vector", "v", option, "1,x", "a prompt")
    assert caught.value.code == 2 and f"'1,x' is not a list of {what}; write for example" in capsys.readouterr().err

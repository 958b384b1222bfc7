"""Every message of the page of messages is what the library says."""

import re
import warnings
from pathlib import Path

import pytest
from families import FAMILIES
from messages import provoke

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "messages.md"
ENTRIES = re.findall(r"^\(([a-z-]+)\)=\n\n```text\n(.*?)\n```$", PAGE.read_text(encoding="utf8"), re.M | re.S)


def test_the_page_has_entries():
    assert len(ENTRIES) >= 15 and PAGE.read_text(encoding="utf8").count("```text") == len(ENTRIES)


@pytest.mark.parametrize("name, quoted", ENTRIES, ids=[name for name, _ in ENTRIES])
def test_it_is_said(name, quoted, tmp_path):
    if name == "streams" and "gemma3n_text" not in FAMILIES:
        pytest.skip("this version of transformers has no such family")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            provoke(name, tmp_path)
            said = "\n".join(str(each.message) for each in caught)
        except Exception as error:
            said = str(error)
    pattern = ".+?".join(map(re.escape, quoted.split("…")))
    assert re.search(pattern, said, re.DOTALL), f"{said!r} is not {quoted!r}"

"""The tables of the reference that are written by hand, against what they describe."""

import json
import re
from pathlib import Path

import pytest
from families import build
from words import words

import steerfn as sf

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def rows(page, heading):
    """The rows of the tables under a heading: their cells."""
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf8")
    part = re.split(r"^## ", text, flags=re.M)
    [section] = [each for each in part if each.startswith(heading)]
    return [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]


def codes(cell):
    return re.findall(r"`([a-z_0-9]+)`", cell)


def test_the_fields_of_a_file(tmp_path):
    made = sf.mean_difference(
        build("llama"), words(), ["a b", "c d"], ["e f", "g h"], 1, quality=True, position="mean", progress=False
    )
    document = sf.files.describe(sf.save(made, tmp_path / "v.safetensors"))
    assert {code for cell, *_ in rows("files", "The document") for code in codes(cell)} == document.keys()
    listed = {code for cell, *_ in rows("files", "Metadata") for code in codes(cell)}
    assert document["metadata"].keys() <= listed <= {*document["metadata"], "tokens_read"}
    [model] = [cell for name, cell in rows("files", "Metadata") if name == "`model`"]
    assert set(codes(model)) == document["metadata"]["model"].keys()


def test_the_fields_of_the_audit_log(tmp_path):
    pytest.importorskip("fastapi", reason="the server's packages are not installed")
    import requests
    from served import post, served
    from steering import vector

    from steerfn import serving

    key = "an-administrator-of-sixteen-and-more"
    sf.save(vector(sf.resid_post[1]), tmp_path / "up.safetensors")
    folder = tmp_path / "vectors"
    folder.mkdir()
    application = serving.app(
        build("llama"), words(), folder, audit=tmp_path / "log", audit_prompts=True, admin_keys=[key]
    )
    with served(application) as address:
        post(address, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        post(address, "/v1/completions", {"prompt": "a", "max_tokens": -1})
        requests.put(
            f"{address}/v1/vectors/up",
            data=(tmp_path / "up.safetensors").read_bytes(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/octet-stream"},
            timeout=60,
        ).raise_for_status()
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    written = {line["event"]: line.keys() - {"time", "event", "id"} for line in log}
    table = {codes(cells[0])[0]: cells for cells in rows("server", "The audit log") if len(cells) == 3}
    explained = {code for cells in rows("server", "The audit log") if len(cells) == 2 for code in codes(cells[0])}
    assert table.keys() == written.keys() and explained == set().union(*written.values())
    for event, fields in written.items():
        assert fields == set(codes(re.sub(r"; `outcome` alone.*|with `--audit-prompts`", "", table[event][2]))), event


def test_the_table_of_metrics_names_every_metric(monkeypatch):
    monkeypatch.syspath_prepend(REFERENCE.parent / "_extensions")
    import metrics_table

    lines = metrics_table.table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(sf.metrics.names())
    assert "{generated} metrics" in (REFERENCE / "metrics.md").read_text(encoding="utf8")

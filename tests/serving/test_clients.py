"""The clients that people use, each as it is installed: a chat, a stream, a tool call and an answer with a schema.

pytest -n 0 -m engine tests/serving/test_clients.py

They live in an environment of their own (`tests/engines/environments.py clients`), those of Node in a folder beside it.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
from served import served
from tool_models import scripted, tool_tokenizer

from steerfn import serving

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from environments import ROOT, python_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
FOLDER = Path(__file__).parent / "clients"
PACKAGES = ["openai@6", "ai@6", "@ai-sdk/openai-compatible@2"]
WRITTEN = {
    "hello": "Hello, how are you?",
    "weather": '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "person": '{"name": "Ada", "age": 36}',
}
TOLD = {
    "chat": WRITTEN["hello"],
    "stream": WRITTEN["hello"],
    "tool": {"name": "weather", "args": {"city": "Oslo"}},
    "streamed_tool": {"name": "weather", "args": {"city": "Oslo"}},
    "schema": {"name": "Ada", "age": 36},
}


def answer(prompt: str) -> str:
    """What the last message of the user asks for, by its word; a person by the tool of that name, if there is one."""
    asked = prompt.rpartition("user\n")[2].partition("<|im_end|>")[0].strip()
    if asked == "person" and '"name": "Person"' in prompt:
        return f'<tool_call>\n{{"name": "Person", "arguments": {WRITTEN["person"]}}}\n</tool_call>'
    return WRITTEN[asked.split()[0]]


@pytest.fixture(scope="module")
def url():
    tokenizer = tool_tokenizer()
    with served(serving.app(scripted(tokenizer, answer), tokenizer)) as address:
        yield f"{address}/v1"


def told(command: list[str]) -> dict:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("client", ["openai", "langchain", "litellm", "llamaindex"])
def test_a_client_of_python(url, client):
    try:
        python = python_of("clients")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the clients cannot be installed here: {error}")
    assert told([str(python), str(FOLDER / "run.py"), client, url]) == TOLD


@pytest.mark.parametrize("client", ["openai", "ai-sdk"])
def test_a_client_of_node(url, client):
    npm, folder = shutil.which("npm"), ROOT / "clients-node"
    if npm is None:
        pytest.skip("there is no npm here")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "run.mjs", folder)
    installed = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, capture_output=True, text=True, timeout=600
    )
    if installed.returncode:
        pytest.skip(f"the clients of Node cannot be installed here: {installed.stderr[-300:]}")
    assert told(["node", str(folder / "run.mjs"), client, url]) == TOLD

"""The figures of the documentation, on the demo model, each for a light and a dark page.

python docs/figures/draw.py
"""

import io
from pathlib import Path
from typing import Any

from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.image import AxesImage
from PIL import Image

import steerfn as sf

FOLDER = Path(__file__).parent
PAPER, INK, GRID = "#131416", "#cfd0d0", "#3a3c40"  # of the dark theme


def save(name: str, figure: Any) -> None:
    """Write a figure twice; the dark one has the same marks, with what is black or grey made light."""
    write(figure, f"{name}-light.png")
    inside = [
        text
        for axes in figure.axes
        for drawn in axes.get_children()
        if isinstance(drawn, (AxesImage, QuadMesh))
        for text in axes.texts
    ]
    for part in figure.findobj():
        for colour in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            if part not in inside and hasattr(part, f"get_{colour}") and hasattr(part, f"set_{colour}"):
                darken(part, colour)
    write(figure, f"{name}-dark.png")


def write(figure: Any, name: str) -> None:
    """A small file: 256 colours are enough."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(256).save(FOLDER / name, optimize=True)


def darken(part: Any, name: str) -> None:
    """Turn a colour that belongs to the page, one without hue, to the dark page's."""
    try:
        rgba = to_rgba(getattr(part, f"get_{name}")())
    except (TypeError, ValueError):  # several colours, or none: marks
        return
    colour = to_hex(rgba)
    if rgba[3] == 0 or colour in (PAPER, INK, GRID) or len({colour[1:3], colour[3:5], colour[5:]}) > 1:
        return
    getattr(part, f"set_{name}")(PAPER if colour > "#f2" else GRID if colour > "#b0" else INK)


def main() -> None:
    """Draw them all."""
    model, tokenizer = sf.demo_model()
    texts = sf.datasets.load("sentiment")
    profile = sf.discover.layer_profile(model, tokenizer, texts.positive, texts.negative, position="mean")
    save("layers", sf.plot.layers(profile))

    prompts = ["The film was", "Our dinner turned out", "My week has been", "The hotel room looked", "The service was"]
    words = {"continuations": [" wonderful", " terrible"], "chat": False, "scope": sf.generated}
    vectors = profile.vectors.select(sf.resid_post[:])
    table = sf.sweep(model, tokenizer, prompts, vectors, [-4, -2, 0, 2, 4], sites=[6, 14, 22], **words)
    save("strength", sf.plot.sweep(table, "share"))
    table = sf.sweep(model, tokenizer, prompts, vectors, [-4, -2, 0, 2, 4], sites=range(0, 30, 2), **words)
    save("layer-and-strength", sf.plot.heat_map(table, "propensity"))

    things = "your day,rain,Mondays,the sea,work,my neighbour,winter,music,the town,school,dinner,my garden".split(",")
    prompts = [f"Tell me about {thing}." for thing in things]
    happy = vectors.select(14)
    result = sf.compare_vectors(
        model, tokenizer, {"happy": happy}, prompts, ["sentiment"], alpha=-3.0, max_new_tokens=16
    )
    print(result.summary())
    save("evidence", sf.plot.comparison(result))


if __name__ == "__main__":
    main()

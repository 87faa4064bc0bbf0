"""Draws docs/corridor.svg, the picture at the head of the README: `uv run python docs/corridor.py`.

The picture carries its own background and follows the reader's colour scheme, so it reads the same on a light and a dark page.
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT = 1000, 446
BOX_WIDTH, BOX_HEIGHT, STEP = 142, 70, 162
LEFT = 24
TRAINING_Y, BETWEEN_Y, SERVING_Y = 58, 188, 318

STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de }
  .box { fill: #f6f8fa; stroke: #57606a; stroke-width: 1.2 }
  .contract { fill: #ddf4ff; stroke: #0969da; stroke-width: 1.6 }
  .name { fill: #1f2328; font: 600 14px ui-monospace, Menlo, Consolas, monospace }
  .phrase { fill: #57606a; font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
  .row { fill: #0969da; font: 600 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
  .arrow { stroke: #57606a; stroke-width: 1.5; fill: none }
  .head { fill: #57606a }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .box { fill: #161b22; stroke: #9198a1 }
    .contract { fill: #0c2d6b; stroke: #58a6ff }
    .name { fill: #f0f6fc }
    .phrase { fill: #b1bac4 }
    .row { fill: #58a6ff }
    .arrow { stroke: #9198a1 }
    .head { fill: #9198a1 }
  }
"""


TITLE = (
    "One corridor: rows are checked, trained on, sealed in a bundle and registered; "
    "a request is answered from the bundle and written to the prediction log, which drift and retraining read."
)
ARROW_HEAD = (
    '<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="head" d="M0,0 L10,5 L0,10 z"/></marker>'
)


@dataclass(frozen=True)
class Box:
    """One stop of a corridor."""

    name: str
    first: str
    second: str
    column: int
    y: int
    contract: bool = False

    @property
    def x(self) -> int:
        return LEFT + self.column * STEP


TRAINING = [
    Box("your rows", "CSV, JSONL, Parquet,", "a hub data set", 0, TRAINING_Y),
    Box("dataset/", "read, check,", "split by hash", 1, TRAINING_Y),
    Box("training/", "fine-tune,", "calibrate", 2, TRAINING_Y),
    Box("training/export", "ONNX, fp32", "and int8", 3, TRAINING_Y),
    Box("bundle", "a sealed folder,", "every byte checked", 4, TRAINING_Y, contract=True),
    Box("evaluation/", "read back by the", "server's classifier", 5, TRAINING_Y),
]
BETWEEN = [
    Box("retrain", "feedback becomes", "rows", 0, BETWEEN_Y),
    Box("drift/", "has the world", "changed?", 1, BETWEEN_Y),
    Box("promotion/", "the gate:", "it can say no", 4, BETWEEN_Y),
    Box("registry", "who is production:", "compare and swap", 5, BETWEEN_Y, contract=True),
]
SERVING = [
    Box("answer", "label, score,", "probabilities", 0, SERVING_Y),
    Box("prediction log", "written before", "the client's 200", 1, SERVING_Y, contract=True),
    Box("decision", "accept, review,", "out of scope", 2, SERVING_Y),
    Box("classifier", "ONNX Runtime,", "no torch", 3, SERVING_Y),
    Box("serving/", "limits, schemas,", "bounded queue", 4, SERVING_Y),
    Box("curl", "POST /predict", '{"text": "…"}', 5, SERVING_Y),
]


def draw_box(box: Box) -> str:
    kind = "contract" if box.contract else "box"
    middle = box.x + BOX_WIDTH // 2
    return (
        f'<rect class="{kind}" x="{box.x}" y="{box.y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>'
        f'<text class="name" x="{middle}" y="{box.y + 24}" text-anchor="middle">{escape(box.name)}</text>'
        f'<text class="phrase" x="{middle}" y="{box.y + 43}" text-anchor="middle">{escape(box.first)}</text>'
        f'<text class="phrase" x="{middle}" y="{box.y + 59}" text-anchor="middle">{escape(box.second)}</text>'
    )


def draw_arrow(points: list[tuple[int, int]]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline class="arrow" points="{path}" marker-end="url(#head)"/>'


def draw_sideways(first: Box, second: Box) -> str:
    y = first.y + BOX_HEIGHT // 2
    if first.column < second.column:
        return draw_arrow([(first.x + BOX_WIDTH, y), (second.x - 3, y)])
    return draw_arrow([(first.x, y), (second.x + BOX_WIDTH + 3, y)])


def draw_upright(first: Box, second: Box) -> str:
    x = first.x + BOX_WIDTH // 2
    if first.y < second.y:
        return draw_arrow([(x, first.y + BOX_HEIGHT), (x, second.y - 3)])
    return draw_arrow([(x, first.y), (x, second.y + BOX_HEIGHT + 3)])


def draw_arrows() -> list[str]:
    retrain, drift, gate, registry = BETWEEN
    _, log, *_, serving, _ = SERVING
    middle = BOX_WIDTH // 2
    turn = registry.y + BOX_HEIGHT + 30
    down = [(registry.x + middle, registry.y + BOX_HEIGHT), (registry.x + middle, turn), (serving.x + middle, turn)]
    return [
        *(draw_sideways(first, second) for first, second in pairwise(TRAINING)),
        *(draw_sideways(first, second) for first, second in pairwise(reversed(SERVING))),
        draw_sideways(gate, registry),
        draw_upright(TRAINING[-1], registry),
        draw_arrow([*down, (serving.x + middle, serving.y - 3)]),
        draw_upright(log, drift),
        draw_sideways(drift, retrain),
        draw_upright(retrain, TRAINING[0]),
    ]


def draw_corridor() -> str:
    """The whole picture, as SVG."""
    rows = [
        (TRAINING_Y - 18, "uv run train", "start"),
        (SERVING_Y + BOX_HEIGHT + 28, "uv run serve", "end"),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{TITLE}</title>",
        f"<style>{STYLE}</style>",
        f"<defs>{ARROW_HEAD}</defs>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
    ]
    for y, words, anchor in rows:
        x = LEFT if anchor == "start" else LEFT + 5 * STEP + BOX_WIDTH
        parts.append(f'<text class="row" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>')
    parts += [draw_box(box) for box in [*TRAINING, *BETWEEN, *SERVING]]
    parts += draw_arrows()
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("corridor.svg").write_text(draw_corridor(), encoding="utf-8")

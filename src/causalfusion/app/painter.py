"""Paint over a picture in the browser: HTML and a script around a canvas of its own.

Gradio's ImageEditor is not used here: it draws by WebGL, which takes half a minute to begin where there is no
GPU, and has a dozen tools where a brush is needed.

Shape letters: H, W, C pixels and channels of the model's images.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from causalfusion.app.tiles import PIXELS_SEEN, data_uri, placeholder
from causalfusion.data.picture import UnreadableImage, decode_grey_alpha
from causalfusion.errors import UserError

SIDE = 512
"""Pixels of the longer side of the canvas; of larger pictures, those of the picture."""
LONGEST_PAINTING = 8_000_000
"""Characters of a painting as it is sent."""
_PAINTED = 128
"""Opacity from which a place counts as painted."""
_HEAD = "data:image/png;base64,"

PAINT = """
const size = () => Number(element.querySelector('input').value);
let tool = 'brush', last = null, past = [];
const canvasOf = () => element.querySelector('canvas');
const keep = (canvas) => {
  past.push(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height));
  if (past.length > 20) past.shift();
};
const line = (canvas, event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const to = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  const pen = canvas.getContext('2d'), [x, y] = last || to;
  pen.globalCompositeOperation = tool === 'eraser' ? 'destination-out' : 'source-over';
  pen.strokeStyle = '#f07814'; pen.lineCap = pen.lineJoin = 'round'; pen.lineWidth = size() * scale;
  pen.beginPath(); pen.moveTo(x, y); pen.lineTo(...to); pen.stroke();
  last = to;
};
element.addEventListener('pointerdown', (event) => {
  const canvas = event.target;
  if (canvas.tagName !== 'CANVAS') return;
  event.preventDefault(); canvas.setPointerCapture(event.pointerId);
  keep(canvas); last = null; line(canvas, event);
});
element.addEventListener('pointermove', (event) => {
  if (last && event.target.tagName === 'CANVAS') line(event.target, event);
});
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => { last = null; });
element.addEventListener('click', (event) => {
  const button = event.target.closest('button'), canvas = canvasOf();
  if (!button || !canvas) return;
  const pen = canvas.getContext('2d');
  if (button.dataset.tool === 'undo') { if (past.length) pen.putImageData(past.pop(), 0, 0); return; }
  if (button.dataset.tool === 'clear') {
    keep(canvas); pen.clearRect(0, 0, canvas.width, canvas.height); return;
  }
  tool = button.dataset.tool;
  for (const each of element.querySelectorAll('button')) {
    each.classList.toggle('cf-on', each.dataset.tool === tool);
  }
});
watch('value', () => { tool = 'brush'; past = []; last = null; });
"""
"""Runs where the painter is."""
WITH_PAINTING = """
(...values) => {
  const canvas = document.querySelector('#cf-painter canvas');
  values[0] = canvas ? canvas.toDataURL('image/png') : '';
  return values;
}
"""
"""Before a job is sent: its first input becomes what is painted."""


def painter(pixels: np.ndarray) -> str:
    """A picture (H, W, C) uint8 under a canvas to paint on, with tools."""
    height, width = pixels.shape[:2]
    factor = max(1, SIDE // max(height, width))
    drawn = "cf-crisp" if max(height, width) < PIXELS_SEEN else ""
    return (
        '<p class="cf-hint">Paint over the part that is to change</p>'
        f'<div class="cf-picture cf-painted" style="aspect-ratio:{width}/{height}">'
        f'<img class="{drawn}" src="{data_uri(pixels)}" alt="The picture to change">'
        f'<canvas width="{width * factor}" height="{height * factor}"></canvas></div>'
        '<div class="cf-tools"><button type="button" class="cf-on" data-tool="brush">Brush</button>'
        '<button type="button" data-tool="eraser">Eraser</button>'
        '<label>Size <input type="range" min="8" max="160" value="64"></label>'
        '<button type="button" data-tool="undo">Undo</button>'
        '<button type="button" data-tool="clear">Clear</button></div>'
    )


def no_picture() -> str:
    """The painter without a picture."""
    return placeholder("Choose a picture, or draw one first")


def painted_mask(painting: str | None, height: int, width: int) -> Tensor:
    """(H, W) bool of what is painted, a PNG of any size in base64, as the canvas gives it. A pixel is painted
    where half of it is; of strokes finer than that, all that they touch. Raises UserError where nothing is
    painted, or for anything else."""
    if not painting:
        raise UserError("there is nothing to paint on yet; choose a picture, or draw one first")
    if not painting.startswith(_HEAD) or len(painting) > LONGEST_PAINTING:
        raise UserError(f"the painting is no PNG of at most {LONGEST_PAINTING:,} characters")
    try:
        content = base64.b64decode(painting[len(_HEAD) :], validate=True)
        opacity = decode_grey_alpha(content, "the painting")[..., 1]
    except (binascii.Error, UnreadableImage):
        raise UserError("the painting cannot be read; paint again") from None
    covered = Image.fromarray((opacity >= _PAINTED).astype(np.float32))
    share = np.asarray(covered.resize((width, height), Image.Resampling.BOX))
    mask = share >= 0.5 if (share >= 0.5).any() else share > 0
    if not mask.any():
        raise UserError("nothing is painted; paint over the part of the picture that is to change")
    return torch.from_numpy(mask)

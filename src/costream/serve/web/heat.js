// Which parts of a picture speak for the match, laid over it as light: the rest is dimmed.

const DIM = 0.72;
const CELL = 24; // pixels of the canvas
const BRIGHT = 0.94; // share of cells that are less bright than full light

export function paint({ grid, region }) {
  const rows = grid.length;
  const columns = grid[0].length;
  const values = grid.flat();
  const ranked = [...values].sort((a, b) => a - b);
  const most = Math.max(1e-9, ranked[Math.floor(BRIGHT * (ranked.length - 1))]);
  const light = document.createElement("canvas");
  light.width = columns;
  light.height = rows;
  const context = light.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  values.forEach((value, number) => {
    const share = Math.min(1, Math.max(0, value / most));
    pixels.data.set([0, 0, 0, Math.round(255 * share)], number * 4);
  });
  context.putImageData(pixels, 0, 0);
  // What the model does not see is dimmed, too.
  const [left, top, right, bottom] = region;
  const canvas = document.createElement("canvas");
  canvas.className = "shade";
  canvas.width = Math.round((columns * CELL) / (right - left));
  canvas.height = Math.round((rows * CELL) / (bottom - top));
  const shade = canvas.getContext("2d");
  shade.fillStyle = `rgb(12 8 4 / ${DIM})`;
  shade.fillRect(0, 0, canvas.width, canvas.height);
  shade.globalCompositeOperation = "destination-out";
  shade.imageSmoothingQuality = "high";
  shade.drawImage(light, left * canvas.width, top * canvas.height, columns * CELL, rows * CELL);
  return canvas;
}

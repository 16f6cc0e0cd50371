// Which parts of a picture speak for the match, laid over it as light: the rest is dimmed.

export function paint({ grid, region }) {
  const rows = grid.length;
  const columns = grid[0].length;
  const most = Math.max(1e-9, ...grid.flat());
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const context = small.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  grid.flat().forEach((value, number) => {
    const share = Math.max(0, value / most);
    pixels.data.set([12, 8, 4, Math.round(215 * (1 - share ** 0.7))], number * 4);
  });
  context.putImageData(pixels, 0, 0);
  const canvas = document.createElement("canvas");
  canvas.className = "shade";
  canvas.width = columns * 24;
  canvas.height = rows * 24;
  const large = canvas.getContext("2d");
  large.imageSmoothingQuality = "high";
  large.drawImage(small, 0, 0, canvas.width, canvas.height);
  const [left, top, right, bottom] = region;
  canvas.style.left = `${100 * left}%`;
  canvas.style.top = `${100 * top}%`;
  canvas.style.width = `${100 * (right - left)}%`;
  canvas.style.height = `${100 * (bottom - top)}%`;
  return canvas;
}

// A picture that somebody drops, pastes or chooses, made small enough to be part of a URL. The model
// sees no more of it, and the same bytes are searched again when the URL is opened.

import { toUrlBase64 } from "./state.js";

const SIDE = 256;
const QUALITY = 0.8;

export class NoPicture extends Error {}

export async function shrink(blob, region = [0, 0, 1, 1]) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new NoPicture("This is no picture that the browser can read.");
  }
  const [left, top, right, bottom] = region;
  const width = Math.max(1, (right - left) * bitmap.width);
  const height = Math.max(1, (bottom - top) * bitmap.height);
  const scale = Math.min(1, SIDE / Math.min(width, height), (2 * SIDE) / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // as the service lays transparent pictures on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left * bitmap.width, top * bitmap.height, width, height, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const data = canvas.toDataURL("image/jpeg", QUALITY);
  return toUrlBase64(data.slice(data.indexOf(",") + 1));
}

// The first picture among what was dropped or pasted.
export async function pictureIn(transfer) {
  for (const entry of transfer?.items ?? []) {
    if (entry.kind === "file") {
      const file = entry.getAsFile();
      if (file) return file;
    }
  }
  return transfer?.files?.[0] ?? null;
}

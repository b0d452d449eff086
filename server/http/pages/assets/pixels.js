// Images as numbers: how close one is to another.

/** @param {string} url of an image file, data: or blob: @returns {Promise<ImageData>} */
export async function pixelsOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("this browser draws no canvas");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/**
 * Peak signal-to-noise ratio in dB over red, green and blue; infinite for the same image. Both must be of one size.
 * @param {ImageData} one
 * @param {ImageData} other
 * @returns {number}
 */
export function psnr(one, other) {
  let squares = 0;
  for (let i = 0; i < one.data.length; i++) {
    if (i % 4 !== 3) squares += ((one.data[i] ?? 0) - (other.data[i] ?? 0)) ** 2;
  }
  const mean = squares / (0.75 * one.data.length);
  return mean === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(255 ** 2 / mean);
}

/**
 * A small copy, for the history.
 * @param {string} url
 * @param {number} side  pixels at most
 * @returns {Promise<string>} a data: URL
 */
export async function thumbnail(url, side = 96) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const scale = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/webp", 0.85);
}

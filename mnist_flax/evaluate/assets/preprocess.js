/* From a drawing to MNIST's format, as `predict/preprocess.py` does it for photos, whose constants and
   functions have the same names; but a drawing has neither noise nor a background to subtract.
   Pure functions, which run in browsers and in Node.

   An image is {pixels, width, height}, row by row; a box is {top, left, bottom, right}. */
globalThis.mnistPreprocess = (() => {
  "use strict";

  const SIDE = 28;
  const BOX = 20;
  const MIN_STROKE = 2.2;
  const REACH = 0.25;
  const MIN_LENGTH = 0.05;
  const MAX_FILL = 0.7;

  /** 28x28 bytes, white on black, of a drawing's ink from 0 to 255; null if it is no digit. */
  function toMnist(drawing) {
    const digit = selectDigit(drawing);
    if (digit === null || isDot(digit, longestSide(drawing))) return null;
    return centerByMass(cropToBox(thickenStrokes(digit)));
  }

  /** The largest region and all that are close to it or to each other, without specks, cropped to
      them and with a margin; null if there is no ink. */
  function selectDigit(drawing) {
    const { labels, regions } = labelRegions(drawing);
    if (regions.length === 0) return null;
    const main = regions.reduce((a, b) => (b.area > a.area ? b : a));
    const pieces = regions.filter((region) => region.area >= 0.03 * main.area);
    const kept = new Set([main]);
    let box = main.box;
    for (let count = 0; count < kept.size;) { // until nothing more is near
      count = kept.size;
      const reach = REACH * longest(box);
      pieces.filter((piece) => isNear(piece.box, box, reach)).forEach((piece) => kept.add(piece));
      box = [...kept].map((piece) => piece.box).reduce(union);
    }
    const pixels = drawing.pixels.map((value, index) =>
      value && kept.has(regions[labels[index] - 1]) ? value : 0);
    const digit = crop({ ...drawing, pixels }, widen(box, 4 + Math.ceil(longest(box) / 10)));
    return gaussianFilter(digit, longestSide(drawing) / 400);
  }

  /** The regions of ink that touch, also at corners, and for each pixel its region's number. */
  function labelRegions({ pixels, width, height }) {
    const labels = new Int32Array(pixels.length);
    const regions = [];
    for (let start = 0; start < pixels.length; start++) {
      if (!pixels[start] || labels[start]) continue;
      const members = [start]; // grows while it is walked through
      const number = labels[start] = regions.length + 1;
      for (const member of members) {
        const [x, y] = [member % width, Math.floor(member / width)];
        for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
          for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
            const neighbor = row * width + column;
            if (!pixels[neighbor] || labels[neighbor]) continue;
            labels[neighbor] = number;
            members.push(neighbor);
          }
        }
      }
      regions.push({ area: members.length, box: boundingBox(members, width) });
    }
    return { labels, regions };
  }

  /** Whether it is too small for a digit, or as full as a dot. */
  function isDot(digit, side) {
    const pixels = whereAbove(digit, 127);
    if (pixels.length === 0) return true;
    const { top, left, bottom, right } = boundingBox(pixels, digit.width);
    const [height, width] = [bottom - top, right - left];
    const isNarrow = Math.min(height, width) < 0.6 * Math.max(height, width);
    const isFull = pixels.length > MAX_FILL * height * width;
    return Math.max(height, width) < MIN_LENGTH * side || (!isNarrow && isFull);
  }

  /** Widens strokes to at least `MIN_STROKE`. */
  function thickenStrokes(digit) {
    const { pixels, width } = digit;
    const mask = { ...digit, pixels: pixels.map((value) => value > 127) };
    const paper = { ...digit, pixels: mask.pixels.map((value) => 1 - value) };
    const depth = distanceTo(paper);
    const skeleton = skeletonize(mask);
    const depths = skeleton.reduce((sum, pixel) => sum + depth(pixel), 0);
    const strokeWidth = 2 * depths / skeleton.length;
    const box = boundingBox(whereAbove(mask, 0), width);
    const missing = (MIN_STROKE * longest(box) / BOX - strokeWidth) / 2;
    if (missing <= 0) return digit;
    const distance = distanceTo(mask, missing + 1);
    const added = (index) => 255 * clip(missing + 0.5 - distance(index), 0, 1);
    return { ...digit, pixels: pixels.map((value, index) => Math.max(value, added(index))) };
  }

  /** Crops to the ink, and scales the longest side to 20 pixels. */
  function cropToBox(digit) {
    const cropped = crop(digit, boundingBox(whereAbove(digit, 0.3 * 255), digit.width));
    const factor = BOX / longestSide(cropped);
    const size = (length) => Math.max(1, roundHalfEven(length * factor));
    const scaled = resize(cropped, size(cropped.width), size(cropped.height));
    const most = Math.max(...scaled.pixels);
    return { ...scaled, pixels: scaled.pixels.map((value) => roundHalfEven(value / most * 255)) };
  }

  /** Puts the center of mass in the center of 28x28 bytes. */
  function centerByMass({ pixels, width, height }) {
    const [row, column] = [(index) => Math.floor(index / width), (index) => index % width];
    const weighted = (place) => pixels.reduce((sum, value, i) => sum + value * place(i), 0);
    const center = (place) => weighted(place) / weighted(() => 1);
    const top = clip(roundHalfEven(SIDE / 2 - center(row)), 0, SIDE - height);
    const left = clip(roundHalfEven(SIDE / 2 - center(column)), 0, SIDE - width);
    const image = new Uint8Array(SIDE * SIDE);
    pixels.forEach((value, index) => {
      image[(top + row(index)) * SIDE + left + column(index)] = value;
    });
    return image;
  }

  /** Blurs an image whose margin is empty, with weights for three pixels in each direction. */
  function gaussianFilter(image, sigma) {
    const weights = [-3, -2, -1, 0, 1, 2, 3].map((offset) => Math.exp(-0.5 * (offset / sigma) ** 2));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const along = ({ pixels, width, height }, step) => {
      const blurred = new Float32Array(pixels.length);
      for (let index = 3 * step; index < pixels.length - 3 * step; index++) {
        let sum = 0;
        for (let i = 0; i < 7; i++) sum += weights[i] * pixels[index + (i - 3) * step];
        blurred[index] = sum / total;
      }
      return { pixels: blurred, width, height };
    };
    return along(along(image, image.width), 1);
  }

  /** The Euclidean distance of a pixel to the nearest one of a mask, as a function of the pixel;
      exact up to a limit. */
  function distanceTo({ pixels, width }, limit = Infinity) {
    const inColumn = new Float32Array(pixels.length);
    for (let index = 0; index < pixels.length; index++) {
      inColumn[index] = pixels[index] ? 0 : index < width ? Infinity : inColumn[index - width] + 1;
    }
    for (let index = pixels.length - width - 1; index >= 0; index--) {
      inColumn[index] = Math.min(inColumn[index], inColumn[index + width] + 1);
    }
    return (index) => {
      const column = index % width;
      let nearest = inColumn[index] ** 2;
      for (let step = 1; step * step < nearest && step <= Math.min(limit, width); step++) {
        const left = step <= column ? inColumn[index - step] : Infinity;
        const right = step < width - column ? inColumn[index + step] : Infinity;
        nearest = Math.min(nearest, step ** 2 + left ** 2, step ** 2 + right ** 2);
      }
      return Math.sqrt(nearest);
    };
  }

  /** The pixels in the middle of strokes, by the thinning of Zhang and Suen; has an empty border. */
  function skeletonize({ pixels, width }) {
    const around = [-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1];
    const thin = Uint8Array.from(pixels);
    let left = whereAbove({ pixels }, 0);
    for (let before = Infinity; left.length < before;) {
      before = left.length;
      for (const pass of [1, 2]) {
        const removed = left.filter((pixel) => {
          let neighbors = 0; // one bit for each, clockwise from the top
          for (let i = 0; i < 8; i++) neighbors |= thin[pixel + around[i]] << i;
          return REMOVABLE[neighbors] & pass;
        });
        for (const pixel of removed) thin[pixel] = 0;
        left = left.filter((pixel) => thin[pixel]);
      }
    }
    return left;
  }

  /** In which of two passes, 1 or 2 or both (3), a pixel with these neighbors is removed. */
  const REMOVABLE = Uint8Array.from({ length: 256 }, (_, neighbors) => {
    const bit = (i) => (neighbors >> (i % 8)) & 1;
    const eight = [0, 1, 2, 3, 4, 5, 6, 7];
    const count = eight.filter(bit).length;
    const strokes = eight.filter((i) => !bit(i) && bit(i + 1)).length;
    if (count < 2 || count > 6 || strokes !== 1) return 0;
    const [north, east, south, west] = [bit(0), bit(2), bit(4), bit(6)];
    const first = !(north && east && south) && !(east && south && west);
    const second = !(north && east && west) && !(north && south && west);
    return (first ? 1 : 0) | (second ? 2 : 0);
  });

  /** Pillow's resizing by a Hamming filter, along the rows and then along the columns. */
  function resize(image, width, height) {
    const narrow = transpose(resampleRows(image, width));
    return transpose(resampleRows(narrow, height));
  }

  /** Each row at another length. */
  function resampleRows({ pixels, width, height }, length) {
    const scale = width / length;
    const support = Math.max(scale, 1);
    const rows = new Float64Array(height * length);
    for (let column = 0; column < length; column++) {
      const center = (column + 0.5) * scale;
      const start = Math.max(0, Math.floor(center - support + 0.5));
      const end = Math.min(width, Math.floor(center + support + 0.5));
      const weights = Array.from({ length: end - start }, (_, index) =>
        hamming((start + index - center + 0.5) / support));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      for (let row = 0; row < height; row++) {
        const sum = weights.reduce((sum, w, i) => sum + w * pixels[row * width + start + i], 0);
        rows[row * length + column] = sum / total;
      }
    }
    return { pixels: rows, width: length, height };
  }

  function hamming(x) {
    if (x === 0 || Math.abs(x) >= 1) return x === 0 ? 1 : 0;
    return Math.sin(Math.PI * x) / (Math.PI * x) * (0.54 + 0.46 * Math.cos(Math.PI * x));
  }

  function transpose({ pixels, width, height }) {
    const place = (index) => (index % height) * width + Math.floor(index / height);
    return { pixels: pixels.map((_, index) => pixels[place(index)]), width: height, height: width };
  }

  /** The part of an image in a box; beyond the image it is 0. */
  function crop({ pixels, width, height }, { top, left, bottom, right }) {
    const cropped = new Float32Array((bottom - top) * (right - left));
    for (let row = Math.max(top, 0); row < Math.min(bottom, height); row++) {
      const part = pixels.subarray(row * width + Math.max(left, 0), row * width + Math.min(right, width));
      cropped.set(part, (row - top) * (right - left) + Math.max(-left, 0));
    }
    return { pixels: cropped, width: right - left, height: bottom - top };
  }

  /** The smallest box around some pixels. */
  function boundingBox(indices, width) {
    let [top, left, bottom, right] = [Infinity, Infinity, 0, 0];
    for (const index of indices) {
      const [row, column] = [Math.floor(index / width), index % width];
      [top, bottom] = [Math.min(top, row), Math.max(bottom, row + 1)];
      [left, right] = [Math.min(left, column), Math.max(right, column + 1)];
    }
    return { top, left, bottom, right };
  }

  function whereAbove({ pixels }, threshold) {
    const indices = [];
    for (let index = 0; index < pixels.length; index++) {
      if (pixels[index] > threshold) indices.push(index);
    }
    return indices;
  }

  const clip = (value, low, high) => Math.min(Math.max(value, low), high);
  const longestSide = ({ width, height }) => Math.max(width, height);
  const longest = ({ top, left, bottom, right }) => Math.max(bottom - top, right - left);

  const widen = ({ top, left, bottom, right }, by) =>
    ({ top: top - by, left: left - by, bottom: bottom + by, right: right + by });

  const union = (a, b) => ({
    top: Math.min(a.top, b.top), left: Math.min(a.left, b.left),
    bottom: Math.max(a.bottom, b.bottom), right: Math.max(a.right, b.right),
  });

  const isNear = (a, b, reach) =>
    a.top < b.bottom + reach && a.bottom > b.top - reach &&
    a.left < b.right + reach && a.right > b.left - reach;

  /** To the nearest integer, and halves to the even one, as Python and NumPy do. */
  function roundHalfEven(value) {
    const rounded = Math.round(value);
    return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
  }

  return { toMnist };
})();

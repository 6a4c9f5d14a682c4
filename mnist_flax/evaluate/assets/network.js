/* The network in plain JavaScript: probabilities, saliency, feature maps. Pure functions, which run
   in browsers and in Node. Images and activations are flat, in the order row, column, channel. */
globalThis.mnistNetwork = (() => {
  "use strict";

  const SIDE = 28;

  /** The network that `evaluate/pad.py` writes. */
  function load({ margin, size, kernels, weights }) {
    const bytes = Uint8Array.from(atob(weights), (char) => char.charCodeAt(0));
    const numbers = new Float32Array(bytes.buffer);
    let start = 0;
    const take = (length) => numbers.subarray(start, (start += length));
    const layers = kernels.map((shape) => {
      const [inputs, outputs] = shape.slice(-2);
      const kernel = take(shape.reduce((product, length) => product * length, 1));
      return { inputs, outputs, kernel, bias: take(outputs) };
    });
    return { margin, size, convolutions: layers.slice(0, -3), dense: layers.slice(-3) };
  }

  /** The answer to 28x28 bytes, white on black: `probabilities`, and all activations. */
  function run(network, pixels) {
    let values = crop(pixels, network);
    let size = network.size;
    const blocks = network.convolutions.map((layer) => {
      const convolved = convolve(values, size, layer);
      const block = { layer, size, convolved, ...pool(convolved, size - 2, layer) };
      values = block.result;
      size = block.resultSize;
      return block;
    });
    const hidden = [mean(values, network.dense[0].inputs)]; // never negative
    for (const layer of network.dense) hidden.push(multiply(hidden.at(-1).map(relu), layer));
    return { blocks, hidden, probabilities: softmax(hidden.at(-1)) };
  }

  const relu = (value) => (value > 0 ? value : 0);

  /** The pixels that the network sees, from 0 to 1. */
  function crop(pixels, { margin, size }) {
    return Float32Array.from({ length: size * size }, (_, index) =>
      (pixels[uncroppedIndex(index, margin, size)] ?? 0) / 255);
  }

  /** Where the image has a pixel that the network sees; -1 in the border around the image. */
  function uncroppedIndex(index, margin, size) {
    const row = margin + Math.floor(index / size);
    const column = margin + (index % size);
    const isInside = Math.min(row, column) >= 0 && Math.max(row, column) < SIDE;
    return isInside ? row * SIDE + column : -1;
  }

  /** A valid 3x3 convolution without its bias: [size - 2, size - 2, outputs]. */
  function convolve(values, size, { inputs, outputs, kernel }) {
    const side = size - 2;
    const result = new Float32Array(side * side * outputs);
    for (let pixel = 0; pixel < side * side; pixel++) {
      const sums = result.subarray(pixel * outputs, (pixel + 1) * outputs);
      for (let tap = 0; tap < 9; tap++) {
        const source = tapPosition(pixel, tap, size) * inputs;
        for (let input = 0; input < inputs; input++) {
          const value = values[source + input];
          if (value === 0) continue; // as most are, after the ReLU
          const weights = (tap * inputs + input) * outputs;
          for (let output = 0; output < outputs; output++) {
            sums[output] += value * kernel[weights + output];
          }
        }
      }
    }
    return result;
  }

  /** Where one of a kernel's nine weights meets the input, for a pixel of the output. */
  function tapPosition(pixel, tap, size) {
    const row = Math.floor(pixel / (size - 2)) + Math.floor(tap / 3);
    return row * size + (pixel % (size - 2)) + (tap % 3);
  }

  /** 2x2 max-pooling without an odd last row and column, then bias and ReLU, as `core/model.py`. */
  function pool(values, size, { outputs, bias }) {
    const pooledSize = Math.floor(size / 2);
    const pooled = new Float32Array(pooledSize * pooledSize * outputs);
    const winners = new Int32Array(pooled.length); // where each maximum is
    for (let index = 0; index < pooled.length; index++) {
      const channel = index % outputs;
      const pixel = (index - channel) / outputs;
      const row = 2 * Math.floor(pixel / pooledSize);
      const first = (row * size + 2 * (pixel % pooledSize)) * outputs + channel;
      let winner = first; // the first of equal values
      for (const offset of [1, size, size + 1]) {
        const other = first + offset * outputs;
        if (values[other] > values[winner]) winner = other;
      }
      winners[index] = winner;
      pooled[index] = relu(values[winner] + bias[channel]);
    }
    return { winners, result: pooled, resultSize: pooledSize };
  }

  /** The mean over all positions: [channels]. */
  function mean(values, channels) {
    const result = new Float32Array(channels);
    values.forEach((value, index) => {
      result[index % channels] += (value * channels) / values.length;
    });
    return result;
  }

  /** A dense layer without activation. */
  function multiply(values, { outputs, kernel, bias }) {
    const sums = Float32Array.from(bias);
    values.forEach((value, input) => {
      for (let output = 0; output < outputs; output++) {
        sums[output] += value * kernel[input * outputs + output];
      }
    });
    return sums;
  }

  function softmax(logits) {
    const largest = Math.max(...logits);
    const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
    const sum = exponentials.reduce((total, value) => total + value, 0);
    return exponentials.map((value) => value / sum);
  }

  /** How strongly each of the 28x28 pixels influences the answer of `run`, from 0 to 1.

      The absolute gradient of the loss with the answer as its label, as in `evaluate/saliency.py`. */
  function saliency(network, { blocks, hidden, probabilities }) {
    const answer = probabilities.indexOf(Math.max(...probabilities));
    let gradient = Float64Array.from(probabilities, (p, digit) => (digit === answer ? 1 - p : -p));
    for (let index = network.dense.length - 1; index >= 0; index--) {
      gradient = multiplyBack(gradient, network.dense[index], hidden[index]);
    }
    gradient = meanBack(gradient, blocks.at(-1).result);
    for (const block of [...blocks].reverse()) {
      gradient = poolBack(gradient, block);
    }
    return uncrop(gradient, network);
  }

  /** The gradient of a dense layer's input, which is zero where a ReLU cut it off. */
  function multiplyBack(gradient, { inputs, outputs, kernel }, values) {
    return Float64Array.from({ length: inputs }, (_, input) => {
      let sum = 0;
      for (let output = 0; output < outputs; output++) {
        sum += gradient[output] * kernel[input * outputs + output];
      }
      return values[input] > 0 ? sum : 0;
    });
  }

  /** The gradient of the mean's input. */
  function meanBack(gradient, { length }) {
    return Float64Array.from({ length }, (_, index) =>
      (gradient[index % gradient.length] * gradient.length) / length);
  }

  /** The gradient of a block's input: only the maxima that passed the ReLU count. */
  function poolBack(gradient, { layer, size, convolved, winners, result }) {
    const slopes = new Float64Array(convolved.length);
    gradient.forEach((slope, index) => {
      if (result[index] > 0) slopes[winners[index]] = slope;
    });
    return convolveBack(slopes, size, layer);
  }

  /** The gradient of a convolution's input. */
  function convolveBack(gradient, size, { inputs, outputs, kernel }) {
    const result = new Float64Array(size * size * inputs);
    gradient.forEach((slope, index) => {
      if (slope === 0) return; // as most are, before the pooling
      const output = index % outputs;
      const pixel = (index - output) / outputs;
      for (let tap = 0; tap < 9; tap++) {
        const target = tapPosition(pixel, tap, size) * inputs;
        for (let input = 0; input < inputs; input++) {
          result[target + input] += slope * kernel[(tap * inputs + input) * outputs + output];
        }
      }
    });
    return result;
  }

  /** Absolute values in an image of 28x28, divided by the largest. */
  function uncrop(values, { margin, size }) {
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-30);
    const image = new Float32Array(SIDE * SIDE);
    values.forEach((value, index) => {
      image[uncroppedIndex(index, margin, size)] = Math.abs(value) / largest;
    });
    return image;
  }

  /** What the first layer's filters respond to, of an answer of `run`: each from 0 to 1. */
  function featureMaps({ blocks: [{ layer, size, convolved }] }) {
    const { outputs, bias } = layer;
    const values = convolved.map((value, index) => relu(value + bias[index % outputs]));
    const largest = values.reduce((most, value) => Math.max(most, value), 1e-30);
    const maps = Array.from({ length: outputs }, (_, channel) =>
      Float32Array.from({ length: values.length / outputs }, (_, pixel) =>
        values[pixel * outputs + channel] / largest));
    return { size: size - 2, maps };
  }

  return { load, run, saliency, featureMaps };
})();

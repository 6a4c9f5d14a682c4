/* A drawing pad: strokes in, the answer of the network out, while one draws. Needs `network.js` and
   `preprocess.js`; each pad of a page has its own state. */
globalThis.startPad = (root) => {
  "use strict";

  const SIDE = 280; // of the drawing that the network gets, in pixels
  const PEN = 0.075; // width of a stroke, as a share of the pad
  const LOW_CONFIDENCE = 0.95; // as in `predict/command.py`
  const EMPTY = "Draw a digit";

  const find = (name) => root.querySelector(`.pad-${name}`);
  const canvas = find("canvas");
  const network = mnistNetwork.load(JSON.parse(find("network").textContent));
  const drawing = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  drawing.canvas.width = drawing.canvas.height = SIDE;

  let strokes = []; // each a list of points from 0 to 1
  let pointer = null; // the mouse button, pen or finger that draws
  let frame = null; // the next repainting
  let shown = null; // the activations of the network, of what is shown

  // Drawing.

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    if (strokes.length === 0) clear(); // a photo
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    strokes.push([locate(event)]);
    schedule();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    strokes.at(-1).push(...(events.length ? events : [event]).map(locate));
    schedule();
  });

  canvas.addEventListener("lostpointercapture", (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    schedule();
  });

  root.addEventListener("keydown", (event) => {
    const isUndo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
    const action = isUndo ? undo : { Delete: clear, Backspace: undo, Escape: clear }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  find("undo").addEventListener("click", undo);
  find("clear").addEventListener("click", clear);
  find("features").addEventListener("toggle", showFeatures);
  new ResizeObserver(schedule).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  function locate({ clientX, clientY }) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  function undo() {
    if (strokes.length < 2) return clear();
    pointer = null;
    strokes.pop();
    repaint();
  }

  function clear() {
    pointer = null;
    strokes = [];
    root.dispatchEvent(new Event("pad-cleared"));
    show(null);
    repaint();
  }

  function schedule() {
    frame ??= requestAnimationFrame(repaint);
  }

  function repaint() {
    cancelAnimationFrame(frame);
    frame = null;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    paint(canvas.getContext("2d"), side, getComputedStyle(canvas).color);
    if (strokes.length === 0) return;
    paint(drawing, SIDE, "black");
    const { data } = drawing.getImageData(0, 0, SIDE, SIDE);
    const ink = Uint8Array.from({ length: SIDE * SIDE }, (_, index) => data[4 * index + 3]);
    show(mnistPreprocess.toMnist({ pixels: ink, width: SIDE, height: SIDE }));
  }

  function paint(context, side, color) {
    context.clearRect(0, 0, side, side);
    Object.assign(context, { strokeStyle: color, lineCap: "round", lineJoin: "round" });
    context.lineWidth = PEN * side;
    for (const stroke of strokes) {
      context.beginPath();
      context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
      for (const [x, y] of stroke) context.lineTo(x * side, y * side);
      context.stroke();
    }
  }

  // The answer.

  /** Shows what the network answers to 28x28 bytes; without pixels, a message. */
  function show(pixels, message = EMPTY) {
    shown = pixels && mnistNetwork.run(network, pixels);
    const answers = shown?.probabilities ?? new Array(10).fill(0);
    const [first, second] = [...answers.keys()].sort((a, b) => answers[b] - answers[a]);
    const isLow = shown !== null && answers[first] < LOW_CONFIDENCE;
    root.classList.toggle("pad-unsure", isLow);
    root.classList.toggle("pad-answered", shown !== null);
    find("digit").textContent = shown ? first : "";
    find("headline").textContent = shown ? `${percent(answers[first])} confidence` : message;
    find("remark").textContent = isLow
      ? `Low confidence: it may be a ${second} (${percent(answers[second])})`
      : "";
    find("bars").querySelectorAll("li").forEach((bar, digit) => {
      bar.classList.toggle("pad-first", shown !== null && digit === first);
      bar.style.setProperty("--share", answers[digit]);
      bar.querySelector(".pad-share").textContent = shown ? percent(answers[digit]) : "";
    });
    showPixels(pixels);
    showFeatures();
    if (pointer === null) announce(); // when a stroke has ended
  }

  const percent = (share) => `${(100 * share).toFixed(2)}%`;

  /** Tells screen readers what is new. */
  function announce() {
    const texts = ["digit", "headline", "remark"].map((name) => find(name).textContent);
    const text = texts.filter(Boolean).join(", ");
    if (find("status").textContent !== text) find("status").textContent = text;
  }

  /** The input, and over it what influences the answer. */
  function showPixels(pixels) {
    const saliency = shown && mnistNetwork.saliency(network, shown);
    const gray = (index) => (pixels ? pixels[index] : 0);
    fill(find("input"), 28, (index) => [gray(index), gray(index), gray(index)]);
    fill(find("saliency"), 28, (index) => {
      const share = saliency ? saliency[index] ** 0.7 : 0; // weak influences stay visible
      return SALIENT.map((color) => 0.55 * gray(index) * (1 - share) + color * share);
    });
  }

  const SALIENT = [255, 170, 60];

  /** All feature maps in rows of 8 or 16, a pixel apart; computed only while they are seen. */
  function showFeatures() {
    if (!find("features").open) return;
    const { size, maps } = mnistNetwork.featureMaps(shown ?? mnistNetwork.run(network, BLANK));
    const map = find("maps");
    const columns = map.clientWidth < 500 ? 8 : 16;
    map.width = columns * (size + 1) - 1;
    map.height = Math.ceil(maps.length / columns) * (size + 1) - 1;
    const image = new ImageData(map.width, map.height);
    maps.forEach((values, channel) => {
      const left = (channel % columns) * (size + 1);
      const top = Math.floor(channel / columns) * (size + 1);
      values.forEach((value, index) => {
        const place = (top + Math.floor(index / size)) * map.width + left + (index % size);
        image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * place);
      });
    });
    map.getContext("2d").putImageData(image, 0, 0);
  }

  const BLANK = new Uint8Array(28 * 28);

  function fill(canvas, side, color) {
    const image = new ImageData(side, side);
    for (let index = 0; index < side * side; index++) {
      image.data.set([...color(index), 255], 4 * index);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  show(null);
  return { clear, show };
};

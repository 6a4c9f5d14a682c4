/* Photos for a pad: by a button, dropped or pasted. The program that serves the page reads them. */
globalThis.startUpload = (root, pad) => {
  "use strict";

  const MAX_BYTES = 20 * 2 ** 20; // as in `demo.py`
  const photo = root.querySelector(".pad-photo");
  const input = root.querySelector(".pad-upload input");
  let request = null; // what can still be cancelled

  input.addEventListener("change", () => {
    upload(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });

  document.addEventListener("paste", (event) => upload(event.clipboardData.files[0]));

  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      root.classList.toggle("pad-dropping", name === "dragover");
      if (name === "drop") upload(event.dataTransfer.files[0]);
    });
  }

  root.addEventListener("pad-cleared", () => {
    request?.abort();
    photo.hidden = true;
    if (photo.src) URL.revokeObjectURL(photo.src);
    photo.removeAttribute("src");
  });

  photo.addEventListener("error", () => { photo.hidden = true; }); // a format of which the browser has no decoder

  async function upload(file) {
    if (!file) return;
    pad.clear();
    if (file.size > MAX_BYTES) return pad.show(null, "The file is larger than 20 MB.");
    photo.src = URL.createObjectURL(file);
    photo.hidden = false;
    pad.show(null, "Reading the photo …");
    const current = request = new AbortController();
    const answer = await ask(file, current.signal);
    if (current.signal.aborted) return;
    const pixels = answer.pixels && Uint8Array.from(atob(answer.pixels), (c) => c.charCodeAt(0));
    pad.show(pixels ?? null, answer.message);
  }

  async function ask(body, signal) {
    try {
      const response = await fetch("predict", { method: "POST", body, signal });
      return await response.json();
    } catch {
      return { message: "No answer: is the program that serves this page still running?" };
    }
  }
};

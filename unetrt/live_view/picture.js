// Draws the newest frame with its labels as an overlay.

const EVERY = 100; // milliseconds between two pictures

export class Picture {
  constructor(canvas, colours) {
    Object.assign(this, { canvas, colours, mode: "overlay", fill: 0.25, shown: null, after: -1, how: "" });
  }

  set(what) {
    Object.assign(this, what);
    this.draw();
  }

  // Shows frames with other parameters, the present one too.
  ask(how) {
    Object.assign(this, { how, after: -1 });
    this.request?.abort();
  }

  // Requests the newest picture again and again, so that a slow page skips some and never lags.
  async follow(signal, report) {
    this.after = -1;
    while (!signal.aborted) {
      const begin = performance.now(), how = this.how, request = (this.request = new AbortController());
      try {
        const either = AbortSignal.any([signal, request.signal]);
        const answer = await fetch(`picture?after=${this.after}${how}`, { signal: either });
        if (answer.status === 200) {
          const born = performance.now() - 1000 * Number(answer.headers.get("Frame-Age"));
          await this.take(await answer.arrayBuffer(), born);
          this.after = how === this.how ? this.shown.head.number : -1;
          report(this.shown.head, "");
        } else if (!answer.ok) {
          report(null, await answer.text());
          await pause(1000);
        }
      } catch (error) {
        if (signal.aborted) return;
        if (!request.signal.aborted) await pause(1000); // page.js reports the lost connection
      }
      await pause(EVERY - (performance.now() - begin));
    }
  }

  // born: when the frame was submitted, by this page's clock.
  async take(body, born) {
    const length = new DataView(body).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
    const jpeg = new Uint8Array(body, 4 + length, head.jpeg);
    const [frame, codes] = await Promise.all([
      createImageBitmap(new Blob([jpeg], { type: "image/jpeg" })),
      inflated(new Uint8Array(body, 4 + length + head.jpeg)),
    ]);
    this.shown?.frame.close();
    this.shown = { head, frame, codes, born };
    this.draw();
  }

  draw() {
    if (!this.shown) return;
    const { head: { width, height }, frame } = this.shown;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.fillRect(0, 0, width, height);
    if (this.mode !== "labels") pen.drawImage(frame, 0, 0);
    if (this.mode !== "frame") pen.drawImage(this.labels(width, height), 0, 0);
  }

  labels(width, height) {
    const layer = new OffscreenCanvas(width, height), pen = layer.getContext("2d");
    const image = pen.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
    const table = this.table();
    this.shown.codes.forEach((code, place) => (pixels[place] = table[code]));
    pen.putImageData(image, 0, 0);
    return layer;
  }

  // What is drawn for each code, as it lies in memory: red, green, blue, opacity.
  table() {
    const inside = this.mode === "labels" ? 0.55 : this.fill;
    const colour = (rgb, opacity) => [...rgb, Math.round(255 * opacity)];
    const bytes = [[0, 0, 0, 0], ...this.colours.map((rgb) => colour(rgb, inside)), ...this.colours.map((rgb) => colour(rgb, 1))];
    return new Uint32Array(new Uint8Array(bytes.flat()).buffer);
  }
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, Math.max(0, milliseconds)));
}

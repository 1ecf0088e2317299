// Zooms and pans the picture, and draws its scale bar.

const MOST = 40; // largest magnification of the whole picture's view
const STEP = 1.25; // magnification of a key or a button
const PAN = 60; // CSS pixels of an arrow key
const PIXELATED = 2; // CSS pixels of a picture's pixel from which on single pixels are shown
const BAR = 0.22; // longest bar, as a share of the view's width

export class Zoom {
  // view: the element that shows a part of the canvas; bar: the element of the scale bar.
  constructor(view, canvas, bar) {
    Object.assign(this, { view, canvas, bar, scale: 1, x: 0, y: 0, head: null });
    new ResizeObserver(() => this.move(0, 0)).observe(view);
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    view.addEventListener("dblclick", () => this.reset());
    view.addEventListener("pointerdown", (event) => this.scale > 1 && event.button === 0 && view.setPointerCapture(event.pointerId));
    view.addEventListener("pointermove", (event) => {
      if (view.hasPointerCapture(event.pointerId)) this.move(event.movementX, event.movementY);
    });
    view.addEventListener("keydown", (event) => this.arrow(event));
  }

  // Takes the size of the picture and of its pixels.
  show(head) {
    this.head = head;
    this.draw();
  }

  in() { this.by(STEP); }

  out() { this.by(1 / STEP); }

  reset() {
    Object.assign(this, { scale: 1, x: 0, y: 0 });
    this.draw();
  }

  // Magnifies around a point of the view in CSS pixels, its middle by default.
  by(factor, across = this.view.clientWidth / 2, down = this.view.clientHeight / 2) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor)), change = scale / this.scale;
    this.scale = scale;
    this.move((across - this.x) * (1 - change), (down - this.y) * (1 - change));
  }

  move(across, down) {
    const least = (size) => size * (1 - this.scale); // the view stays filled
    this.x = Math.min(0, Math.max(least(this.view.clientWidth), this.x + across));
    this.y = Math.min(0, Math.max(least(this.view.clientHeight), this.y + down));
    this.draw();
  }

  wheel(event) {
    if (event.ctrlKey || (this.scale === 1 && event.deltaY > 0)) return; // the browser zooms or scrolls the page
    event.preventDefault();
    const { left, top } = this.view.getBoundingClientRect();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
    this.by(Math.exp(-event.deltaY * lines * 0.002), event.clientX - left, event.clientY - top);
  }

  arrow(event) {
    const step = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] }[event.key];
    if (!step || event.target !== this.view || this.scale === 1) return;
    event.preventDefault();
    this.move(...step);
  }

  draw() {
    this.canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.view.dataset.zoomed = this.scale > 1;
    if (!this.head) return;
    const { width, height, step, pixel_size: side } = this.head, { clientWidth: wide, clientHeight: high } = this.view;
    const pixel = Math.min(wide / width, high / height) * this.scale; // CSS pixels of one of the picture's
    this.canvas.style.imageRendering = pixel >= PIXELATED ? "pixelated" : "auto";
    this.bar.hidden = side === null || !wide || !high;
    if (this.bar.hidden) return;
    const length = below((BAR * wide * side * step) / pixel); // µm
    this.bar.firstElementChild.style.width = `${(length / (side * step)) * pixel}px`;
    this.bar.lastElementChild.textContent = named(length);
  }
}

// The largest of 1, 2, 5, 10, 20 ... that is not above a number.
function below(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [5, 2, 1].find((step) => step * power <= value * (1 + 1e-9) || step === 1);
}

function named(micrometres) {
  const [unit, factor] = micrometres >= 1000 ? ["mm", 1e-3] : micrometres < 1 ? ["nm", 1e3] : ["µm", 1];
  return `${Number((micrometres * factor).toPrecision(3))} ${unit}`;
}

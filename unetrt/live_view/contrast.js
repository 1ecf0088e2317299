// The controls of contrast limits and gamma. The limits are grey values; the server applies them to the frame itself.

const POSITIONS = 1000; // of the sliders between the ends of their scale
const $ = (id) => document.getElementById(id);

export class Contrast {
  // changed: called with the query parameters of a picture whenever they are others.
  constructor(changed) {
    Object.assign(this, { changed, auto: true, limits: [0, 1], ends: [0, 1], whole: true });
    $("auto").addEventListener("change", (event) => this.setAuto(event.target.checked));
    $("gamma").addEventListener("input", () => this.set());
    ["low", "high"].forEach((name, place) => {
      $(name).addEventListener("input", (event) => this.limit(place, this.value(event.target.value)));
      $(`${name}-value`).addEventListener("change", (event) => {
        if (Number.isFinite(event.target.valueAsNumber)) this.limit(place, event.target.valueAsNumber);
        else this.draw();
      });
    });
  }

  get gamma() { return 2 ** Number($("gamma").value); }

  setAuto(auto) {
    this.auto = $("auto").checked = auto;
    this.set();
  }

  // Takes the limits of a picture that was shown with automatic ones, and fits the scale of the sliders around them.
  show(head) {
    if (!this.auto) return;
    const [low, high] = (this.limits = head.limits), width = high - low, [least, most] = head.range;
    this.ends = [Math.max(Math.min(least, low), low - width), Math.min(Math.max(most, high), high + 2 * width)];
    this.whole = /int|bool/.test(head.dtype);
    this.draw();
  }

  limit(place, value) {
    this.auto = $("auto").checked = false;
    this.limits = [...this.limits];
    this.limits[place] = value;
    // The other limit gives way.
    if (this.limits[0] >= this.limits[1]) this.limits[1 - place] = value + (place ? -1 : 1) * this.least();
    this.ends = [Math.min(this.ends[0], this.limits[0]), Math.max(this.ends[1], this.limits[1])];
    this.set();
  }

  set() {
    this.draw();
    const limits = this.auto ? "" : `&low=${this.limits[0]}&high=${this.limits[1]}`;
    this.changed(`${limits}${this.gamma === 1 ? "" : `&gamma=${this.gamma.toFixed(3)}`}`);
  }

  draw() {
    const [first, last] = this.ends;
    ["low", "high"].forEach((name, place) => {
      const shown = this.rounded(this.limits[place]);
      $(name).value = Math.round((POSITIONS * (this.limits[place] - first)) / (last - first || 1));
      $(name).setAttribute("aria-valuetext", shown);
      if (document.activeElement !== $(`${name}-value`) || !this.auto) $(`${name}-value`).value = shown;
    });
    const gamma = this.gamma.toFixed(2);
    $("gamma-value").textContent = gamma;
    $("gamma").setAttribute("aria-valuetext", gamma);
  }

  value(position) {
    const value = this.ends[0] + ((this.ends[1] - this.ends[0]) * position) / POSITIONS;
    return this.whole ? Math.round(value) : value;
  }

  least() { return this.whole ? 1 : (this.ends[1] - this.ends[0]) / POSITIONS || 1e-6; }

  rounded(value) { return this.whole ? Math.round(value) : Number(value.toPrecision(4)); }
}

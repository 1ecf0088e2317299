// A plot of the last minute: stacked areas, or one line.

const SPAN = 60; // seconds
const LEFT = 46, BOTTOM = 18, TOP = 8; // margins in CSS pixels
const STEPS = [1, 2, 2.5, 5, 10];

export class Plot {
  // series: [{ of: point => number, colour: name in page.css }], stacked from the first up; unit: number => tick label.
  constructor(canvas, series, unit) {
    Object.assign(this, { canvas, series, unit, points: [], now: 0 });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => this.draw());
  }

  show(points, now) {
    this.points = points;
    this.now = now;
    this.draw();
  }

  draw() {
    const ratio = devicePixelRatio, { clientWidth: wide, clientHeight: high } = this.canvas;
    if (!wide || !high) return;
    this.canvas.width = Math.round(wide * ratio);
    this.canvas.height = Math.round(high * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const columns = this.columns(wide - LEFT);
    const top = ceiling(Math.max(0, ...columns.map((column) => column.levels.at(-1))));
    const y = (value) => TOP + (high - TOP - BOTTOM) * (1 - value / top);
    this.scale(pen, wide, high, top, y);
    this.series.forEach((series, level) => this.area(pen, columns, level, y));
    this.failures(pen, wide, high);
  }

  // One column for every 3 pixels: the median of each series among the frames that ended then.
  columns(width) {
    const found = new Map();
    for (const point of this.points) {
      const column = Math.floor((width * (point.time - this.now + SPAN)) / SPAN / 3);
      if (column < 0 || point.failed || this.series.some(({ of }) => of(point) === null)) continue;
      if (!found.has(column)) found.set(column, []);
      found.get(column).push(point);
    }
    return [...found].map(([column, points]) => {
      let sum = 0;
      const levels = this.series.map(({ of }) => (sum += median(points.map(of))));
      return { x: LEFT + column * 3, levels };
    });
  }

  area(pen, columns, level, y) {
    if (!columns.length) return;
    const upper = columns.map(({ x, levels }) => [x, y(levels[level])]);
    const lower = columns.map(({ x, levels }) => [x, y(level ? levels[level - 1] : 0)]).reverse();
    pen.strokeStyle = pen.fillStyle = themed(this.series[level].colour);
    trace(pen, [...upper, ...lower]);
    pen.globalAlpha = 0.22;
    pen.fill();
    pen.globalAlpha = 1;
    trace(pen, upper);
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    pen.stroke();
    const [x, last] = upper.at(-1);
    pen.fillRect(x - 1.5, last - 1.5, 3, 3); // a single frame is seen too
  }

  scale(pen, wide, high, top, y) {
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = themed("quiet");
    pen.strokeStyle = themed("line");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of [0, top / 2, top]) {
      const at = Math.round(y(value)) + 0.5;
      trace(pen, [[LEFT, at], [wide, at]]);
      pen.stroke();
      pen.fillText(this.unit(value), LEFT - 7, at);
    }
    pen.textBaseline = "bottom";
    for (const [ago, align] of [[SPAN, "left"], [SPAN / 2, "center"], [0, "right"]]) {
      pen.textAlign = align;
      pen.fillText(ago ? `${ago} s ago` : "now", LEFT + (wide - LEFT) * (1 - ago / SPAN), high);
    }
  }

  failures(pen, wide, high) {
    pen.fillStyle = themed("failed");
    for (const { time, failed } of this.points) {
      const x = LEFT + ((wide - LEFT) * (time - this.now + SPAN)) / SPAN;
      if (failed && x >= LEFT) pen.fillRect(x - 1, high - BOTTOM - 6, 2, 6);
    }
  }
}

// A colour of page.css, dark or light.
function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
}

function trace(pen, points) {
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
}

function median(values) {
  return values.sort((a, b) => a - b)[values.length >> 1];
}

// The next round number, so that the scale seldom changes.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * STEPS.find((step) => step * power >= value * 1.05 || step === 10);
}

// Shows the status events of a run, and reports a lost connection or the end of the run.

import { Contrast } from "./contrast.js";
import { Picture } from "./picture.js";
import { Plot } from "./plot.js";
import { Zoom } from "./zoom.js";

const AGAIN = 1000; // milliseconds between two attempts to connect
const SILENCE = 4000; // milliseconds without an event until the connection counts as lost
const KEPT = 3000; // points in the plots
const STALE = 5; // seconds from which on the age of the frame stands out

const $ = (id) => document.getElementById(id);
const body = document.body;
const points = [];
let events, heard = 0, picture, following, ended = false;

const latency = new Plot(
  $("latency"),
  [{ of: (p) => p.compute, colour: "compute" }, { of: (p) => p.queueing, colour: "queueing" }],
  seconds,
);
const counted = new Plot($("counted"), [{ of: (p) => p.objects, colour: "objects" }], round);
const zoom = new Zoom($("screen"), $("picture"), $("scale"));
const contrast = new Contrast((how) => picture?.ask(how));

function connect() {
  events?.close();
  events = new EventSource("events");
  heard = performance.now();
  events.addEventListener("hello", (event) => greet(JSON.parse(event.data)));
  events.addEventListener("status", (event) => show(JSON.parse(event.data)));
  events.addEventListener("end", (event) => { show(JSON.parse(event.data)); ended = true; });
  events.onerror = lost;
}

function lost() {
  events?.close();
  events = null;
  following?.abort();
  if (ended) link("ended", "The run has ended. Waiting for the next one …");
  else link("lost", "Connection lost. Trying again …");
  if (!document.hidden) setTimeout(again, AGAIN);
}

// Connects, unless another run is served here: its address contains another token.
async function again() {
  const answer = await fetch("icon.svg", { signal: AbortSignal.timeout(SILENCE) }).catch(() => null);
  if (answer?.status === 404) link("moved", "This run has ended. The next one has printed another address.");
  else if (!document.hidden) connect();
}

function greet(hello) {
  ended = false;
  points.length = 0;
  text("model", hello.model);
  picture ??= new Picture($("picture"), hello.colours);
  following?.abort();
  following = new AbortController();
  picture.follow(following.signal, caption);
}

function show({ status, now, points: news }) {
  heard = performance.now();
  const closed = status.state === "closed";
  body.dataset.state = status.state;
  link("open", closed ? "The run has ended. This is its last frame." : "");
  for (const [time, queueing, compute, objects, failed] of news) points.push({ time, queueing, compute, objects, failed });
  points.splice(0, points.length - KEPT);
  const last = closed ? points.at(-1)?.time ?? now : now; // plots stop when the run has ended
  latency.show(points, last);
  counted.show(points, last);
  numbers(status);
}

function numbers(status) {
  for (const name of ["submitted", "done", "dropped", "failed", "pending", "missed"]) text(name, round(status[name]));
  for (const part of document.querySelectorAll(".bar i")) {
    part.style.width = `${(100 * status[part.className]) / Math.max(1, status.submitted)}%`;
  }
  for (const row of document.querySelectorAll("[data-time]")) {
    const times = status[row.dataset.time];
    [times.p50, times.p95, times.p99].forEach((time, place) => (row.children[place + 1].textContent = seconds(time)));
  }
  const newest = points.findLast((point) => !point.failed);
  text("objects", newest && newest.objects !== null ? round(newest.objects) : "–");
  text("objects-note", newest?.objects === null ? "classes are not counted" : "");
  text("rate", decimal(status.rate));
  text("median", seconds(status.latency.p50));
  text("error", status.last_error || "no errors");
  $("error").title = status.last_error;
  $("error").classList.toggle("some", Boolean(status.last_error));
}

function caption(head, wrong) {
  $("empty").hidden = true;
  if (!head) return text("caption", wrong);
  $("screen").style.setProperty("--aspect", head.width / head.height);
  zoom.show(head);
  contrast.show(head);
  age();
  const names = ["position", "channel", "camera"].map((name) => head[name] && `${name} ${head[name]}`);
  const size = head.shape.length ? `${head.shape.join(" × ")} ${head.dtype}` : head.dtype;
  const shown = head.step > 1 ? `shown at 1 : ${head.step}` : "";
  text("caption", [`frame ${head.number}`, head.index, ...names, size, shown].filter(Boolean).join("  ·  "));
}

// Shows how old the frame is; it counts on when no frame comes.
function age() {
  if (!picture?.shown) return;
  const passed = Math.max(0, performance.now() - picture.shown.born) / 1000;
  $("age").hidden = false;
  $("age").classList.toggle("stale", passed >= STALE);
  text("age", `${passed < 10 ? `${passed.toFixed(1)} s` : long(Math.floor(passed))} old`);
}

function long(seconds) {
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function link(how, banner) {
  body.dataset.link = how;
  text("banner", banner);
  text("state-text", { lost: "no connection", ended: "ended", moved: "ended" }[how] ?? body.dataset.state);
}

function text(id, content) {
  if ($(id).textContent !== content) $(id).textContent = content;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const ms = value * 1000;
  return `${ms === 0 || ms >= 100 ? Math.round(ms) : ms.toPrecision(2)} ms`;
}

function round(value) {
  return Number.isInteger(value) ? value.toLocaleString("en").replaceAll(",", " ") : value.toFixed(1);
}

// A rate with one decimal, or, below 1, with two significant digits, as `decimal` of runtime/live/results.py.
function decimal(rate) {
  return rate >= 1 || rate < 1e-4 ? rate.toFixed(1) : String(Number(rate.toPrecision(2)));
}

function choose(mode) {
  document.querySelectorAll("#modes button").forEach((each) => each.setAttribute("aria-pressed", each.dataset.mode === mode));
  $("fill").disabled = mode !== "overlay";
  picture?.set({ mode });
}

$("modes").addEventListener("click", (event) => event.target.dataset.mode && choose(event.target.dataset.mode));
$("fill").addEventListener("input", (event) => picture?.set({ fill: event.target.value / 100 }));
const keys = {
  1: () => choose("overlay"), 2: () => choose("frame"), 3: () => choose("labels"),
  "+": () => zoom.in(), "=": () => zoom.in(), "-": () => zoom.out(), 0: () => zoom.reset(),
  a: () => contrast.setAuto(!contrast.auto),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.type === "number") return;
  if (Object.hasOwn(keys, event.key.toLowerCase())) keys[event.key.toLowerCase()]();
});
$("zoom-in").addEventListener("click", () => zoom.in());
$("zoom-out").addEventListener("click", () => zoom.out());
$("zoom-reset").addEventListener("click", () => zoom.reset());
// A hidden page requests nothing.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return connect();
  events?.close();
  events = null;
  following?.abort();
});
setInterval(age, 100);
setInterval(() => { if (events && performance.now() - heard > SILENCE) lost(); }, 500);
connect();

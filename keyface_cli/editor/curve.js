"use strict";
const FPS = 25, STEP = 13, NEAR = 11, CHANNELS = ["valence", "arousal"];
const byId = id => document.getElementById(id);
const canvas = byId("canvas"), sound = byId("sound");
let file = null;              // what the server said of the file and the sound
let keys = [], selected = 0;  // keys in order of time: {time, valence, arousal, ease, emotion?, intensity?}
let past = [], future = [], saved = "";
let view = [0, 1], drag = null, hover = null;
let selection = null, looping = false, snapping = true, pad = 12;

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const round = x => Math.round(x * 100) / 100 || 0;
const snapshot = () => JSON.stringify(keys);

// ---- the curve, as keyface_cli/emotion/track.py has it -------------------------------------
function slopes(channel, keys) {
  const s = keys.map(() => 0);
  const secant = i => keys[i].ease === "hold" ? 0
    : (keys[i + 1][channel] - keys[i][channel]) / (keys[i + 1].time - keys[i].time);
  for (let i = 1; i + 1 < keys.length; i++) {
    const d0 = secant(i - 1), d1 = secant(i);
    const h0 = keys[i].time - keys[i - 1].time, h1 = keys[i + 1].time - keys[i].time;
    const w0 = 2 * h1 + h0, w1 = h1 + 2 * h0;
    if (d0 * d1 > 0) s[i] = (w0 + w1) / (w0 / d0 + w1 / d1);
  }
  return s;
}
function sampler(channel, curve = keys) {
  const keys = curve;
  const s = slopes(channel, keys);
  return time => {
    let i = 0, end = keys.length - 1;
    while (i < end) {
      const middle = Math.ceil((i + end) / 2);
      if (keys[middle].time > time) end = middle - 1; else i = middle;
    }
    const one = keys[i], other = keys[i + 1];
    if (!other || time <= one.time || one.ease === "hold") return one[channel];
    const h = other.time - one.time, x = (time - one.time) / h, a = one[channel], b = other[channel];
    if (one.ease === "linear") return a + (b - a) * x;
    const y = a * (1 + 2 * x) * (1 - x) ** 2 + s[i] * h * x * (1 - x) ** 2
      + b * x * x * (3 - 2 * x) + s[i + 1] * h * x * x * (x - 1);
    return clamp(y, Math.min(a, b), Math.max(a, b));
  };
}

// ---- changes, each of which can be undone --------------------------------------------------
function change(action) {
  const before = snapshot();
  action();
  keys.sort((one, other) => one.time - other.time);
  if (snapshot() !== before) { past.push(before); future = []; }
  show();
}
function travel(from, to) {
  if (!from.length) return;
  to.push(snapshot());
  keys = JSON.parse(from.pop());
  selected = clamp(selected, 0, keys.length - 1);
  show();
}
function setValue(key, channel, value) {
  key[channel] = round(clamp(value, -1, 1));
  delete key.emotion; delete key.intensity;
}
function snap(time) {   // to the edge of a pause that is near, on the screen
  if (!snapping || !file.pauses.length) return time;
  const best = file.pauses.flat().reduce((a, b) => Math.abs(b - time) < Math.abs(a - time) ? b : a);
  return Math.abs(toX(best) - toX(time)) < 8 ? best : time;
}
function moveTo(index, time) {
  const low = index ? keys[index - 1].time + .01 : 0;
  const high = index + 1 < keys.length ? keys[index + 1].time - .01 : Math.max(file.seconds, low);
  if (low <= high) keys[index].time = round(clamp(time, low, high));
}
function insert(time) {
  time = round(clamp(time, 0, Math.max(file.seconds, time)));
  const found = keys.findIndex(key => Math.abs(key.time - time) < .005);
  if (found >= 0) return found;
  const [valence, arousal] = CHANNELS.map(channel => round(sampler(channel)(time)));
  const before = keys.filter(key => key.time < time).length;
  const ease = keys[Math.max(0, before - 1)].ease;
  keys.splice(before, 0, { time, valence, arousal, ease });
  return before;
}
function drop(name, time) {
  change(() => {
    selected = insert(time);
    const [valence, arousal] = file.names[name];
    Object.assign(keys[selected], { valence, arousal, emotion: name });
    delete keys[selected].intensity;
  });
}
function remove() {
  if (keys.length < 2) return say("a curve needs one key at least", true);
  change(() => { keys.splice(selected, 1); selected = clamp(selected, 0, keys.length - 1); });
}

// ---- drawing ------------------------------------------------------------------------------
const width = () => canvas.clientWidth, height = () => canvas.clientHeight;
const toX = time => pad + (time - view[0]) / (view[1] - view[0]) * (width() - 2 * pad);
const toTime = x => view[0] + (x - pad) / (width() - 2 * pad) * (view[1] - view[0]);
const toY = value => height() / 2 - value * (height() / 2 - 22);
const toValue = y => (height() / 2 - y) / (height() / 2 - 22);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
const clock = t => `${Math.floor(t / 60)}:${(t % 60).toFixed(2).padStart(5, "0")}`;

function draw() {
  const scale = devicePixelRatio, w = width(), h = height();
  canvas.width = w * scale; canvas.height = h * scale;
  const g = canvas.getContext("2d");
  g.scale(scale, scale);
  g.fillStyle = colour("pause");
  for (const [from, to] of file.pauses) g.fillRect(toX(from), 0, toX(to) - toX(from), h);
  const bins = file.envelope.length, sounds = [colour("sound"), colour("loud")];
  const words = file.words.map(word => word.map(toX));
  for (let x = 0; x < w; x++) {
    const from = Math.floor(toTime(x) / file.seconds * bins);
    const to = Math.max(from + 1, Math.ceil(toTime(x + 1) / file.seconds * bins));
    let loud = 0;
    for (let i = Math.max(0, from); i < Math.min(bins, to); i++) loud = Math.max(loud, file.envelope[i]);
    const half = loud * (h / 2 - 22);
    if (!half) continue;
    g.fillStyle = sounds[+words.some(([a, b]) => x >= a && x < b)];
    g.fillRect(x, h / 2 - half, 1, 2 * half);
  }
  g.fillStyle = colour("ink");
  for (const [a, b] of words) { g.beginPath(); const m = (a + b) / 2;
    g.moveTo(m - 4, h - 25); g.lineTo(m + 4, h - 25); g.lineTo(m, h - 31); g.fill(); }
  if (selection) {
    g.fillStyle = g.strokeStyle = colour("pick"); g.globalAlpha = .22;
    g.fillRect(toX(selection[0]), 0, toX(selection[1]) - toX(selection[0]), h);
    g.globalAlpha = 1;
    for (const t of selection) line(g, [[toX(t), 0], [toX(t), h]]);
  }
  g.font = "11px system-ui"; g.fillStyle = colour("soft"); g.strokeStyle = colour("line");
  for (const value of [-1, 0, 1]) line(g, [[0, toY(value)], [w, toY(value)]]);
  const ticks = [.1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 600, 3600];
  const tick = ticks.find(t => t / (view[1] - view[0]) * w > 70) || 3600;
  for (let t = Math.ceil(view[0] / tick) * tick; t <= view[1]; t += tick)
    g.fillText(clock(t).replace(/\.00$/, ""), toX(t) + 3, h - 5);
  const told = keyframes();
  for (const channel of CHANNELS) curve(g, channel, w, told);
  g.strokeStyle = colour("ink"); g.lineWidth = 1;
  line(g, [[toX(sound.currentTime), 0], [toX(sound.currentTime), h]]);
}
function curve(g, channel, w, told) {
  const at = sampler(channel), points = [];
  for (let x = 0; x <= w; x++) points.push([x, toY(at(toTime(x)))]);
  g.strokeStyle = g.fillStyle = colour(channel);
  g.lineWidth = 2; line(g, points);
  for (const frame of told) {   // all that the model is told
    const [x, y] = [toX(frame / FPS), toY(at(frame / FPS))];
    if (x >= 0 && x <= w) { g.beginPath(); g.arc(x, y, 2.2, 0, 7); g.fill(); }
  }
  keys.forEach((key, i) => {
    const [x, y] = [toX(key.time), toY(key[channel])];
    g.beginPath(); g.arc(x, y, 6, 0, 7);
    g.fillStyle = i === selected ? colour(channel) : colour("paper"); g.fill(); g.stroke();
    if (key.emotion && channel === "valence") {
      g.fillStyle = colour("ink"); g.fillText(key.emotion, x + 9, 12);
    }
    g.fillStyle = colour(channel);
  });
}
function line(g, points) {
  g.beginPath();
  points.forEach(([x, y], i) => i ? g.lineTo(x, y) : g.moveTo(x, y));
  g.stroke();
}
function keyframes() {
  const last = file.frames - 1, segments = Math.max(1, Math.ceil(last / STEP));
  return Array.from({ length: segments + 1 }, (_, k) => Math.min(STEP * k, last));
}
function show() {
  const key = keys[selected];
  for (const name of ["time", ...CHANNELS, "ease"])
    if (document.activeElement !== byId(name) || name === "ease") byId(name).value = key[name];
  byId("undo").disabled = !past.length; byId("redo").disabled = !future.length;
  byId("loop").setAttribute("aria-pressed", looping); byId("snap").setAttribute("aria-pressed", snapping);
  byId("title").textContent = (isSaved() ? "" : "● ") + file.name;
  byId("clock").textContent = clock(sound.currentTime);
  draw();
  layOut();
  keepDraft();
}
const isSaved = () => snapshot() === saved;
function say(text, bad = false) { byId("status").textContent = text; byId("status").className = bad ? "bad" : ""; }


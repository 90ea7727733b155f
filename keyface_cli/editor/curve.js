"use strict";
const FPS = 25, STEP = 13, NEAR = 11, CHANNELS = ["valence", "arousal"];
const byId = id => document.getElementById(id);
const canvas = byId("canvas"), sound = byId("sound");
let file = null;              // what the server said of the file and the sound
let keys = [], selected = 0;  // keys in order of time: {time, valence, arousal, ease, emotion?, intensity?}
let past = [], future = [], saved = "";
let view = [0, 1], drag = null, hover = null;
let selection = null, looping = false, snapping = true, pad = 12;
let revision = 0, text = "", textOf = -1;   // of the keys; their text is made once for each

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const round = x => Math.round(x * 100) / 100 || 0;
function touch() { revision++; }
function snapshot() {
  if (textOf !== revision) { text = JSON.stringify(keys); textOf = revision; }
  return text;
}

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
  touch();
  if (snapshot() !== before) { past.push(before); future = []; }
  show();
}
function travel(from, to) {
  if (!from.length) return;
  to.push(snapshot());
  keys = JSON.parse(from.pop()); touch();
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

// ---- drawing: once a frame, and only what shows something else than before -------------------
let W = 1, H = 1, colours = {};   // asked for when they change: asking makes the browser lay out the page
const width = () => W, height = () => H;
const toX = time => pad + (time - view[0]) / (view[1] - view[0]) * (W - 2 * pad);
const toTime = x => view[0] + (x - pad) / (W - 2 * pad) * (view[1] - view[0]);
const toY = value => H / 2 - value * (H / 2 - 22);
const toValue = y => (H / 2 - y) / (H / 2 - 22);
const clock = t => `${Math.floor(t / 60)}:${(t % 60).toFixed(2).padStart(5, "0")}`;
function look() {   // at the window
  W = canvas.clientWidth; H = canvas.clientHeight;
  const style = getComputedStyle(document.documentElement), names = ["ink", "paper", "line", "soft", "valence",
    "arousal", "sound", "loud", "pause", "pick"];
  colours = Object.fromEntries(names.map(name => [name, style.getPropertyValue(`--${name}`)]));
  show();
}
let framing = 0, settling = 0;
const drawn = {};
function stale(part, ...state) {
  const before = drawn[part];
  if (before && before.length === state.length && state.every((value, i) => value === before[i])) return false;
  drawn[part] = state;
  return true;
}
function show() {
  byId("undo").disabled = !past.length; byId("redo").disabled = !future.length;
  framing ||= requestAnimationFrame(frame);
  settling ||= setTimeout(settle, 40);   // in a hidden page there are no frames
}
function frame() {
  framing = 0;
  const place = [...view, W, H, pad, devicePixelRatio, colours];
  if (stale("ground", ...place)) drawGround();
  if (stale("curves", revision, selected, selection, ...place)) drawCurves();
  moveNow();
  layOut(place);
  if (settling) { clearTimeout(settling); settling = setTimeout(settle); }
}
function settle() {   // what can wait until a frame is drawn
  if (framing) { cancelAnimationFrame(framing); frame(); }
  clearTimeout(settling); settling = 0;
  const key = keys[selected];
  for (const name of ["time", ...CHANNELS, "ease"])
    if (document.activeElement !== byId(name) || name === "ease") put(name, "value", String(key[name]));
  byId("loop").setAttribute("aria-pressed", looping); byId("snap").setAttribute("aria-pressed", snapping);
  put("title", "textContent", (isSaved() ? "" : "● ") + file.name);
  wishFor();
  keepDraft();
}
function put(name, property, value) { if (byId(name)[property] !== value) byId(name)[property] = value; }
function begin(canvas, w = W, h = H) {   // an empty canvas, drawn in pixels of the page
  const scale = devicePixelRatio, g = canvas.getContext("2d");
  const [x, y] = [Math.round(w * scale), Math.round(h * scale)];
  if (canvas.width !== x || canvas.height !== y) { canvas.width = x; canvas.height = y; }
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, w, h);
  g.lineWidth = 1;
  return g;
}
function drawGround() {   // the sound
  const g = begin(byId("ground"));
  g.fillStyle = colours.pause;
  for (const [from, to] of file.pauses) g.fillRect(toX(from), 0, toX(to) - toX(from), H);
  const bins = file.envelope.length, words = file.words.map(word => word.map(toX)), half = [];
  for (let x = 0; x < W; x++) {
    const from = Math.floor(toTime(x) / file.seconds * bins);
    const to = Math.max(from + 1, Math.ceil(toTime(x + 1) / file.seconds * bins));
    let loud = 0;
    for (let i = Math.max(0, from); i < Math.min(bins, to); i++) loud = Math.max(loud, file.envelope[i]);
    half.push(loud * (H / 2 - 22));
  }
  const bars = (from, to) => { for (let x = Math.max(0, Math.ceil(from)); x < Math.min(W, to); x++)
    if (half[x]) g.fillRect(x, H / 2 - half[x], 1, 2 * half[x]); };
  g.fillStyle = colours.sound; bars(0, W);
  g.fillStyle = colours.loud; for (const [a, b] of words) bars(a, b);
  g.fillStyle = colours.ink;
  for (const [a, b] of words) { g.beginPath(); const m = (a + b) / 2;
    g.moveTo(m - 4, H - 25); g.lineTo(m + 4, H - 25); g.lineTo(m, H - 31); g.fill(); }
  g.font = "11px system-ui"; g.fillStyle = colours.soft; g.strokeStyle = colours.line;
  for (const [value, text] of [[-1, "−1"], [0, "0"], [1, "+1"]]) {
    line(g, [[0, toY(value)], [W, toY(value)]]);
    g.fillText(text, 3, toY(value) - 4);
  }
  const ticks = [.1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 600, 3600];
  const tick = ticks.find(t => t / (view[1] - view[0]) * W > 70) || 3600;
  for (let t = Math.ceil(view[0] / tick) * tick; t <= view[1]; t += tick)
    g.fillText(clock(t).replace(/\.00$/, ""), toX(t) + 3, H - 5);
}
function drawCurves() {
  const g = begin(canvas);
  if (selection) {
    g.fillStyle = g.strokeStyle = colours.pick; g.globalAlpha = .22;
    g.fillRect(toX(selection[0]), 0, toX(selection[1]) - toX(selection[0]), H);
    g.globalAlpha = 1;
    for (const t of selection) line(g, [[toX(t), 0], [toX(t), H]]);
  }
  g.font = "11px system-ui";
  for (const channel of CHANNELS) drawCurve(g, channel);
}
function drawCurve(g, channel) {
  const at = sampler(channel), y = key => toY(key[channel]);
  g.strokeStyle = g.fillStyle = colours[channel]; g.lineWidth = 2;
  g.beginPath(); g.moveTo(-9, y(keys[0]));
  keys.forEach((key, i) => {
    const next = keys[i + 1], x = toX(key.time), end = next ? toX(next.time) : W + 9;
    g.lineTo(x, y(key));
    if (!next || key.ease === "hold") g.lineTo(end, y(key));
    else if (key.ease === "smooth")
      for (let p = Math.max(x, 0); p < Math.min(end, W); p += 2) g.lineTo(p, toY(at(toTime(p))));
  });
  g.stroke(); g.beginPath();
  for (const frame of keyframes()) {   // all that the model is told
    const x = toX(frame / FPS);
    if (x >= 0 && x <= W) { const v = toY(at(frame / FPS)); g.moveTo(x, v); g.arc(x, v, 2.2, 0, 7); }
  }
  g.fill();
  keys.forEach((key, i) => {
    const x = toX(key.time);
    if (x < -99 || x > W + 9) return;
    g.beginPath(); g.arc(x, y(key), 6, 0, 7);
    g.fillStyle = i === selected ? colours[channel] : colours.paper; g.fill(); g.stroke();
    if (key.emotion && channel === "valence") { g.fillStyle = colours.ink; g.fillText(key.emotion, x + 9, 12); }
  });
}
function moveNow() {   // the line of the sound
  const x = toX(sound.currentTime);
  if (stale("now", x)) byId("now").style.transform = `translateX(${x}px)`;
  put("clock", "textContent", clock(sound.currentTime));
}
function line(g, points) {
  g.beginPath();
  points.forEach(([x, y], i) => i ? g.lineTo(x, y) : g.moveTo(x, y));
  g.stroke();
}
let frames = null;
function keyframes() {
  const last = file.frames - 1, segments = Math.max(1, Math.ceil(last / STEP));
  return frames ||= Array.from({ length: segments + 1 }, (_, k) => Math.min(STEP * k, last));
}
const isSaved = () => snapshot() === saved;
function say(text, bad = false) { byId("status").textContent = text; byId("status").className = bad ? "bad" : ""; }

"use strict";
// ---- the server ---------------------------------------------------------------------------
const post = (path, body) => postText(path, JSON.stringify(body));
async function postText(path, body) {
  const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const answer = await reply.json();
  if (!reply.ok) throw new Error([answer.error, answer.hint].filter(Boolean).join("; "));
  return answer;
}
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
function took(answer) {   // a file that was read or written
  file.version = answer.version;
  byId("warning").classList.remove("open");
}
async function save(replace = false) {
  clearTimeout(draftTimer); draftTimer = 0;
  await drafting;
  const sent = snapshot();
  try {
    const answer = await post("save", { keys, version: file.version, replace });
    took(answer);
    saved = drafted = sent;
    say(answer.kept ? `saved; what was there is now ${answer.kept}` : "saved");
    show();
    return true;
  } catch (error) { say(`not saved: ${error.message}`, true); watch().catch(() => {}); return false; }
}
async function close() {
  if (!(isSaved() && file.version) && !await save()) return;
  await post("close", null);
  document.body.textContent = "Saved. This page can be closed.";
}
async function watch() {   // somebody else may write the file
  const reply = await fetch("version");
  if (!reply.ok) throw new Error("another keyface answers");
  const version = await reply.json();
  byId("warning").classList.toggle("open", version !== file.version);
}
async function takeTheirs() {
  const mine = snapshot(), answer = await post("keep", { keys });
  took(answer);
  change(() => { keys = answer.keys; selected = 0; });
  saved = drafted = snapshot();
  say(`what you had drawn is now ${answer.kept}`);
  show();
  return mine;
}

// ---- a draft beside the file, which a crash or a closed tab leaves there -----------------------
let drafted = "", draftTimer = 0, drafting = Promise.resolve();
function keepDraft() {
  if (!file || document.querySelector("dialog#recover[open]") || snapshot() === drafted) return;
  draftTimer ||= setTimeout(writeDraft, 300);
}
function writeDraft() {
  draftTimer = 0;
  drafted = snapshot();
  const body = { keys: isSaved() ? null : keys, version: file.version };
  drafting = post("draft", body).catch(error => { drafted = ""; say(`no draft is kept: ${error.message}`, true); });
}
function offerDraft() {
  if (!file.draft || same(file.draft.keys, keys)) return;
  byId("draftTime").textContent = file.draft.time;
  byId("draftOlder").hidden = file.draft.version === file.version;
  byId("recover").showModal();
  byId("recover").oncancel = event => event.preventDefault();
  byId("recoverYes").onclick = () => {
    byId("recover").close();
    file.version = file.draft.version;   // where the file was changed since, the page asks
    change(() => { keys = file.draft.keys; selected = 0; });
    say("recovered; not saved yet");
  };
  byId("recoverNo").onclick = () => { byId("recover").close(); post("draft", { keys: null }); };
}
addEventListener("pagehide", () => {
  if (file && !isSaved() && snapshot() !== drafted) fetch("draft", { method: "POST", keepalive: true,
    headers: { "Content-Type": "application/json" }, body: JSON.stringify({ keys, version: file.version }) });
});

function gone() {
  const kept = isSaved() ? "" : drafted === snapshot() ? "; the draft is kept" : "; what you draw now is not kept";
  say(`keyface has ended${kept}`, true);
}

async function load() {
  file = await (await fetch("curve")).json();
  keys = file.keys; touch(); saved = file.version ? snapshot() : ""; drafted = snapshot();
  view = [0, Math.max(file.seconds, .5)];
  for (const name of Object.keys(file.names)) {
    const chip = document.createElement("button");
    chip.textContent = name; chip.dataset.name = name;
    chip.title = file.names[name].join(", ");
    chip.onpointerdown = event => lift(event, name);
    chip.onclick = event => { if (!event.detail) drop(name, sound.currentTime); };  // by the keyboard
    byId("names").append(chip);
  }
  beginStrip();
  look();
  new ResizeObserver(look).observe(canvas);
  offerDraft();
  setInterval(() => document.hidden || watch().catch(gone), 2000);
  document.body.dataset.ready = "yes";
}

// ---- hands --------------------------------------------------------------------------------
function lift(event, name) {
  const ghost = byId("ghost");
  ghost.textContent = name; ghost.style.display = "block";
  const move = e => { ghost.style.left = `${e.clientX + 8}px`; ghost.style.top = `${e.clientY + 8}px`; };
  const up = e => {
    ghost.style.display = "none";
    removeEventListener("pointermove", move); removeEventListener("pointerup", up);
    const box = canvas.getBoundingClientRect();
    const inside = e.clientX >= box.left && e.clientX <= box.right && e.clientY >= box.top && e.clientY <= box.bottom;
    if (inside) drop(name, toTime(e.clientX - box.left));
  };
  move(event);
  addEventListener("pointermove", move); addEventListener("pointerup", up);
  event.preventDefault();
}
function nearest(x, y) {  // a point, or a place on a line, under the hand
  let best = null;
  for (const channel of CHANNELS) keys.forEach((key, index) => {
    const far = Math.hypot(toX(key.time) - x, toY(key[channel]) - y);
    if (far < NEAR && far < (best ? best.far : NEAR)) best = { index, channel, far };
  });
  if (best) return best;
  const [far, channel] = CHANNELS.map(c => [Math.abs(toY(sampler(c)(toTime(x))) - y), c]).sort((a, b) => a[0] - b[0])[0];
  return far < NEAR ? { channel } : null;
}
canvas.onpointerdown = event => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId); canvas.focus();
  if (event.shiftKey || event.offsetY > height() - 18) {
    drag = { from: snap(toTime(event.offsetX)) };
    return;
  }
  const found = nearest(event.offsetX, event.offsetY);
  drag = { before: snapshot(), ...(found || { seek: true }) };
  if (found) { selected = found.index ?? insert(toTime(event.offsetX)); touch(); }
  else seek(toTime(event.offsetX));
  show();
};
canvas.onpointermove = event => {
  hover = toTime(event.offsetX);
  if (drag && drag.from !== undefined) return select(drag.from, snap(hover));
  if (!drag) { canvas.style.cursor = nearest(event.offsetX, event.offsetY) ? "grab" : "crosshair"; return; }
  if (drag.seek) return seek(toTime(event.offsetX));
  moveTo(selected, snap(toTime(event.offsetX)));
  setValue(keys[selected], drag.channel, toValue(event.offsetY));
  touch(); show();
};
canvas.onpointerup = canvas.onpointercancel = () => {
  if (drag && drag.before && snapshot() !== drag.before) { past.push(drag.before); future = []; }
  drag = null; show();
};
canvas.ondblclick = event => change(() => {
  const far = c => Math.abs(sampler(c)(toTime(event.offsetX)) - toValue(event.offsetY));
  const channel = far("valence") <= far("arousal") ? "valence" : "arousal";
  selected = insert(toTime(event.offsetX));
  setValue(keys[selected], channel, toValue(event.offsetY));
});
canvas.onwheel = event => {
  event.preventDefault();
  zoom(event.shiftKey ? 1 : Math.exp(event.deltaY / 400), toTime(event.offsetX), event.shiftKey ? event.deltaY / 600 : 0);
};
function zoom(factor, middle, along = 0) {
  const span = view[1] - view[0];
  const wanted = clamp(span * factor, .5, Math.max(.5, file.seconds));
  let start = middle - (middle - view[0]) * wanted / span + along * span;
  start = clamp(start, 0, Math.max(0, file.seconds - wanted));
  view = [start, start + wanted]; show();
}
function select(one, other) {
  const [from, to] = [one, other].map(t => round(clamp(t, 0, file.seconds))).sort((a, b) => a - b);
  selection = to - from > .03 ? [from, to] : null;
  show();
}
function seek(time) { sound.currentTime = clamp(time, 0, file.seconds); show(); }
function play() { sound.paused ? sound.play() : sound.pause(); }
sound.onplay = () => { byId("play").textContent = "pause"; requestAnimationFrame(follow); };
sound.onpause = () => { byId("play").textContent = "play"; show(); };
function follow() {
  if (looping && selection && (sound.currentTime >= selection[1] || sound.currentTime < selection[0] - .1))
    sound.currentTime = selection[0];
  show();
  if (!sound.paused) requestAnimationFrame(follow);
}
function edit(name) {
  const value = Number(byId(name).value.replace(",", "."));
  if (!byId(name).value.trim() || !Number.isFinite(value)) return say(`${name} is not a number`, true);
  change(() => name === "time" ? moveTo(selected, value) : setValue(keys[selected], name, value));
  byId(name).value = keys[selected][name];
}
for (const name of ["time", ...CHANNELS]) byId(name).onchange = () => edit(name);
byId("ease").onchange = () => change(() => { keys[selected].ease = byId("ease").value; });
byId("play").onclick = play; byId("remove").onclick = remove;
byId("undo").onclick = () => travel(past, future); byId("redo").onclick = () => travel(future, past);
byId("save").onclick = () => save(); byId("done").onclick = close;
byId("loop").onclick = () => ACTIONS["l"][0](); byId("snap").onclick = () => ACTIONS["s"][0](); byId("asks").onclick = () => ACTIONS["?"][0]();
byId("mine").onclick = () => save(true); byId("theirs").onclick = takeTheirs;
byId("helpClose").onclick = () => byId("help").close();
const nudge = (channel, by) => change(() => setValue(keys[selected], channel, keys[selected][channel] + by));
const pick = by => { selected = clamp(selected + by, 0, keys.length - 1); show(); };
const ease = name => change(() => { keys[selected].ease = name; });
const part = () => selection || [Math.max(0, sound.currentTime - 1), Math.min(file.seconds, sound.currentTime + 1)];
// name of a key -> what it does, what the help says; Shift is told by a capital or by "shift "
const ACTIONS = {
  " ": [play, "Space", "play or pause"],
  "l": [() => { looping = !looping; show(); }, "L", "loop the selection"],
  "[": [() => select(snap(sound.currentTime), selection ? selection[1] : file.seconds), "[", "selection begins here"],
  "]": [() => select(selection ? selection[0] : 0, snap(sound.currentTime)), "]", "selection ends here"],
  "s": [() => { snapping = !snapping; show(); }, "S", "snap to pauses"],
  ",": [() => seek(sound.currentTime - 1 / FPS), ", .", "a frame back, a frame on"],
  ".": [() => seek(sound.currentTime + 1 / FPS)],
  "<": [() => seek(sound.currentTime - STEP / FPS), "< >", "a keyframe back, a keyframe on"],
  ">": [() => seek(sound.currentTime + STEP / FPS)],
  "+": [() => zoom(.7, sound.currentTime), "+ -", "zoom"],
  "-": [() => zoom(1 / .7, sound.currentTime)],
  "0": [() => zoom(1e9, 0), "0", "all of the sound"],
  "z": [() => { if (selection) { view = [...selection]; zoom(1, view[0]); } }, "Z", "zoom to the selection"],
  "arrowleft": [() => pick(-1), "← →", "choose a key"],
  "arrowright": [() => pick(1)],
  "arrowup": [() => nudge("valence", .05), "↑ ↓", "valence of the key"],
  "arrowdown": [() => nudge("valence", -.05)],
  "shift arrowup": [() => nudge("arousal", .05), "Shift ↑ ↓", "arousal of the key"],
  "shift arrowdown": [() => nudge("arousal", -.05)],
  "k": [() => change(() => { selected = insert(sound.currentTime); }), "K", "a key here"],
  "delete": [remove, "Delete", "remove the key"],
  "backspace": [remove],
  "1": [() => ease("linear"), "1 2 3", "linear, hold, smooth"],
  "2": [() => ease("hold")], "3": [() => ease("smooth")],
  "enter": [() => openLarge(nearestKeyframe(sound.currentTime)), "Enter", "the keyframe here, large"],
  "c": [compare, "C", "compare with the saved curve"],
  "p": [renderPart, "P", "render this part"],
  "r": [askAll, "R", "render all"],
  "escape": [() => { if (!closeAll()) { selection = null; show(); } }, "Esc", "close, or select nothing"],
  "?": [() => byId("help").showModal(), "?", "this list"],
  "ctrl s": [() => save(), "Ctrl S", "save"],
  "ctrl z": [() => travel(past, future), "Ctrl Z, Ctrl Y", "undo, redo"],
  "ctrl y": [() => travel(future, past)], "ctrl shift z": [() => travel(future, past)],
};
const listed = Object.entries(ACTIONS).sort(([one], [other]) => /\d/.test(one) - /\d/.test(other));   // digits last
for (const [, [, shown, text]] of listed) if (shown) {
  const term = document.createElement("dt"), said = document.createElement("dd");
  term.textContent = shown; said.textContent = text;
  byId("keys").append(term, said);
}
addEventListener("keydown", event => {
  if (!file || document.querySelector("dialog[open]")) return;
  const control = event.ctrlKey || event.metaKey, key = event.key.toLowerCase();
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  const pressing = event.target.tagName === "BUTTON" && ["enter", " "].includes(key);
  const arrow = event.target.id === "circle" && key.startsWith("arrow");
  const shift = event.shiftKey && (control || key.startsWith("arrow")) ? "shift " : "";
  const action = ACTIONS[`${control ? "ctrl " : ""}${shift}${key}`];
  if (!action || pressing || arrow || (typing && !(control && key === "s"))) return;
  action[0]();
  event.preventDefault();
});
addEventListener("beforeunload", event => { if (file && !isSaved()) event.preventDefault(); });
matchMedia("(prefers-color-scheme: dark)").onchange = look;
load().catch(error => say(`cannot be loaded: ${error.message}`, true));

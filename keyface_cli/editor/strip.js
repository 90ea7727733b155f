"use strict";
// ---- the strip of keyframes under the curve ---------------------------------------------------
const SIDES = [56, 76, 100], ROWS = ["drawn", "saved"];
let stripOn = false, comparing = false, wished = "", asking = false, told = null, large = null, playing = "";
let shown = [];   // numbers of the keyframes that there is room for
const shots = { drawn: new Map(), saved: new Map() };   // what shows them
const spare = { drawn: new Map(), saved: new Map() };   // what has shown others, with their pictures

function beginStrip() {
  stripOn = file.output !== null;
  if (!stripOn) return;
  pad = 34;
  byId("drawn").hidden = byId("tools").hidden = false;
  byId("allName").value = file.output;
  document.body.dataset.strip = "busy";
  poll();
}
const nearestKeyframe = time => clamp(Math.round(time * FPS / STEP), 0, keyframes().length - 1);
const secondsOf = k => keyframes()[k] / FPS;

function layOut(place) {   // each keyframe under its time, as many as there is room for
  if (!stripOn) return;
  if (stale("places", comparing, ...place)) placeShots();
  if (stale("texts", revision, saved, comparing, shown)) ROWS.forEach(labelShots);
  const now = nearestKeyframe(sound.currentTime);
  if (stale("here", now, comparing, shown))
    for (const name of ROWS) for (const [k, shot] of shots[name]) shot.classList.toggle("here", k === now);
  if (large !== null && stale("circle", revision, large, colours)) drawCircle();
}
function placeShots() {
  const all = keyframes(), room = seconds => (W - 2 * pad) * STEP / FPS / seconds;
  const steps = (side, space) => Math.max(1, Math.ceil((side + 4) / space));
  // few sizes, which do not change with every turn of the wheel: the page is laid out anew for each
  const fit = space => SIDES.findLast(side => side === SIDES[0] || side + 4 <= space);
  const whole = room(file.seconds), space = room(view[1] - view[0]);
  const least = fit(whole * steps(SIDES[0], whole)), stride = steps(least, space);
  const side = stride > 1 ? least : Math.max(least, fit(space));
  shown = all.map((frame, k) => k).filter(k =>
    (k % stride === 0) && toX(all[k] / FPS) > -side / 2 && toX(all[k] / FPS) < W + side / 2);
  const lefts = shown.map(k => clamp(toX(all[k] / FPS) - side / 2, 0, W - side));
  for (const name of ROWS) {
    const row = byId(name);
    row.hidden = name === "saved" && !comparing;
    if (row.hidden) continue;
    row.style.setProperty("--side", `${side}px`);
    for (const [k, shot] of shots[name]) if (!shown.includes(k)) {
      shot.remove(); shots[name].delete(k); spare[name].set(k, shot);
    }
    shown.forEach((k, i) => {
      const shot = shots[name].get(k) || addShot(name, k), free = i + 1 < lefts.length ? lefts[i + 1] - lefts[i] - 3 : side;
      shot.style.transform = `translateX(${lefts[i]}px)`;
      shot.style.width = free < side ? `${Math.max(free, 8)}px` : "";   // the last comes sooner than others
      shot.classList.toggle("narrow", free < 44);
    });
  }
}
function labelShots(name) {
  if (byId(name).hidden) return;
  const at = CHANNELS.map(channel => sampler(channel, name === "drawn" ? keys : savedKeys()));
  for (const [k, shot] of shots[name]) {
    const time = secondsOf(k), texts = [clock(time).slice(0, -1), ...at.map(f => short(f(time)))];
    shot.texts.forEach((node, i) => { if (node.textContent !== texts[i]) node.textContent = texts[i]; });
  }
}
const short = value => (Math.round(value * 10) / 10 || 0).toFixed(1);   // no -0.0
function wishFor() {   // what is drawn, and what of it is seen
  if (!stripOn) return;
  const cursor = nearestKeyframe(large !== null ? secondsOf(large) : drag && hover !== null ? hover : sound.currentTime);
  wish(`{"keys":${snapshot()},"saved":${comparing ? saved || snapshot() : null},`
    + `"shown":${JSON.stringify(shown)},"cursor":${cursor}}`);
}
function savedKeys() { return saved ? JSON.parse(saved) : keys; }
function addShot(name, k) {
  const shot = spare[name].get(k) || newShot(k);
  spare[name].delete(k); shots[name].set(k, shot);
  byId(name).append(shot);
  return shot;
}
function newShot(k) {
  const shot = document.createElement("button");
  shot.className = "shot waits"; shot.dataset.keyframe = k;
  shot.img = new Image(); shot.img.decoding = "async"; shot.img.alt = `keyframe ${k}`;
  const upper = document.createElement("span"), lower = document.createElement("span");
  shot.texts = ["", "v", "a"].map((kind, i) => {
    const node = document.createElement("i"); node.className = kind; node.style.fontStyle = "normal";
    (i ? lower : upper).append(node);
    return node;
  });
  shot.append(shot.img, upper, lower);
  shot.onclick = () => openLarge(k);
  return shot;
}

// ---- what is wished for, one question at a time ------------------------------------------------
function wish(body) {
  if (body === wished) return;
  wished = body;
  document.body.dataset.strip = "busy";
  ask();
}
async function ask() {
  if (asking) return;
  asking = true;
  try {
    let sent;
    do { sent = wished; apply(await postText("strip", sent), sent); } while (sent !== wished);
  } catch (error) { say(error.message, true); }
  asking = false;
  poll();
}
let polling = 0;
function poll() {
  clearTimeout(polling);
  polling = setTimeout(async () => {
    if (asking) return;
    const sent = wished;
    try { apply(await (await fetch("strip")).json(), sent); } catch { return; }   // the server has ended
    const busy = told.missing || !told.ready || (told.render && ["waiting", "running"].includes(told.render.state));
    if (busy && !told.error) poll();
  }, 80);
}
function apply(status, sent) {
  told = status;
  if (sent === wished) for (const [name, rows] of Object.entries(status.strips)) for (const [k, picture] of rows) {
    const shot = shots[name].get(k);
    if (!shot) continue;
    shot.classList.toggle("waits", !picture);
    if (picture && shot.dataset.picture !== picture) {
      shot.dataset.picture = picture;
      shot.img.src = `picture?name=${picture}`;
    }
    if (picture && name === "drawn" && k === large && byId("face").dataset.picture !== picture) {
      byId("face").dataset.picture = picture;
      byId("face").src = `picture?name=${picture}`;
    }
  }
  const render = status.render, rendering = render && ["waiting", "running"].includes(render.state);
  const done = status.of ? 1 - status.missing / status.of : 0;
  byId("progress").firstElementChild.style.width = `${100 * (rendering ? render.share : done)}%`;
  byId("progress").classList.toggle("busy", rendering || done < 1);
  byId("cancel").hidden = !rendering;
  const speed = status.clip_s ? `a clip takes ${status.clip_s} s on ${status.device}, ${status.dtype}` : "";
  let text = status.missing ? `${status.of - status.missing} of ${status.of} keyframes` : "";
  if (rendering) text = `${render.part ? "this part" : render.name}: ${Math.round(100 * render.share)} %`;
  text = status.ready ? [text, speed].filter(Boolean).join("; ") : "loading the model …";
  byId("told").textContent = status.error || text;
  if (render && !rendering && playing !== render.name + render.state) {
    playing = render.name + render.state;
    if (render.state === "failed") say(render.error, true);
    if (render.state === "done") { say(render.part ? "" : `${render.name} is finished`); playVideo(render); }
  }
  if (status.ready && !status.missing && sent === wished && Object.keys(status.strips).length)
    document.body.dataset.strip = "still";
}
function compare() { comparing = !comparing; byId("compare").setAttribute("aria-pressed", comparing); show(); }

// ---- one keyframe, large -----------------------------------------------------------------------
function openLarge(k) {
  if (!stripOn) return;
  large = clamp(k, 0, keyframes().length - 1);
  byId("large").classList.add("open");
  const shot = shots.drawn.get(large);
  if (shot && shot.dataset.picture) { byId("face").src = shot.img.src; byId("face").dataset.picture = shot.dataset.picture; }
  show();
  byId("circle").focus();
}
const emotionAt = time => CHANNELS.map(channel => sampler(channel)(time));
function drawCircle() {
  const n = 220, m = n / 2, r = m - 14, g = begin(byId("circle"), n, n);
  g.strokeStyle = colours.line; g.beginPath(); g.arc(m, m, r, 0, 7); g.stroke();
  line(g, [[m, 8], [m, n - 8]]); line(g, [[8, m], [n - 8, m]]);
  g.fillStyle = colours.soft; g.font = "10px system-ui";
  for (const [name, [v, a]] of Object.entries(file.names)) {
    g.beginPath(); g.arc(m + v * r, m - a * r, 1.8, 0, 7); g.fill();
    g.textAlign = v > .5 ? "right" : "left";
    if (["happy", "sad", "angry", "calm", "surprised", "bored"].includes(name))
      g.fillText(name, m + v * r + (v > .5 ? -5 : 5), m - a * r + 3);
  }
  const time = secondsOf(large), [v, a] = emotionAt(time);
  g.fillStyle = colours.pick; g.strokeStyle = colours.ink; g.lineWidth = 1.5;
  g.beginPath(); g.arc(m + v * r, m - a * r, 7, 0, 7); g.fill(); g.stroke();
  byId("faceTime").textContent = clock(time);
  byId("faceV").textContent = `valence ${v.toFixed(2)}`; byId("faceA").textContent = `arousal ${a.toFixed(2)}`;
}
function setEmotion(v, a) {
  selected = insert(secondsOf(large));
  setValue(keys[selected], "valence", v); setValue(keys[selected], "arousal", a);
  touch();
}
function circleAt(event) {
  const m = 110, r = m - 14;
  setEmotion((event.offsetX - m) / r, (m - event.offsetY) / r);
  show();
}
byId("circle").onpointerdown = event => {
  byId("circle").setPointerCapture(event.pointerId);
  drag = { before: snapshot(), circle: true };
  circleAt(event);
};
byId("circle").onpointermove = event => { if (drag && drag.circle) circleAt(event); };
byId("circle").onpointerup = byId("circle").onpointercancel = () => {
  if (drag && snapshot() !== drag.before) { past.push(drag.before); future = []; }
  drag = null; show();
};
byId("circle").onkeydown = event => {
  const step = { ArrowLeft: [-.05, 0], ArrowRight: [.05, 0], ArrowUp: [0, .05], ArrowDown: [0, -.05] }[event.key];
  if (!step) return;
  const [v, a] = emotionAt(secondsOf(large));
  change(() => setEmotion(v + step[0], a + step[1]));
  event.preventDefault();
};
byId("before").onclick = () => openLarge(large - 1); byId("after").onclick = () => openLarge(large + 1);
byId("faceClose").onclick = closeAll; byId("videoClose").onclick = closeAll;
function closeAll() {
  const open = large !== null || byId("player").classList.contains("open");
  large = null; byId("video").pause();
  for (const name of ["large", "player"]) byId(name).classList.remove("open");
  return open;
}

// ---- videos ------------------------------------------------------------------------------------
async function renderPart() {
  if (!stripOn) return;
  const [start, end] = part();
  try { await post("part", { keys, start, end }); playing = ""; poll(); } catch (error) { say(error.message, true); }
}
function askAll() { if (stripOn) { byId("allError").textContent = ""; byId("all").showModal(); } }
async function renderAll() {
  if (!(isSaved() && file.version) && !await save()) return byId("all").close();
  const body = { name: byId("allName").value.trim(), replace: byId("allReplace").checked, restart: byId("allRestart").checked };
  try { await post("all", body); byId("all").close(); playing = ""; poll(); }
  catch (error) { byId("allError").textContent = error.message; }
}
function playVideo(render) {
  if (!/\.(mp4|webm|mov)$/.test(render.name)) return;
  byId("videoName").textContent = render.name;
  byId("video").src = `${render.name}?${Date.now()}`;
  byId("player").classList.add("open");
  byId("video").play().catch(() => {});
}
byId("compare").onclick = compare; byId("renderPart").onclick = renderPart; byId("renderAll").onclick = askAll;
byId("allGo").onclick = renderAll; byId("allClose").onclick = () => byId("all").close();
byId("cancel").onclick = () => post("cancel", null);

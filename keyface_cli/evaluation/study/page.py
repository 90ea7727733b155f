"""The page of a user study: both clips of a pair, two buttons, the keyboard, and a bar."""

from __future__ import annotations

from typing import Any

from keyface_cli.errors import KeyFaceError
from keyface_cli.evaluation.study.study import CLIPS, Study, next_trial, record
from keyface_cli.web.page import LOCAL, Page

LONGEST_NAME = 40  # characters
_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>Which is more realistic?</title>
<style>
body { font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
       padding: 0 1rem; color: #222; background: #fafafa; }
h1 { font-size: 1.3rem; }
.pair { display: flex; gap: 1rem; }
.side { flex: 1; text-align: center; min-width: 0; }
video { width: 100%; max-height: 65vh; background: #ddd; }
button { font: inherit; padding: .7rem 1.2rem; margin: .5rem; cursor: pointer; }
progress { width: 100%; }
[hidden] { display: none !important; }
</style>
<main>
<form id="start" hidden>
<h1>Which clip is more realistic?</h1>
<p>You will see pairs of clips with the same sound. Watch both, then choose. You can stop at any
time and go on later under the same name.</p>
<p><label>Your name or a number: <input id="name" maxlength="40" required autofocus></label>
<button>Begin</button></p>
</form>
<section id="vote" hidden>
<progress id="bar" max="1" value="0"></progress>
<p id="count"></p>
<div class="pair">
<div class="side"><video id="left" playsinline></video><br>
<button id="choose-left" disabled>Left is more realistic (&larr;)</button></div>
<div class="side"><video id="right" playsinline></video><br>
<button id="choose-right" disabled>Right is more realistic (&rarr;)</button></div>
</div>
<p><button id="again">Play both again (space)</button> Both are played one after the other; then
you can choose.</p>
</section>
<section id="done" hidden><h1>Thank you, that was all.</h1></section>
<p id="problem" role="alert"></p>
</main>
<script>
"use strict";
const at = id => document.getElementById(id);
let rater = null, pair = null, since = 0, busy = false, turn = 0;
function show(id) {
  for (const name of ["start", "vote", "done"]) at(name).hidden = name !== id;
}
function allow(yes) {
  at("choose-left").disabled = at("choose-right").disabled = !yes;
}
async function ask(path, body) {
  const options = body ? {method: "POST", body: JSON.stringify(body),
                          headers: {"Content-Type": "application/json"}} : {};
  const answer = await fetch(path, options);
  const facts = await answer.json();
  if (!answer.ok) throw new Error(facts.error);
  at("problem").textContent = "";
  return facts;
}
function fail(error) {
  at("problem").textContent = error.message;
  busy = false;
  allow(pair !== null);
}
async function play() {
  const mine = ++turn;
  for (const side of ["left", "right"]) {
    const video = at(side), other = at(side === "left" ? "right" : "left");
    other.pause();
    video.currentTime = 0;
    const ended = new Promise(done => { video.onended = done; });
    try { await video.play(); } catch (error) {
      if (mine !== turn || error.name === "AbortError") return;
      at("problem").textContent = error.name === "NotAllowedError" ?
        "Press space to play both clips." : "This browser cannot play the clip.";
      return;
    }
    at("problem").textContent = "";
    await ended;
    if (mine !== turn) return;
  }
  allow(true);
}
function next(facts) {
  at("bar").max = facts.total;
  at("bar").value = facts.done;
  at("count").textContent = `${facts.done} of ${facts.total}`;
  pair = facts.pair;
  busy = false;
  if (pair === null) { turn++; show("done"); return; }
  show("vote");
  allow(false);
  at("left").src = facts.left;
  at("right").src = facts.right;
  since = performance.now();
  play();
}
function begin(name) {
  rater = name;
  localStorage.setItem("rater", name);
  ask("trial?rater=" + encodeURIComponent(name)).then(next).catch(fail);
}
function choose(side) {
  if (busy || pair === null || at("choose-" + side).disabled) return;
  busy = true;
  allow(false);
  const seconds = (performance.now() - since) / 1000;
  ask("vote", {rater, pair, side, seconds}).then(next).catch(fail);
}
at("start").onsubmit = event => { event.preventDefault(); begin(at("name").value.trim()); };
at("choose-left").onclick = () => choose("left");
at("choose-right").onclick = () => choose("right");
at("again").onclick = play;
document.onkeydown = event => {
  if (at("vote").hidden) return;
  if (event.key === "ArrowLeft") choose("left");
  else if (event.key === "ArrowRight") choose("right");
  else if (event.key === " ") { event.preventDefault(); play(); }
};
const known = new URLSearchParams(location.search).get("rater") || localStorage.getItem("rater");
if (known) begin(known); else show("start");
</script>
</html>
"""


def make_page(study: Study, host: str = LOCAL, port: int = 0) -> Page:
    """Return the page of a study, ready to serve; `?rater=NAME` begins under a name at once.

    Args:
        study: votes go to its file.
        host: address to listen on.
        port: or 0 for a free one.

    Raises:
        PageError: the address cannot be listened on.
    """

    def trial(fields: dict[str, str]) -> dict[str, Any]:
        return _state(study, _rater(fields.get("rater")))

    def vote(body: Any) -> dict[str, Any]:
        fields = body if isinstance(body, dict) else {}
        rater = _rater(fields.get("rater"))
        seconds = fields.get("seconds")
        taken = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        record(study, rater, str(fields.get("pair")), str(fields.get("side")), taken)
        return _state(study, rater)

    clips = {clip for t in study.trials for clip in (t.left_clip, t.right_clip)}
    files = {f"clips/{clip}": study.folder / CLIPS / clip for clip in clips}
    return Page(_HTML, get={"trial": trial}, post={"vote": vote}, files=files, host=host, port=port)


def _rater(name: Any) -> str:
    """Return a rater's name.

    Raises:
        KeyFaceError: it is empty, too long or holds what a spreadsheet would run.
    """
    text = " ".join(name.split()) if isinstance(name, str) else ""
    if not text or len(text) > LONGEST_NAME or text[0] in "=+-@" or not text.isprintable():
        raise KeyFaceError("a name has 1 to 40 characters and begins with a letter or a number")
    return text


def _state(study: Study, rater: str) -> dict[str, Any]:
    done, trial = next_trial(study, rater)
    facts: dict[str, Any] = {"done": done, "total": len(study.trials), "pair": None}
    if trial is not None:
        facts |= {"pair": trial.pair}
        facts |= {"left": f"clips/{trial.left_clip}", "right": f"clips/{trial.right_clip}"}
    return facts

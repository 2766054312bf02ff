// The annotation page: what is shown, what a key or a click does. The server decides what comes next and keeps all that
// is sent; what is not sent yet is kept in this browser, so that closing or a dead server loses nothing that was chosen.

import { makeCard } from "./card.js";
import { icon } from "./icons.js";
import { showMarkdown } from "./markdown.js";
import { errorWords, makeMessage, sends } from "./message.js";
import { loadKey, nextTheme, saveKey } from "./settings.js";
import { request, ServerError } from "./stream.js";
import { fillWords, languageIndex, switchLanguage, words } from "./words.js";

const $ = (id) => document.getElementById(id);
const DRAFT = "talaria.judgement";
const TALK = "talaria.talk";
const FLAG_KEYS = { h: "unhelpful", o: "dishonest", m: "harmful" };
let state = null; // what the server told last
let item = null; // what is judged now
let choice = null; // {groups, scores, flags, comment}: the judgement that is being made
let talking = false;
let talk = []; // the annotator's own conversation
let tieNext = false;
let focused = 0;
let busy = false;
let seconds = 0;
let since = null; // when the item came into view, null while the page is hidden

// -------------------------------------------------------------------------------------------------- what is shown

// What this browser keeps is one person's: whoever comes next is not shown it.
function hear(told) {
  if (told.annotator !== state?.annotator) {
    for (const name of [TALK, DRAFT]) if (stored(name)?.annotator !== told.annotator) localStorage.removeItem(name);
    talk = stored(TALK)?.messages ?? [];
  }
  state = told;
}

function take(told) {
  hear(told);
  show(talking ? (told.item?.talk ? told.item : null) : told.item);
}

function show(next) {
  const draft = stored(DRAFT);
  if (next?.assignment !== item?.assignment) {
    [seconds, focused, tieNext] = [0, 0, false];
    since = document.hidden ? null : performance.now();
  }
  item = next;
  if (item?.talk) {
    talking = true;
    setTalk(item.messages);
  }
  choice = draft && draft.assignment === item?.assignment ? draft : { groups: [], scores: {}, flags: {}, comment: "" };
  $("comment").value = choice.comment;
  redraw();
  // The focus leaves what is hidden only when the page is next drawn; a key pressed before that is the judgement's.
  if (item) $("text").blur();
  $("scroll").scrollTop = 0;
}

function redraw() {
  const messages = item ? item.messages : talking ? talk : [];
  const views = messages.map((message) => makeMessage({ ...message, model: "" }, {}));
  for (const view of views) {
    view.update(false);
    view.element.querySelector(".tools").remove();
  }
  $("log").replaceChildren(...views.map((view) => view.element));
  const actions = { place, score, flag, focus };
  $("answers").replaceChildren(...(item?.answers ?? []).map((text, index) => makeCard(index, text, actions)));
  refresh();
}

function refresh() {
  const nothing = !item && !talking && state;
  document.title = words("annotateTitle");
  for (const [tab, on] of [["compare-tab", !talking], ["talk-tab", talking]]) {
    if (on) $(tab).setAttribute("aria-current", "page");
    else $(tab).removeAttribute("aria-current");
  }
  $("talk-tab").hidden = !state?.can_talk || ["open", "failed"].includes(state.test);
  $("decide").hidden = !item;
  $("composer").hidden = Boolean(item) || !talking;
  $("ask").hidden = !item;
  $("ask").textContent = words(!item ? "comment" : item.answers.length > 2 ? "askMany" : "askTwo");
  $("note").hidden = !(item?.test || (talking && !item && !talk.length));
  $("note").textContent = item?.test ? words("testNote", `${state.test_done + 1} / ${state.test_items}`) : words("talkNote");
  $("nothing").hidden = !nothing;
  if (nothing) {
    $("nothing").querySelector("h1").textContent = words(state.test === "failed" ? "failedTitle" : "doneTitle");
    $("nothing").querySelector("p").textContent = words(state.test === "failed" ? "failedNote" : "doneNote");
    $("look-again").hidden = state.test === "failed";
  }
  if (state) {
    $("progress-words").textContent = words("progress", state.done).replace("{}", state.left);
    $("bar").max = Math.max(1, state.done + state.left);
    $("bar").value = state.done;
    $("open-key").title = words("signedIn", state.annotator);
  }
  $("undo").disabled = busy || !state?.last;
  $("undo-last").hidden = !state?.last;
  $("skip").disabled = busy;
  $("tie").disabled = busy;
  $("submit").disabled = busy || !isWhole();
  $("send").disabled = busy;
  for (const card of $("answers").children) card.update(choice, item.answers.length, focused, tieNext);
}

// -------------------------------------------------------------------------------------------------- the judgement

const isWhole = () => Boolean(item) && choice.groups.flat().length === item.answers.length;

// The next place for an answer; one that has a place gives it up, with all that came after it.
function place(index) {
  const at = choice.groups.findIndex((group) => group.includes(index));
  if (at >= 0) choice.groups = choice.groups.slice(0, at);
  else if (tieNext && choice.groups.length) choice.groups.at(-1).push(index);
  else choice.groups.push([index]);
  tieNext = false;
  const left = unplaced();
  if (at < 0 && left.length === 1 && choice.groups.length) choice.groups.push(left);
  focused = index;
  keepDraft();
}

function setTieNext(on) {
  tieNext = on && choice.groups.length > 0;
  refresh();
}

function tieRest() {
  if (isWhole()) choice.groups = [];
  if (unplaced().length) choice.groups.push(unplaced());
  keepDraft();
}

function takeLast() {
  tieNext = false;
  choice.groups.pop();
  keepDraft();
}

function score(index, value) {
  if (choice.scores[index] === value) delete choice.scores[index];
  else choice.scores[index] = value;
  focused = index;
  keepDraft();
}

function flag(index, name) {
  const told = new Set(choice.flags[name] ?? []);
  if (!told.delete(index)) told.add(index);
  choice.flags[name] = [...told];
  focused = index;
  keepDraft();
}

function focus(index) {
  focused = (index + item.answers.length) % item.answers.length;
  refresh();
  $("answers").children[focused].scrollIntoView({ block: "nearest" });
}

function unplaced() {
  const placed = choice.groups.flat();
  return item.answers.map((_, index) => index).filter((index) => !placed.includes(index));
}

function keepDraft() {
  keep(DRAFT, { annotator: state.annotator, assignment: item.assignment, ...choice });
  refresh();
}

async function judge(verdict) {
  if (!item || busy || (verdict === "ranked" && !isWhole())) return;
  const judged = item;
  const body = {
    assignment: item.assignment,
    verdict,
    ranking: verdict === "ranked" ? choice.groups : [],
    scores: choice.scores,
    flags: choice.flags,
    comment: $("comment").value,
    seconds: Math.round(100 * (seconds + (since === null ? 0 : (performance.now() - since) / 1000))) / 100,
  };
  const best = verdict === "ranked" ? choice.groups[0][0] : null;
  const told = await call("judge", body, () => judge(verdict));
  if (!told) return;
  localStorage.removeItem(DRAFT);
  if (judged.talk) {
    // The conversation goes on with the best answer; where none was chosen, the question can be put another way.
    if (best !== null) setTalk([...judged.messages, { role: "assistant", content: judged.answers[best] }]);
    else {
      $("text").value = judged.messages.at(-1).content;
      setTalk(judged.messages.slice(0, -1));
    }
  }
  item = null;
  hear(told);
  show(talking ? null : told.item);
  status(words("kept"));
  if (talking) $("text").focus();
}

async function undo() {
  if ($("undo").disabled) return;
  // Named, so that a second try after a lost answer takes no other judgement back.
  const told = await call("undo", { judgement: state.last }, undo);
  if (!told) return;
  talking = Boolean(told.item?.talk);
  hear(told);
  show(told.item);
}

async function say() {
  const text = $("text").value.trim();
  if (!text || busy) return;
  const asked = [...talk, { role: "user", content: text }];
  setTalk(asked);
  redraw();
  status(words("thinking"));
  const told = await call("talk", { messages: asked }, null);
  if (told) {
    $("text").value = "";
    take(told);
  } else {
    setTalk(asked.slice(0, -1));
    redraw();
  }
}

// What is shown stays until the server has told what comes in its place.
async function switchTo(own) {
  const told = await call("next", { talk: own }, () => switchTo(own));
  if (!told) return;
  talking = own;
  item = null;
  take(told);
  if (own && !item) $("text").focus();
}

async function load() {
  const told = await call("next", { talk: talking }, load);
  if (told) take(told);
}

// -------------------------------------------------------------------------------------------------- the server

async function call(name, body, again) {
  busy = true;
  refresh();
  try {
    const response = await request(`annotate/${name}`, loadKey(), body ?? {});
    banner("");
    return await response.json();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.kind === 401) openKeyDialog(loadKey() ? words("error401") : "");
    else banner(errorWords({ kind: error.kind, told: error.message }), again);
    return null;
  } finally {
    busy = false;
    status("");
    refresh();
  }
}

function banner(text, again) {
  const [said, button] = $("banner").children;
  $("banner").hidden = !text;
  said.textContent = text;
  button.hidden = !again;
  button.textContent = words("retry");
  button.onclick = again;
}

let fading;
function status(text) {
  $("status").textContent = text;
  clearTimeout(fading);
  if (text === words("kept")) fading = setTimeout(() => ($("status").textContent = ""), 1500);
}

async function showGuidelines() {
  try {
    const told = await (await request("annotate/guidelines", loadKey())).json();
    showMarkdown($("guidelines"), told[languageIndex() ? "zh" : "en"]);
    $("guidelines-dialog").showModal();
    keep("talaria.guidelines", true);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    banner(errorWords({ kind: error.kind, told: error.message }), showGuidelines);
  }
}

function openKeyDialog(problem = "") {
  $("key-problem").hidden = !problem;
  $("key-problem").textContent = problem;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function setTalk(messages) {
  talk = messages;
  keep(TALK, { annotator: state.annotator, messages: talk });
}

function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // A full storage keeps no draft; what is sent is kept by the server all the same.
  }
}

// -------------------------------------------------------------------------------------------------- keys and clicks

function onKey(event) {
  const typing = event.target.matches("input, textarea");
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || !$("decide").checkVisibility()) return;
  const digit = /^Digit([1-9])$|^Numpad([1-9])$/.exec(event.code);
  const number = digit && Number(digit[1] ?? digit[2]);
  const key = event.key.toLowerCase();
  if (number && event.shiftKey && number <= 7) score(focused, number);
  else if (number && !event.shiftKey && number <= item.answers.length) place(number - 1);
  else if (key === "=") setTieNext(!tieNext);
  else if (key === "t") tieRest();
  else if (key === "backspace") takeLast();
  else if (key === "enter" && !event.target.matches("button, a, select")) judge("ranked");
  else if (key === "s") judge("skipped");
  else if (key === "u") undo();
  else if (key === "c") $("comment").focus();
  else if (key === "g") showGuidelines();
  else if (key === "?") $("keys-dialog").showModal();
  else if (key === "arrowright" || key === "arrowleft") focus(focused + (key === "arrowright" ? 1 : -1));
  else if (key in FLAG_KEYS) flag(focused, FLAG_KEYS[key]);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", onKey);
// What was clicked with a mouse keeps no focus: Enter is then the judgement's, and not that button's again.
document.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) {
    seconds += (performance.now() - since) / 1000;
    since = null;
  } else if (!document.hidden) since ??= performance.now();
});
$("decide").addEventListener("submit", (event) => {
  event.preventDefault();
  judge("ranked");
});
$("comment").addEventListener("input", () => {
  choice.comment = $("comment").value;
  keepDraft();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});
$("text").addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  say();
});
$("skip").addEventListener("click", () => judge("skipped"));
$("tie").addEventListener("click", tieRest);
$("undo").addEventListener("click", undo);
$("undo-last").addEventListener("click", undo);
$("look-again").addEventListener("click", load);
$("compare-tab").addEventListener("click", () => switchTo(false));
$("talk-tab").addEventListener("click", () => {
  // Pressed again it begins a new conversation.
  if (talking && !item) setTalk([]);
  switchTo(true);
});
$("open-guidelines").addEventListener("click", showGuidelines);
$("open-keys").addEventListener("click", () => $("keys-dialog").showModal());
$("open-key").addEventListener("click", () => openKeyDialog());
$("theme").addEventListener("click", nextTheme);
$("language").addEventListener("click", () => {
  switchLanguage();
  fillWords();
  redraw();
});
$("key-dialog").querySelector("form").addEventListener("submit", async (event) => {
  const fields = event.target.elements;
  if (loadKey() && loadKey() !== fields.key.value.trim()) {
    // Somebody else, perhaps: `hear` looks what is theirs.
    [item, state, talking, talk] = [null, null, false, []];
    $("text").value = "";
  }
  saveKey(fields.key.value.trim(), fields.keep.checked);
  fields.key.value = "";
  await start();
});
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));

// Who is new here reads first what is asked for.
async function start() {
  await load();
  if (state && !stored("talaria.guidelines")) await showGuidelines();
}

fillWords();
start();

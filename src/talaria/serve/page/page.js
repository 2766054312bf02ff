// The page: what is shown, what a key or a click does. Answers go on while another conversation is looked at.

import { allConversations, exportConversations, loadConversation, loadDraft, newConversation, saveConversation, saveDraft } from "./conversations.js";
import { icon } from "./icons.js";
import { errorWords, makeMessage, sends } from "./message.js";
import { loadKey, loadModel, loadSettings, loadTheme, nextTheme, sampling, saveKey, saveModel, saveSettings } from "./settings.js";
import { drawerIsOpen, showDrawer, showList } from "./sidebar.js";
import { listModels, sendThumb, ServerError, streamAnswer } from "./stream.js";
import { fillWords, switchLanguage, words } from "./words.js";

const $ = (id) => document.getElementById(id);
const NEW = "new"; // the draft of a conversation that has no message yet
const running = new Map(); // id of a conversation -> {conversation, message, controller}
let views = new Map(); // message -> its elements
let current = newConversation();
let follows = true; // the newest line stays in view, until somebody scrolls up

// -------------------------------------------------------------------------------------------------- what is shown

function show(conversation) {
  // One that is being answered is the very object the answer is written into.
  current = running.get(conversation.id)?.conversation ?? conversation;
  location.replace(`#${current.messages.length ? current.id : ""}`);
  $("text").value = loadDraft(draftId());
  redraw();
  follows = true;
  scrollToEnd();
}

function redraw() {
  views = new Map(current.messages.map((message) => [message, makeMessage(message, actions)]));
  $("log").replaceChildren(...[...views.values()].map((view) => view.element));
  const answering = running.get(current.id)?.message;
  for (const [message, view] of views) view.update(message === answering);
  refresh();
}

function refresh() {
  const busy = running.has(current.id);
  $("empty").hidden = current.messages.length > 0;
  $("log").classList.toggle("busy", busy);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("send").disabled = !$("text").value.trim();
  document.title = current.messages.length ? `${current.title || current.messages[0].content.slice(0, 60)} · Talaria` : "Talaria";
  fit();
  showList(current.id, choose, removed);
}

function draftId() {
  return current.messages.length ? current.id : NEW;
}

function fit() {
  $("text").style.height = "auto";
  $("text").style.height = `${Math.min($("text").scrollHeight, innerHeight * 0.4)}px`;
}

function scrollToEnd() {
  if (follows) $("scroll").scrollTop = $("scroll").scrollHeight;
  $("down").hidden = atEnd();
}

function atEnd() {
  const box = $("scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

// `quiet`: read aloud alone, since the eye has seen it happen.
function say(text, quiet = false) {
  $("status").textContent = text;
  $("status").classList.toggle("quiet", quiet);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => ($("status").textContent = ""), 6000);
}

function keepConversation(conversation) {
  if (!saveConversation(conversation)) banner(words("errorFull"), words("exportAll"), exportAll);
}

function banner(text, label, act) {
  $("banner").hidden = !text;
  $("banner").firstElementChild.textContent = text;
  $("banner").lastElementChild.textContent = label;
  $("banner").lastElementChild.onclick = act;
}

// ------------------------------------------------------------------------------------------------ asking the server

async function answer(conversation) {
  const { sampling: chosen, seed, system } = sampling();
  const asked = conversation.messages
    .filter((message) => message.content)
    .map(({ role, content }) => ({ role, content }));
  const message = { role: "assistant", content: "", model: $("model").value, seed, sampling: chosen, system };
  const controller = new AbortController();
  conversation.messages.push(message);
  conversation.updated = Date.now();
  running.set(conversation.id, { conversation, message, controller });
  follows = true;
  keepConversation(conversation);
  if (conversation === current) redraw();
  scrollToEnd();
  say(words("thinking"), true);

  let frame = 0;
  let keptAt = Date.now();
  const grow = (piece) => {
    message.content += piece;
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      views.get(message)?.update(running.get(conversation.id)?.message === message);
      if (conversation === current) scrollToEnd();
    });
    if (Date.now() - keptAt > 1000) {
      keptAt = Date.now();
      keepConversation(conversation);
    }
  };
  const messages = system ? [{ role: "system", content: system }, ...asked] : asked;
  try {
    message.finish = await streamAnswer(loadKey(), { model: message.model, messages, seed, ...chosen }, controller.signal, grow);
    if (conversation === current) say(words("finished"), true);
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else message.error = asKept(error);
  }
  cancelAnimationFrame(frame);
  running.delete(conversation.id);
  if (message.finish !== "stopped" || loadConversation(conversation.id)) keepConversation(conversation);
  views.get(message)?.update(false);
  refresh();
  scrollToEnd();
  if (message.error?.kind === 401) askKey(true);
}

// An error as it is stored with its message. What is no ServerError is a mistake of this page and must be seen.
function asKept(error) {
  if (!(error instanceof ServerError)) throw error;
  return { kind: error.kind, told: error.message, until: error.wait ? Date.now() + error.wait * 1000 : undefined };
}

function send() {
  const text = $("text").value;
  if (!text.trim() || running.has(current.id)) return;
  saveDraft(draftId(), "");
  $("text").value = "";
  current.messages.push({ role: "user", content: text });
  if (current.messages.length === 1) location.replace(`#${current.id}`);
  answer(current);
}

const actions = {
  edit(message, text) {
    if (running.has(current.id)) return;
    current.messages.splice(current.messages.indexOf(message), Infinity, { role: "user", content: text });
    answer(current);
    $("text").focus();
  },
  again(message) {
    if (running.has(current.id)) return;
    current.messages.splice(current.messages.indexOf(message));
    answer(current);
    $("text").focus();
  },
  async rate(message, rating) {
    const conversation = current;
    const before = conversation.messages.slice(0, conversation.messages.indexOf(message)).filter((one) => one.content);
    const messages = before.map(({ role, content }) => ({ role, content }));
    if (message.system) messages.unshift({ role: "system", content: message.system });
    const { model, seed, sampling: chosen, content } = message;
    const about = message.answerId ? { answer_id: message.answerId } : { model, messages, answer: content, seed, sampling: chosen };
    try {
      message.answerId = (await sendThumb(loadKey(), { rating, ...about })).answer_id;
      message.rating = rating;
      keepConversation(conversation);
      say(words(rating ? "thanks" : "takenBack"));
    } catch (error) {
      const kept = asKept(error);
      banner(errorWords(kept), words("retry"), () => (banner("", ""), actions.rate(message, rating)));
      if (kept.kind === 401) askKey(true);
    }
    views.get(message)?.update(false);
  },
  enterKey: () => askKey(false),
};

async function connect() {
  try {
    const names = await listModels(loadKey());
    $("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === loadModel())));
    banner("", "");
  } catch (error) {
    const kept = asKept(error);
    if ($("model").options.length === 0) $("model").replaceChildren(new Option(words("noModel"), ""));
    if (kept.kind === 401) {
      banner(words("needKey"), words("enterKey"), () => askKey(false));
      askKey(Boolean(loadKey()));
    } else banner(errorWords(kept), words("retry"), connect);
  }
}

// ---------------------------------------------------------------------------------------------------------- dialogs

function askKey(wrong) {
  $("key-problem").hidden = !wrong || !loadKey();
  $("key-problem").textContent = words("error401");
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

$("key-dialog").querySelector("form").addEventListener("submit", async (event) => {
  const { key, keep } = event.target.elements;
  saveKey(key.value.trim(), keep.checked);
  key.value = "";
  await connect();
  const failed = current.messages.at(-1);
  if (failed?.error?.kind === 401 && $("model").value) actions.again(failed);
  else $("text").focus();
});

$("open-settings").addEventListener("click", () => {
  for (const [name, value] of Object.entries(loadSettings())) $("settings-dialog").querySelector(`[name=${name}]`).value = value;
  $("settings-dialog").showModal();
});
$("settings-dialog").querySelector("form").addEventListener("submit", (event) => saveSettings(Object.fromEntries(new FormData(event.target))));
$("open-key").addEventListener("click", () => {
  $("settings-dialog").close();
  askKey(false);
});
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());

// ------------------------------------------------------------------------------------------- conversations, chrome

function choose(id) {
  const found = loadConversation(id);
  if (found) show(found);
  showDrawer(false);
  $("text").focus();
}

function removed(id) {
  running.get(id)?.controller.abort();
  if (id === current.id) begin();
  else refresh();
}

function begin() {
  show(newConversation());
  showDrawer(false);
  $("text").focus();
}

function exportAll() {
  exportConversations(allConversations(), "talaria-conversations");
}

function fillPage() {
  fillWords();
  $("theme-name").textContent = words({ system: "themeSystem", light: "themeLight", dark: "themeDark" }[loadTheme()]);
}

for (const button of document.querySelectorAll("[data-icon]")) button.prepend(icon(button.dataset.icon));
$("new").addEventListener("click", begin);
$("new-small").addEventListener("click", begin);
$("export").addEventListener("click", exportAll);
$("theme").addEventListener("click", () => (nextTheme(), fillPage()));
$("language").addEventListener("click", () => (switchLanguage(), fillPage(), redraw()));
$("model").addEventListener("change", () => saveModel($("model").value));
$("composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
$("stop").addEventListener("click", () => (running.get(current.id)?.controller.abort(), $("text").focus()));
$("down").addEventListener("click", () => ((follows = true), scrollToEnd()));
$("scroll").addEventListener("scroll", () => ((follows = atEnd()), ($("down").hidden = follows)));
$("text").addEventListener("input", () => {
  saveDraft(draftId(), $("text").value);
  $("send").disabled = !$("text").value.trim();
  fit();
});
$("text").addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (drawerIsOpen()) showDrawer(false);
  else running.get(current.id)?.controller.abort();
});
addEventListener("resize", scrollToEnd);
addEventListener("pagehide", () => {
  for (const { conversation } of running.values()) saveConversation(conversation);
});
// Another tab has written: its conversations appear here too, except where something is under way.
addEventListener("storage", () => {
  if (running.size || document.querySelector(".editing, dialog[open]")) return;
  const written = loadConversation(current.id);
  if (written && JSON.stringify(written) !== JSON.stringify(current)) {
    current = written;
    redraw();
  } else refresh();
});

fillPage();
show(loadConversation(location.hash.slice(1)) ?? newConversation());
connect();
$("text").focus();

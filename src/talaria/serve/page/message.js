// One message as elements: makeMessage(message, actions) -> {element, update(running)}. What a button does is its caller's.

import { copyButton } from "./copy.js";
import { iconButton } from "./icons.js";
import { showMarkdown } from "./markdown.js";
import { hasWords, words } from "./words.js";

const edits = new WeakMap(); // message -> what is typed into its editor: it outlives a redrawn page

// `actions`: edit(message, text), again(message), rate(message, rating), enterKey().
export function makeMessage(message, actions) {
  const isUser = message.role === "user";
  const element = document.createElement("article");
  const body = document.createElement("div");
  const note = document.createElement("div");
  const tools = document.createElement("div");
  element.className = `message ${isUser ? "user" : "answer"}`;
  element.setAttribute("aria-label", isUser ? words("you") : words("assistant", message.model));
  body.className = isUser ? "body" : "body markdown";
  body.dir = "auto";
  note.className = "note";
  tools.className = "tools";
  element.append(body, note, tools);
  tools.append(copyButton(() => message.content));
  const thumbs = [];
  if (isUser) tools.append(iconButton("edit", words("edit"), edit));
  else {
    tools.append(iconButton("again", words("again"), () => actions.again(message)));
    for (const [name, rating] of [["thumbUp", 1], ["thumbDown", -1]]) {
      const thumb = iconButton(name, words(name), () => actions.rate(message, message.rating === rating ? 0 : rating));
      thumb.rating = rating;
      thumbs.push(thumb);
    }
    tools.append(...thumbs);
  }

  function update(running) {
    element.classList.toggle("running", running);
    element.setAttribute("aria-busy", String(running));
    if (isUser) body.textContent = message.content;
    else showMarkdown(body, message.content);
    for (const thumb of thumbs) {
      thumb.hidden = !message.content;
      thumb.setAttribute("aria-pressed", String(message.rating === thumb.rating));
    }
    tools.hidden = running;
    showNote(note, running ? null : message, actions);
  }

  function edit() {
    const area = document.createElement("textarea");
    const save = button("main", words("send"), () => {
      if (!area.value.trim()) return;
      edits.delete(message);
      actions.edit(message, area.value);
    });
    const cancel = button("", words("cancel"), () => {
      edits.delete(message);
      element.classList.remove("editing");
      editor.remove();
      tools.querySelector("button:last-child").focus();
    });
    const editor = document.createElement("div");
    const buttons = document.createElement("div");
    editor.className = "editor";
    buttons.className = "buttons";
    buttons.append(cancel, save);
    area.value = edits.get(message) ?? message.content;
    area.rows = Math.min(12, area.value.split("\n").length + 1);
    area.setAttribute("aria-label", words("editing"));
    area.addEventListener("input", () => edits.set(message, area.value));
    area.addEventListener("keydown", (event) => {
      if (sends(event)) save.click();
      else if (event.key === "Escape") cancel.click();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    edits.set(message, area.value);
    editor.append(area, buttons);
    element.classList.add("editing");
    element.append(editor);
    area.focus();
  }

  if (edits.has(message)) edit();
  return { element, update };
}

// Enter alone sends; while an input method composes, Enter belongs to it (229: Safari, which ends the composition first).
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

// What went wrong, in words; `told` is the server's own sentence.
export function errorWords(error) {
  const known = `error${error.kind}`;
  const other = error.kind >= 500 ? "error500" : "error400";
  return words(hasWords(known) ? known : other, error.told ? `“${error.told}”` : "");
}

// An error with what to do about it, or why the answer is not whole.
function showNote(note, message, actions) {
  clearInterval(note.timer);
  note.replaceChildren();
  note.classList.toggle("problem", Boolean(message?.error));
  if (!message || message.role === "user") return;
  if (message.error) {
    note.append(errorWords(message.error), " ");
    if (message.error.kind === 401) note.append(button("", words("enterKey"), actions.enterKey));
    else note.append(retryButton(note, message, actions));
  } else if (message.finish === "stopped") note.append(words("stopped"));
  else if (message.finish === "length") note.append(words("tooShort"));
  else if (!message.content.trim()) note.append(words("nothing"));
}

// Where the server told how long to wait, the button counts the seconds and cannot be pressed before.
function retryButton(note, message, actions) {
  const retry = button("", words("retry"), () => actions.again(message));
  const left = () => Math.ceil(((message.error.until ?? 0) - Date.now()) / 1000);
  const tick = () => {
    retry.disabled = left() > 0;
    retry.textContent = left() > 0 ? words("retryIn", left()) : words("retry");
    if (left() <= 0) clearInterval(note.timer);
  };
  tick();
  if (left() > 0) note.timer = setInterval(tick, 250);
  return retry;
}

function button(name, text, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.textContent = text;
  made.addEventListener("click", onClick);
  return made;
}

// A button that copies a text: copyButton(() => text).

import { icon, iconButton } from "./icons.js";
import { words } from "./words.js";

export function copyButton(text) {
  const button = iconButton("copy", words("copy"), async () => {
    const copied = await copy(text());
    button.replaceChildren(icon(copied ? "done" : "close"));
    button.title = words(copied ? "copied" : "notCopied");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.title = words("copy");
    }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // no clipboard over plain HTTP from another machine
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "aside";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

// The list of conversations and, at phone width, the drawer it lies in.

import { allConversations, deleteConversation, exportConversations, loadConversation, saveConversation, titleOf } from "./conversations.js";
import { iconButton } from "./icons.js";
import { words } from "./words.js";

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 760px)");

export function showDrawer(open) {
  const isOpen = open && narrow.matches;
  document.body.classList.toggle("drawer", isOpen);
  $("shade").hidden = !isOpen;
  $("side").inert = narrow.matches && !isOpen;
  document.querySelector("main").inert = isOpen; // the keyboard stays in the drawer
  $("open-side").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("close-side").focus();
}

export const drawerIsOpen = () => document.body.classList.contains("drawer");

// `current`: the id shown now. `choose(id)` and `removed(id)` are called for a click on a name and after a deletion.
export function showList(current, choose, removed) {
  const rows = allConversations().map((conversation) => {
    const title = titleOf(conversation) || words("untitled");
    const row = document.createElement("li");
    const open = document.createElement("button");
    open.type = "button";
    open.className = "open";
    open.textContent = title;
    open.title = title;
    if (conversation.id === current) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => choose(conversation.id));
    const named = (key) => `${words(key)}: ${title}`;
    row.append(
      open,
      iconButton("edit", named("rename"), () => rename(conversation.id, title, () => showList(current, choose, removed))),
      iconButton("download", named("exportOne"), () => exportConversations([loadConversation(conversation.id)], "talaria-conversation")),
      iconButton("trash", named("remove"), () => remove(conversation.id, title, removed)),
    );
    return row;
  });
  $("list").replaceChildren(...rows);
}

function rename(id, title, done) {
  const dialog = $("name-dialog");
  const field = dialog.querySelector("input");
  field.value = title;
  dialog.querySelector("form").onsubmit = () => {
    const conversation = loadConversation(id);
    if (conversation) saveConversation({ ...conversation, title: field.value.trim() });
    done();
  };
  dialog.showModal();
  field.select();
}

function remove(id, title, removed) {
  const dialog = $("delete-dialog");
  $("delete-name").textContent = title;
  dialog.querySelector("form").onsubmit = () => {
    deleteConversation(id);
    removed(id);
  };
  dialog.showModal();
}

narrow.addEventListener("change", () => showDrawer(false));
$("open-side").addEventListener("click", () => showDrawer(true));
const close = () => {
  showDrawer(false);
  $("open-side").focus();
};
$("close-side").addEventListener("click", close);
$("shade").addEventListener("click", close);
showDrawer(false);

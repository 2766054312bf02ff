// Conversations in this browser's storage, one entry each, so that two tabs do not overwrite each other's.
//
// A conversation: {id, title, updated, messages}. A message: {role, content}; an answer also {model, seed, sampling,
// system, finish, error, rating, answerId}. What a person has typed and not sent is kept beside it as its draft.

const CONVERSATION = "talaria.conversation.";
const DRAFT = "talaria.draft.";

export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), title: "", updated: Date.now(), messages: [] };
}

// Newest first. An entry that cannot be read is left alone and not listed.
export function allConversations() {
  const keys = Array.from({ length: localStorage.length }, (_, index) => localStorage.key(index));
  const found = keys.filter((key) => key.startsWith(CONVERSATION)).map((key) => loadConversation(key.slice(CONVERSATION.length)));
  return found.filter(Boolean).sort((a, b) => b.updated - a.updated);
}

export function loadConversation(id) {
  try {
    const read = JSON.parse(localStorage.getItem(CONVERSATION + id));
    return read !== null && typeof read === "object" && Array.isArray(read.messages) ? read : null;
  } catch {
    return null;
  }
}

// False where the storage is full or closed.
export function saveConversation(conversation) {
  return kept(CONVERSATION + conversation.id, JSON.stringify(conversation));
}

export function deleteConversation(id) {
  localStorage.removeItem(CONVERSATION + id);
  localStorage.removeItem(DRAFT + id);
}

export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  return conversation.title || (first?.content ?? "").trim().replace(/\s+/g, " ").slice(0, 80);
}

export function loadDraft(id) {
  return localStorage.getItem(DRAFT + id) ?? "";
}

export function saveDraft(id, text) {
  if (text) return kept(DRAFT + id, text);
  localStorage.removeItem(DRAFT + id);
  return true;
}

// Hand the conversations over as a file.
export function exportConversations(conversations, name) {
  const data = JSON.stringify({ format: "talaria-conversations", version: 1, conversations }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  link.download = `${name}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function kept(key, value) {
  try {
    localStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

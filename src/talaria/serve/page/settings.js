// What a person has chosen: key, model, sampling and system prompt, colours. Kept in this browser.

const SETTINGS = "talaria.settings";
const KEY = "talaria.key";
const MODEL = "talaria.model";
const THEME = "talaria.theme";
// As `talaria chat` has them; "" leaves the choice to the server.
const DEFAULTS = { system: "", temperature: "0.7", top_p: "0.95", max_tokens: "", seed: "" };

export function loadSettings() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(SETTINGS)) };
  } catch {
    return { ...DEFAULTS };
  }
}

// Values as the dialog's fields give them: text.
export function saveSettings(values) {
  keep(localStorage, SETTINGS, JSON.stringify(values));
}

// The fields of a request. A seed is drawn where none is set, so that every answer can be had again.
export function sampling() {
  const settings = loadSettings();
  const chosen = ["temperature", "top_p", "max_tokens"].filter((name) => settings[name] !== "");
  return {
    sampling: Object.fromEntries(chosen.map((name) => [name, Number(settings[name])])),
    seed: settings.seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(settings.seed),
    system: settings.system.trim(),
  };
}

// Held here too, for a browser that keeps nothing.
let key = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
export const loadKey = () => key;

export function saveKey(value, inThisBrowser) {
  key = value;
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
  keep(inThisBrowser ? localStorage : sessionStorage, KEY, value);
}

export const loadModel = () => localStorage.getItem(MODEL) ?? "";
export const saveModel = (name) => keep(localStorage, MODEL, name);

export const loadTheme = () => document.documentElement.dataset.theme ?? "system";

// system -> light -> dark -> system
export function nextTheme() {
  const next = { system: "light", light: "dark", dark: "system" }[loadTheme()];
  if (next === "system") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem(THEME);
  } else {
    document.documentElement.dataset.theme = next;
    keep(localStorage, THEME, next);
  }
}

function keep(storage, name, value) {
  try {
    storage.setItem(name, value);
  } catch {
    // The storage is full or closed: the choice holds until the page is left.
  }
}

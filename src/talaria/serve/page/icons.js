// Icons as SVG elements: icon("copy"). Paths of a 24 x 24 box, drawn with the colour of the text around them.

const PATHS = {
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 12l5 5L20 7",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  globe: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M3 12h18M12 3c5 5 5 13 0 18-5-5-5-13 0-18",
  menu: "M4 7h16M4 12h16M4 17h16",
  moon: "M20 14A8 8 0 1 1 10 4a7 7 0 0 0 10 10z",
  plus: "M12 5v14M5 12h14",
  again: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  stop: "M7 7h10v10H7z",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  book: "M4 5c3-1 6-1 8 1c2-2 5-2 8-1v13c-3-1-6-1-8 1c-2-2-5-2-8-1zM12 6v13",
  keyboard: "M3 7h18v10H3zM7 10.500h.01M11 10.500h.01M15 10.500h.01M8 14h8",
  person: "M12 4a4 4 0 1 0 0 8a4 4 0 0 0 0-8M4 20c1-4 4-6 8-6s7 2 8 6",
  undo: "M9 7l-5 5 5 5M4 12h10a5 5 0 0 1 0 10h-2",
  skip: "M6 6l7 6-7 6zM17 6v12",
  equals: "M5 9h14M5 15h14",
  up: "M12 19V5M6 11l6-6 6 6",
  thumbUp: "M7 11v9H4v-9zM7 11l4-7c2 0 3 1 2.500 3L13 10h6l1 2-2 7-1 1H7",
  thumbDown: "M17 13V4h3v9zM17 13l-4 7c-2 0-3-1-2.500-3l.5-3H5l-1-2 2-7 1-1h10",
};
const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// A button that shows an icon alone; its label is read aloud and shown on hovering.
export function iconButton(name, label, onClick) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "icon";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.append(icon(name));
  button.addEventListener("click", onClick);
  return button;
}

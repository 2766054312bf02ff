// One answer to be judged: makeCard(index, text, actions) -> an element with update(choice, count,
// focused, tieNext): the judgement so far, how many answers there are, which one keys are about, whether a tie comes next.

import { showMarkdown } from "./markdown.js";
import { words } from "./words.js";

const FLAGS = ["unhelpful", "dishonest", "harmful"];

// `actions`: place(index), score(index, value), flag(index, name), focus(index).
export function makeCard(index, text, actions) {
  const card = document.createElement("article");
  const place = button("place", "", () => actions.place(index));
  const name = document.createElement("b");
  const number = document.createElement("kbd");
  const rank = document.createElement("span");
  const body = document.createElement("div");
  const marks = document.createElement("div");
  const scores = document.createElement("div");
  const flags = document.createElement("div");
  card.className = "card";
  card.setAttribute("aria-label", words("answerNumber", index + 1));
  name.textContent = words("answerNumber", index + 1);
  number.textContent = index + 1;
  rank.className = "rank";
  place.append(number, name, rank);
  body.className = "body markdown";
  body.dir = "auto";
  showMarkdown(body, text);
  marks.className = "marks";
  scores.className = "scores";
  flags.className = "flags";
  const label = document.createElement("span");
  label.textContent = words("score");
  scores.append(label);
  const scoreButtons = [1, 2, 3, 4, 5, 6, 7].map((value) => button("", value, () => actions.score(index, value)));
  const flagButtons = FLAGS.map((flag) => button("", words(`flag_${flag}`), () => actions.flag(index, flag)));
  scoreButtons.forEach((made, value) => made.setAttribute("aria-label", `${words("score")} ${value + 1}`));
  scores.append(...scoreButtons);
  flags.append(...flagButtons);
  marks.append(scores, flags);
  card.append(place, body, marks);

  card.update = (choice, count, focused, tieNext) => {
    const at = choice.groups.findIndex((group) => group.includes(index));
    const tied = at >= 0 && choice.groups[at].length > 1;
    const above = choice.groups.slice(0, Math.max(at, 0)).flat().length + 1;
    card.classList.toggle("placed", at >= 0);
    card.classList.toggle("best", at === 0 && choice.groups[at].length < count);
    card.classList.toggle("focused", index === focused);
    place.setAttribute("aria-pressed", String(at >= 0));
    if (at < 0) rank.textContent = words(tieNext ? "tieNext" : choice.groups.length ? "nextPlace" : "makeBest");
    else if (tied) rank.textContent = words("tiedAt", above);
    else if (count === 2) rank.textContent = words(at === 0 ? "better" : "worse");
    else rank.textContent = words("rankAt", above);
    scoreButtons.forEach((made, value) => made.setAttribute("aria-pressed", String(choice.scores[index] === value + 1)));
    flagButtons.forEach((made, flag) =>
      made.setAttribute("aria-pressed", String((choice.flags[FLAGS[flag]] ?? []).includes(index))),
    );
  };
  return card;
}

function button(name, text, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.textContent = text;
  made.addEventListener("click", onClick);
  return made;
}

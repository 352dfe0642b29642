"use strict";
// Buttons and filters. Without this script the page shows everything and lacks only these.

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => act(made));
  return made;
}

function told(made, text) {
  const before = made.textContent;
  made.textContent = text;
  setTimeout(() => { made.textContent = before; }, 1500);
}

async function copy(made, text) {
  try {
    await navigator.clipboard.writeText(text);
    told(made, "copied");
  } catch (error) {  // a page opened from a file may not: select it, to be copied by hand
    const box = document.createElement("textarea");
    box.value = text;
    made.after(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    told(made, done ? "copied" : "not allowed");
  }
}

function save(name, text, kind) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function tools(root) {
  for (const held of root.querySelectorAll("template.copy")) {
    let bar = held.previousElementSibling;
    if (!bar || !bar.classList.contains("tools")) {
      bar = document.createElement("div");
      bar.className = "tools";
      held.before(bar);
    }
    const text = held.content.textContent, form = held.dataset.form;
    const made = button("Copy " + form, () => copy(made, text));
    made.dataset.copy = held.dataset.name + "." + form;
    bar.append(made);
    held.remove();
  }
  for (const figure of root.querySelectorAll("figure[id]")) {
    const bar = document.createElement("div");
    bar.className = "tools";
    bar.append(button("Save SVG", () => save(figure.id + ".svg", drawing(figure), "image/svg+xml")));
    figure.append(bar);
    if (figure.dataset.arms) highlight(figure);
  }
}

function highlight(figure) {  // buttons of arms: the others stand back
  const lines = [...figure.querySelectorAll("[id*='-arm']")];
  const number = (line) => line.id.match(/-arm(\d+)\./)?.[1];
  const bar = document.createElement("div");
  bar.className = "tools";
  JSON.parse(figure.dataset.arms).forEach((arm, n) => {
    if (!lines.some((line) => number(line) === String(n))) return;
    const made = button(arm, () => {
      made.setAttribute("aria-pressed", made.getAttribute("aria-pressed") !== "true");
      const chosen = new Set([...bar.children].filter((each) => each.ariaPressed === "true").map((each) => each.value));
      for (const line of lines) line.classList.toggle("dim", chosen.size > 0 && !chosen.has(number(line)));
    });
    made.value = n;
    made.setAttribute("aria-pressed", false);
    bar.append(made);
  });
  if (bar.children.length > 1) figure.prepend(bar);
}

function drawing(figure) {  // with the colours that it has now, since a file has no sheet
  const shown = figure.querySelector(".wide svg, svg").cloneNode(true);
  const look = getComputedStyle(document.documentElement);
  shown.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const text = new XMLSerializer().serializeToString(shown);
  return text.replace(/var\((--p[0-9a-f]{6})\)/g, (_, name) => look.getPropertyValue(name).trim());
}

function filters(root) {
  const form = root.querySelector("form.filters");
  if (!form) return;
  form.hidden = false;
  const chosen = (name) => form.querySelector(`[data-filter=${name}]`).value;
  const apply = () => {
    const task = chosen("task"), arm = chosen("arm"), outcome = chosen("outcome");
    const fits = (answer) => (!arm || answer.dataset.arm === arm) && (!outcome ||
      (outcome === "changed" ? answer.dataset.changed === "yes" : answer.dataset.outcome === outcome));
    let count = 0;
    for (const problem of root.querySelectorAll(".problem")) {
      const answers = [...problem.querySelectorAll(".answer")];
      const found = (!task || problem.dataset.task === task) && answers.some(fits);
      problem.hidden = !found;
      count += found;
      // The start's answer stays beside those that are compared with it.
      for (const answer of answers) answer.hidden = !(fits(answer) || ((arm || outcome) && answer.dataset.arm === "start"));
    }
    const narrowed = task || arm || outcome;
    for (const fold of root.querySelectorAll("details.more")) {
      const some = fold.querySelector(".problem:not([hidden])") !== null;
      fold.hidden = !some;
      if (narrowed && some) fold.open = true;
    }
    for (const head of root.querySelectorAll("h3.of-task")) {
      head.hidden = ![...root.querySelectorAll(".problem:not([hidden])")].some((each) => each.dataset.task === head.dataset.task);
    }
    form.querySelector("output").textContent = count + (count === 1 ? " problem" : " problems");
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

tools(document);
filters(document);

"use strict";
// Keeps a page up to date: the moment every two seconds, the report whenever it has changed.

const EVERY = 2000;
let drawn = "", moment = "";

async function get(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.status);
  return [await answer.text(), answer.headers.get("X-Version")];
}

function foldsOf(root) {
  return [...root.querySelectorAll("details")];
}

async function update() {
  const live = document.getElementById("live"), report = document.getElementById("report");
  try {
    const [now] = await get("/live");
    if (now !== moment) live.innerHTML = moment = now;  // escaped where it was made
    const [text, version] = await get("/report?have=" + encodeURIComponent(drawn));
    if (version !== drawn) {
      const open = foldsOf(report).map((fold) => fold.open);
      const chosen = [...report.querySelectorAll("select")].map((each) => each.value), at = scrollY;
      report.innerHTML = text;
      const folds = foldsOf(report);
      if (folds.length === open.length) folds.forEach((fold, n) => { fold.open = open[n]; });
      tools(report);
      report.querySelectorAll("select").forEach((each, n) => { if (chosen[n]) each.value = chosen[n]; });
      filters(report);
      scrollTo(0, at);
      drawn = version;
      report.dataset.version = version;
    }
    live.classList.remove("lost");
  } catch (error) {
    live.classList.add("lost");  // the server is gone; it may come back
  }
  setTimeout(update, EVERY);
}

update();

// Refreshes the overview. Without scripts the page reloads itself.
"use strict";

const live = document.getElementById("live");
const name = (details) => details.querySelector("summary").textContent;

async function refresh() {
  // whoever reads by keyboard, selects text or looks elsewhere is left alone
  const inUse = live.querySelector(":focus-visible") || document.getSelection().type === "Range";
  if (document.hidden || inUse) return;
  const open = new Set([...live.querySelectorAll("details[open]")].map(name));
  const answer = await fetch("/live" + location.search, { redirect: "error" });
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  live.innerHTML = await answer.text();
  live.querySelectorAll("details").forEach((d) => (d.open = open.has(name(d))));
}

function again(seconds) {
  setTimeout(async () => {
    let old = false;
    try {
      await refresh();
    } catch {
      old = true; // the style sheet says so above the numbers
    }
    live.classList.toggle("old", old);
    again(Number(live.dataset.every) * (old ? 3 : 1));
  }, seconds * 1000);
}

if (live) again(Number(live.dataset.every));

"use strict";
// #data contains samples, classes and the run's name as JSON; decisions are stored in localStorage per run.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const grid = byId("faces");
const cards = [];
let decisions = load();
let shown = [];
let at = 0;

function load() {
  try {
    return JSON.parse(localStorage.getItem(data.run)) ?? {};
  } catch {
    byId("unkept").hidden = false; // no storage: decisions are lost when the page closes
    return {};
  }
}

function store() {
  try {
    localStorage.setItem(data.run, JSON.stringify(decisions));
  } catch {
    byId("unkept").hidden = false;
  }
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The most likely class other than the label: the default for relabeling.
function candidate(face) {
  if (face.suggested_label !== face.label) return face.suggested_label;
  const others = face.target.map((p, c) => (c === face.label ? -1 : p));
  return others.indexOf(Math.max(...others));
}

function bars(face) {
  const kinds = ["votes", "auxiliary", "target", "fused"].filter((kind) => face[kind]);
  const heads = kinds.map((kind) => element("th", { class: kind, title: kind }, kind.replace("iliary", ".")));
  const head = element("tr", {}, element("th"), ...heads);
  const rows = data.classes.map((name, c) => {
    const cells = kinds.map((kind) => {
      const share = `${(100 * face[kind][c]).toFixed(1)}%`;
      return element("td", { class: kind, title: `${kind}: ${share}` }, element("i", { style: `width:${share}` }));
    });
    const kind = c === face.label ? "given" : c === face.suggested_label ? "proposed" : "";
    return element("tr", { class: kind }, element("th", { title: name }, name), ...cells);
  });
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

function facts(face) {
  const learnt = face.never_learned ? "never learned" : `forgotten ${face.forgetting_events}×`;
  const lines = [`label error score ${face.label_error_score.toFixed(3)}`, `attention ${face.attention}`, `loss ${face.loss}`, learnt];
  if (face.truth) lines.push(`reference label ${face.truth}`);
  const parts = lines.flatMap((line) => [line, element("br")]);
  return element("div", { class: "facts" }, ...parts, element("code", { title: "key" }, face.key));
}

function decideRow(face) {
  const button = (what, text, key) => element("button", { "data-do": what, title: `key ${key}` }, text);
  const choice = element("select", { "aria-label": "class to relabel to" });
  data.classes.forEach((name, c) => choice.append(element("option", { value: c }, name)));
  choice.value = candidate(face);
  const buttons = [button("keep", "Keep", "K"), button("drop", "Drop", "D"), button("relabel", "Relabel to", "R"), choice];
  return element("div", { class: "decide" }, ...buttons);
}

function card(face, place) {
  const label = data.classes[face.label];
  const agreed = face.suggested_label === face.label;
  const title = element("h2", {}, label, element("span", { class: "to" }, agreed ? "model agrees" : "→"));
  if (!agreed) title.append(data.classes[face.suggested_label]);
  title.append(element("span", { class: "verdict" }), element("span", { class: "rank" }, `${face.rank}.`));
  const picture = face.picture
    ? element("img", { alt: face.key, src: face.picture })
    : element("div", { class: "lost" }, "unreadable");
  const made = element("article", { class: "face", tabindex: "-1" });
  made.append(title, element("div", {}, picture, facts(face)), bars(face), decideRow(face));
  made.addEventListener("click", (event) => {
    const what = event.target.dataset.do;
    const where = shown.indexOf(place);
    if (what) decide(where, what, made.querySelector("select").value);
    else if (event.target.tagName !== "SELECT") focus(where);
  });
  made.querySelector("select").addEventListener("change", (event) => {
    if (decisions[face.key]?.decision === "relabel") decide(shown.indexOf(place), "relabel", event.target.value);
  });
  return made;
}

function mark(place) {
  const face = data.faces[place];
  const decision = decisions[face.key];
  const made = cards[place];
  made.className = `face ${decision?.decision ?? ""}`;
  const done = { keep: "kept", drop: "dropped", relabel: `relabeled to ${decision?.label}` };
  made.querySelector(".verdict").textContent = decision ? done[decision.decision] : "";
  if (decision?.decision === "relabel") made.querySelector("select").value = data.classes.indexOf(decision.label);
}

function matches(face) {
  const decided = face.key in decisions;
  const pair = `${face.label}>${face.suggested_label}`;
  const [label, wanted, which] = ["label", "pair", "which"].map((id) => byId(id).value);
  return (
    (!label || face.label === Number(label)) &&
    (!wanted || pair === wanted) &&
    (which === "all" || decided === (which === "decided"))
  );
}

function refresh() {
  shown = [];
  data.faces.forEach((face, place) => {
    const visible = matches(face);
    cards[place].hidden = !visible;
    if (visible) shown.push(place);
  });
  tell();
}

function tell() {
  const decided = data.faces.filter((face) => face.key in decisions).length;
  byId("count").textContent = `${shown.length} of ${data.faces.length} samples shown, ${decided} decided`;
  byId("export").disabled = !Object.keys(decisions).length;
}

function focus(place) {
  if (!shown.length) return;
  at = Math.min(Math.max(place, 0), shown.length - 1);
  cards[shown[at]].focus({ preventScroll: true });
  cards[shown[at]].scrollIntoView({ block: "nearest" });
}

// Store the decision and go to the next sample; `label` is a class number.
function decide(place, what, label) {
  const number = shown[place];
  if (number === undefined) return;
  const { key, stored } = data.faces[number];
  const old = data.classes[stored];
  if (what === "undo") delete decisions[key];
  else decisions[key] = { decision: what, label: what === "relabel" ? data.classes[label] : "", old };
  store();
  mark(number);
  if (byId("which").value === "all") {
    tell();
    focus(what === "undo" ? place : place + 1);
  } else {
    refresh(); // the sample may no longer match the filter; the next one is at its index then
    focus(place);
  }
}

function columns() {
  const tops = shown.map((place) => cards[place].offsetTop);
  const first = tops.findIndex((top) => top !== tops[0]);
  return first < 0 ? tops.length : first;
}

function onKey(event) {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -1e9, End: 1e9 };
  const doing = { k: "keep", d: "drop", r: "relabel", u: "undo" }[event.key.toLowerCase()];
  if (event.key in steps) focus(at + steps[event.key]);
  else if (doing && shown.length) decide(at, doing, cards[shown[at]].querySelector("select").value);
  else if (/^[1-9]$/.test(event.key) && Number(event.key) <= data.classes.length) decide(at, "relabel", event.key - 1);
  else return;
  event.preventDefault();
}

function quoted(cell) {
  return /[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

// Includes decisions on samples that are not on this page: a later audit may show fewer samples.
function exported() {
  const places = new Map(data.faces.map((face) => [face.key, face.rank]));
  const keys = Object.keys(decisions).sort((a, b) => (places.get(a) ?? 1e9) - (places.get(b) ?? 1e9));
  const cells = (key) => [key, decisions[key].decision, decisions[key].label, decisions[key].old ?? ""];
  const rows = keys.map((key) => cells(key).map(quoted).join(","));
  return ["key,decision,label,old_label", ...rows].join("\n") + "\n";
}

function download() {
  const url = URL.createObjectURL(new Blob([exported()], { type: "text/csv" }));
  element("a", { href: url, download: "relabel.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function fillFilters() {
  const counts = new Map();
  for (const { label, suggested_label } of data.faces) {
    counts.set(`${label}`, (counts.get(`${label}`) ?? 0) + 1);
    if (label !== suggested_label) counts.set(`${label}>${suggested_label}`, (counts.get(`${label}>${suggested_label}`) ?? 0) + 1);
  }
  for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    const names = value.split(">").map((c) => data.classes[c]);
    byId(value.includes(">") ? "pair" : "label").append(element("option", { value }, `${names.join(" → ")} (${count})`));
  }
}

fillFilters();
data.faces.forEach((face, place) => cards.push(card(face, place)));
grid.append(...cards);
data.faces.forEach((_, place) => mark(place));
for (const id of ["label", "pair", "which"]) {
  byId(id).addEventListener("change", () => {
    refresh();
    at = 0;
  });
}
byId("export").addEventListener("click", download);
document.addEventListener("keydown", onKey);
refresh();
if (shown.length) cards[shown[0]].focus({ preventScroll: true });

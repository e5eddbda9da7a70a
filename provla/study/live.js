// Asks for the sweep's state, and draws it; every text goes in as text.
const at = (id) => document.getElementById(id);
const make = (name, text, attributes = {}, space) => {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  if (text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const SVG = "http://www.w3.org/2000/svg";
function panel(arm, curves) {
  const all = curves.flat(), steps = all.map((p) => p[0]), logs = all.map((p) => Math.log(p[1]));
  const [left, right] = [Math.min(...steps), Math.max(...steps)], [low, high] = [Math.min(...logs), Math.max(...logs)];
  const x = (s) => 100 * (s - left) / Math.max(1, right - left), y = (v) => 58 - 56 * (Math.log(v) - low) / Math.max(1e-9, high - low);
  const svg = make("svg", null, { viewBox: "0 0 100 60", preserveAspectRatio: "none", role: "img", "aria-label": arm }, SVG);
  for (const curve of curves) svg.append(make("polyline", null, { points: curve.map(([s, v]) => `${x(s)},${y(v)}`).join(" ") }, SVG));
  const figure = make("figure", null), last = curves.map((c) => c.at(-1)[1].toPrecision(3)).join(", ");
  figure.append(svg, make("figcaption", `${arm}: ${last}`));
  return figure;
}
function draw(state) {
  document.title = `${state.study} – live`;
  at("study").textContent = state.study;
  at("question").textContent = state.question ?? "";
  const left = state.seconds_left ? `; about ${Math.round(state.seconds_left / 60)} minutes left` : "";
  at("states").textContent = Object.entries(state.states).map(([name, count]) => `${count} ${name}`).join(", ") + left;
  at("jobs").replaceChildren(...state.jobs.map((job) => make("span", "", { class: job.state, title: `${job.folder}: ${job.state}` })));
  at("metric").textContent = state.metric;
  at("arms").replaceChildren(...state.arms.map((row) => {
    const line = make("tr", null);
    line.append(...[row.arm, row.runs, row.mean?.toPrecision(4) ?? "–", row.difference].map((cell) => make("td", cell)));
    return line;
  }));
  const arms = {};
  for (const job of state.jobs) if (state.curves[job.folder]) (arms[job.arm] ??= []).push(state.curves[job.folder]);
  at("curves").replaceChildren(...Object.entries(arms).map(([arm, curves]) => panel(arm, curves)));
}
async function tick() {
  try {
    const state = await (await fetch("state.json")).json();
    draw(state);
    if (state.over) { at("states").append(" – the sweep is over"); return; }
  } catch {
    at("states").textContent = "nobody answers any more: the sweep is over, or its follower was ended";
    return;
  }
  setTimeout(tick, 2000);
}
tick();

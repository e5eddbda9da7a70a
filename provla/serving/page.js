// Asks for the server's state, and draws it; every text goes in as text.
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const COLORS = ["#2b6cb0", "#c05621", "#2e8b57", "#b83280", "#6b46c1", "#975a16", "#319795", "#c23b3b"];
const make = (name, text, attributes = {}, space) => {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  if (text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const ms = (found) => found ? `${found.p50.toFixed(0)} / ${found.p99.toFixed(0)} ms` : "–";
// A line per number of the action, over the steps of the chunk; dashed: where the policy is to look again.
function plot(chunk, look) {
  const all = chunk.flat(), low = Math.min(...all), high = Math.max(...all), last = Math.max(1, chunk.length - 1);
  const x = (t) => 100 * t / last, y = (v) => 58 - 56 * (v - low) / Math.max(1e-9, high - low);
  const svg = make("svg", null, { viewBox: "0 0 100 60", preserveAspectRatio: "none", role: "img", "aria-label": "actions" }, SVG);
  svg.append(make("line", null, { x1: x(look), x2: x(look), y1: 0, y2: 60, "stroke-dasharray": "3 3" }, SVG));
  for (let joint = 0; joint < chunk[0].length; joint++) {
    const points = chunk.map((action, t) => `${x(t)},${y(action[joint])}`).join(" ");
    svg.append(make("polyline", null, { points, stroke: COLORS[joint % COLORS.length] }, SVG));
  }
  const figure = make("figure", null);
  figure.append(svg, make("figcaption", `${chunk.length} actions of ${chunk[0].length} numbers, ${low.toPrecision(3)} to ${high.toPrecision(3)}; dashed: ${look} executed`));
  return figure;
}
function card(client, state) {
  const node = make("article", null, { class: client.left ? "left" : "" });
  node.append(make("h2", `client ${client.number}${client.left ? " (has left)" : ""}: ${client.prompt || "has not asked yet"}`));
  const since = client.seconds_since === null ? "" : `, ${client.seconds_since.toFixed(1)} s ago`;
  node.append(make("p", `${client.address}; ${client.answers} answers${since}; p50 / p99 ${ms(client.latency_ms)}; ${client.errors} refused`));
  if (client.last_error) node.append(make("p", client.last_error, { class: "bad" }));
  if (client.chunk) {
    const both = make("div", null, { class: "both" }), figure = make("figure", null);
    const picture = make("img", null, { src: `seen/${client.number}.png?${client.answers}`, alt: `what client ${client.number} sees` });
    figure.append(picture, make("figcaption", state.cameras.join(", ")));
    both.append(figure, plot(client.chunk, state.n_action_steps));
    node.append(both);
  }
  return node;
}

function seen({cameras, image_size: size}) {
  return Array.isArray(size) ? `${cameras.join(", ")} at ${size.join("×")}` : cameras.map((name) => `${name} at ${size[name].join("×")}`).join(", ");
}

function draw(state) {
  document.title = `${state.present} at ${state.checkpoint} – provla`;
  at("name").textContent = state.checkpoint;
  at("about").textContent = `provla ${state.provla}; chunks of ${state.horizon} actions, ${state.n_action_steps} executed; ${seen(state)}; ${state.device}`;
  const figures = {
    clients: state.present, answers: state.answers, "answers a second": state.answers_per_second.toFixed(1), "latency p50 / p99": ms(state.latency_ms),
    "forward pass p50 / p99": ms(state.pass_ms), "clients a pass": state.together?.toFixed(1) ?? "–", refused: state.errors,
  };
  at("figures").replaceChildren(...Object.entries(figures).map(([name, value]) => {
    const pair = make("div", null);
    pair.append(make("dt", name), make("dd", value));
    return pair;
  }));
  at("clients").replaceChildren(...state.clients.map((client) => card(client, state)));
}
async function tick() {
  try {
    draw(await (await fetch("state.json")).json());
  } catch {
    at("about").textContent = "nobody answers any more: the server has ended";
  }
  setTimeout(tick, 500);
}
tick();

// Draws `crystal` (see view3d.py) on the page's canvas: turned by mouse, touch or keys, painted from back to front.
"use strict";
const canvas = document.querySelector("canvas");
const pen = canvas.getContext("2d");
const points = crystal.atoms.map((atom) => atom.slice(0, 3));
for (const edge of [...crystal.edges, ...crystal.lines]) points.push(edge.slice(0, 3), edge.slice(3, 6));
const low = [0, 1, 2].map((k) => Math.min(...points.map((p) => p[k])));
const high = [0, 1, 2].map((k) => Math.max(...points.map((p) => p[k])));
const middle = low.map((value, k) => (value + high[k]) / 2);
const reach = Math.max(...points.map((p) => Math.hypot(...p.map((x, k) => x - middle[k])))) + 0.8;

const identity = [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
let turn, zoom;
function start() {
  turn = identity;
  zoom = 1;
  rotate(-0.35, 1);
  rotate(-0.25, 0);
}

function rotate(angle, axis) {
  // about the screen's x (0) or y (1) axis
  const c = Math.cos(angle), s = Math.sin(angle);
  const step = axis === 0 ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
  turn = step.map((row) => [0, 1, 2].map((k) => row.reduce((sum, x, j) => sum + x * turn[j][k], 0)));
}

function project(p) {
  // z of the crystal points up on the screen
  const q = [p[0] - middle[0], p[2] - middle[2], -(p[1] - middle[1])];
  const r = turn.map((row) => row[0] * q[0] + row[1] * q[1] + row[2] * q[2]);
  const perspective = 1 / (1 - r[2] / (6 * reach));
  const scale = (Math.min(width, height) / (2 * reach)) * zoom * perspective;
  return [width / 2 + r[0] * scale, height / 2 - r[1] * scale, r[2], scale];
}

let width, height;
function draw() {
  const ratio = window.devicePixelRatio || 1;
  width = canvas.clientWidth;
  height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = crystal.background;
  pen.fillRect(0, 0, width, height);
  const shapes = [];
  const at = crystal.atoms.map((atom) => project(atom));
  for (const edge of crystal.edges) addLine(shapes, edge.slice(0, 3), edge.slice(3, 6), { color: "#888888", size: 1 });
  for (const [i, j] of crystal.bonds) {
    // each half has the color of its atom
    const a = crystal.atoms[i], b = crystal.atoms[j];
    const half = [0, 1, 2].map((k) => (a[k] + b[k]) / 2);
    shapes.push({ depth: (at[i][2] * 3 + at[j][2]) / 4, from: at[i], to: project(half), color: shade(a[4], 0.85), world: 0.11 });
    shapes.push({ depth: (at[i][2] + 3 * at[j][2]) / 4, from: project(half), to: at[j], color: shade(b[4], 0.85), world: 0.11 });
  }
  for (const line of crystal.lines) {
    addLine(shapes, line.slice(0, 3), line.slice(3, 6), { color: line[7], world: 0.03 + 0.2 * line[6], alpha: 0.25 + 0.65 * line[6] });
    // the image that is looked at, which may lie outside the cell
    const end = project(line.slice(3, 6));
    shapes.push({ depth: end[2] - 0.01, ball: end, radius: 0.16, color: line[7], text: "" });
  }
  for (const arrow of crystal.arrows) {
    const alpha = 0.3 + 0.7 * arrow[6];
    addLine(shapes, arrow.slice(0, 3), arrow.slice(3, 6), { color: arrow[7], world: 0.13, alpha, arrow: arrow[6] > 0.3 ? arrow[8] : " " });
  }
  crystal.atoms.forEach((atom, i) => shapes.push({ depth: at[i][2], ball: at[i], radius: atom[3], color: atom[4], text: atom[5] }));
  shapes.sort((a, b) => a.depth - b.depth);
  for (const shape of shapes) shape.ball ? ball(shape) : stroke(shape);
  legend();
}

function addLine(shapes, a, b, look) {
  // in pieces, so that atoms in front of a part hide that part only
  const pieces = 6;
  const mix = (t) => a.map((x, k) => x + (b[k] - x) * t);
  for (let n = 0; n < pieces; n++) {
    const from = project(mix(n / pieces)), to = project(mix((n + 1) / pieces));
    const last = n === pieces - 1;
    shapes.push({ ...look, depth: (from[2] + to[2]) / 2, from, to, arrow: last ? look.arrow : undefined });
  }
}

function stroke(shape) {
  pen.globalAlpha = shape.alpha || 1;
  pen.strokeStyle = pen.fillStyle = shape.color;
  pen.lineWidth = shape.world ? Math.max(1, shape.world * shape.from[3]) : shape.size;
  pen.lineCap = "butt";
  pen.beginPath();
  pen.moveTo(shape.from[0], shape.from[1]);
  pen.lineTo(shape.to[0], shape.to[1]);
  pen.stroke();
  if (shape.arrow) {
    const angle = Math.atan2(shape.to[1] - shape.from[1], shape.to[0] - shape.from[0]);
    const size = 0.32 * shape.to[3];
    pen.beginPath();
    for (const [along, across] of [[1, 0], [-0.4, 0.55], [-0.4, -0.55]]) {
      const x = size * along, y = size * across;
      pen.lineTo(shape.to[0] + x * Math.cos(angle) - y * Math.sin(angle), shape.to[1] + x * Math.sin(angle) + y * Math.cos(angle));
    }
    pen.fill();
    pen.font = "bold 12px system-ui, sans-serif";
    pen.fillText(shape.arrow, shape.to[0] + 8, shape.to[1] - 6);
  }
  pen.globalAlpha = 1;
}

function shade(color, factor) {
  const value = parseInt(color.slice(1), 16);
  const part = (shift) => {
    const x = (value >> shift) & 255;
    return Math.round(factor > 1 ? x + (255 - x) * (factor - 1) : x * factor);
  };
  return `rgb(${part(16)},${part(8)},${part(0)})`;
}

function ball({ ball: [x, y, depth, scale], radius, color, text }) {
  const size = Math.max(2, radius * scale);
  const light = pen.createRadialGradient(x - size / 3, y - size / 3, size / 10, x, y, size);
  light.addColorStop(0, shade(color, 1.65));
  light.addColorStop(0.5, color);
  light.addColorStop(1, shade(color, 0.55));
  pen.fillStyle = light;
  pen.beginPath();
  pen.arc(x, y, size, 0, 2 * Math.PI);
  pen.fill();
  if (!text || size < 9 || crystal.atoms.length > 200) return;
  pen.font = `600 ${Math.min(13, size)}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineWidth = 2.5;
  pen.strokeStyle = "rgba(255,255,255,0.75)";
  pen.strokeText(text, x, y);
  pen.fillStyle = "#111111";
  pen.fillText(text, x, y);
  pen.textAlign = "left";
  pen.textBaseline = "alphabetic";
}

function legend() {
  pen.font = "600 13px system-ui, sans-serif";
  let x = 12;
  for (const [symbol, color] of crystal.legend) {
    pen.fillStyle = color;
    pen.beginPath();
    pen.arc(x + 5, height - 14, 6, 0, 2 * Math.PI);
    pen.fill();
    pen.strokeStyle = "#888888"; // white ones, too, are seen
    pen.lineWidth = 1;
    pen.stroke();
    pen.fillStyle = "#222222";
    pen.fillText(symbol, x + 15, height - 9);
    x += 28 + pen.measureText(symbol).width;
  }
  // axes of a frame, from the right
  const axes = new Map(crystal.arrows.map((arrow) => [arrow[8], arrow[7]]));
  x = width - 12;
  for (const name of [...axes.keys()].sort().reverse()) {
    x -= pen.measureText(name).width;
    pen.fillStyle = "#222222";
    pen.fillText(name, x, height - 9);
    pen.fillStyle = axes.get(name);
    pen.fillRect(x - 22, height - 16, 18, 4);
    x -= 34;
  }
}

// one finger or the mouse turns, two fingers change the size
const held = new Map();
let gap = 0;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  held.set(event.pointerId, [event.clientX, event.clientY]);
  gap = 0;
});
canvas.addEventListener("pointermove", (event) => {
  const before = held.get(event.pointerId);
  if (!before) return;
  held.set(event.pointerId, [event.clientX, event.clientY]);
  if (held.size === 1) {
    rotate((event.clientX - before[0]) * 0.01, 1);
    rotate((event.clientY - before[1]) * 0.01, 0);
  } else {
    const [a, b] = [...held.values()];
    const now = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (gap) resize(now / gap);
    gap = now;
  }
  draw();
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => held.delete(event.pointerId));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  resize(Math.exp(-event.deltaY * 0.001));
  draw();
}, { passive: false });

function resize(factor) {
  zoom = Math.min(20, Math.max(0.2, zoom * factor));
}

const keys = {
  ArrowLeft: () => rotate(-0.1, 1), ArrowRight: () => rotate(0.1, 1),
  ArrowUp: () => rotate(-0.1, 0), ArrowDown: () => rotate(0.1, 0),
  "+": () => resize(1.15), "=": () => resize(1.15), "-": () => resize(1 / 1.15), 0: start,
};
canvas.addEventListener("keydown", (event) => {
  if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  keys[event.key]();
  draw();
});
new ResizeObserver(draw).observe(canvas);
start();
draw();
